"""Asking a model behind an OpenAI-compatible endpoint: many requests at once, paced, sent again where they failed.

What an endpoint may do wrong, and what becomes of it:

| what happens | then |
|---|---|
| no connection, no answer in time, 408, 409, 429, 5xx, HTML, half a JSON | again, later, or as ``Retry-After`` says |
| the same after all retries, a longer ``Retry-After``, no such model, a key that is not accepted | `JudgeError` |
| a reply without a choice, or with an empty one | again, then no text: unscored |
| its filter steps in, the judge declines, the reply is cut off, the request is too long | no text: unscored |

No key, prompt or answer is in any message: of what a server says in an error only its number and codes are repeated.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, runtime_checkable
from urllib.parse import urlsplit

from pointsman.data.types import Behaviour, Conversation
from pointsman.errors import JudgeError, UsageError
from pointsman.judges.types import Answer, Judge, Verdict

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
LONGEST_WAIT = 120.0
"""Seconds: an endpoint that asks for more patience is given up; what it said so far is kept."""
_KEY = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_CODES = frozenset(
    "insufficient_quota rate_limit_exceeded model_not_found invalid_api_key unsupported_parameter unsupported_value "
    "context_length_exceeded content_filter content_policy_violation".split()
)
_UNREADABLE = {
    "context_length_exceeded": "the request is too long for the judge",
    "content_filter": "the endpoint's filter kept the request back",
    "content_policy_violation": "the endpoint's filter kept the request back",
}
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Usage:
    """What an answer took of an endpoint.

    Attributes:
        requests: How often it was sent.
        tokens_in, tokens_out: As the endpoint counted them.
        counted: Whether it did.
    """

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    counted: bool = True


@dataclass(frozen=True)
class Reply:
    """What a judge model said.

    Attributes:
        text: None if there is nothing to read.
        why: Why not.
        usage: What it took.
    """

    text: str | None
    why: str = ""
    usage: Usage = Usage()


Done = Callable[[int, Verdict, Usage], None]
"""Called with the place of an answer, its verdict, and what that took."""


@runtime_checkable
class RemoteJudge(Judge, Protocol):
    """A judge that sends answers away, and may cost money: every verdict is kept as soon as it is there.

    Attributes:
        remote: Whether it does; some do with some parameters only.
        tokens_of_request, tokens_of_reply: About how many there are beside the answer, for a forecast.
        manner: Names of its parameters that change no verdict.
    """

    @property
    def remote(self) -> bool: ...

    @property
    def tokens_of_request(self) -> int: ...

    @property
    def tokens_of_reply(self) -> int: ...

    @property
    def manner(self) -> frozenset[str]: ...

    def judge_each(self, asked: Sequence[Behaviour | Conversation], answers: Sequence[Answer], done: Done) -> None:
        """`Judge.judge`, handing over each verdict as it comes, in any order; those that came before it raises count.

        Raises:
            JudgeError: Some answers could not be judged.
        """
        ...

    def money(self, tokens_in: float, tokens_out: float) -> float | None:
        """What that many tokens cost; None if nobody said."""
        ...


def in_order(count: int, judge_each: Callable[[Done], None]) -> list[Verdict]:
    """What a judge hands over, as a list."""
    found: dict[int, Verdict] = {}
    judge_each(lambda place, verdict, usage: found.update({place: verdict}))
    return [found[place] for place in range(count)]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where and how a model is asked. The parameters of a judge that asks one begin with these.

    Attributes:
        model: As the endpoint calls it.
        endpoint: Base URL, such as ``http://127.0.0.1:8000/v1``; None is OpenAI's.
        key: Name of the environment variable that holds the key. None: ``OPENAI_API_KEY`` for OpenAI's endpoint, and
            no key at all for another.
        concurrency: Requests under way at once.
        per_minute: Requests that are sent in a minute, at most.
        retries: How often a request that failed is sent again.
        timeout: Seconds that one request may take.
        max_tokens: Tokens of a reply, at most.
        price_in, price_out: Money for a million tokens of the request and of the reply.
    """

    model: str
    endpoint: str | None = None
    key: str | None = None
    concurrency: int = 8
    per_minute: float | None = None
    retries: int = 5
    timeout: float = 60.0
    max_tokens: int = 1000
    price_in: float | None = None
    price_out: float | None = None

    manner: ClassVar[frozenset[str]] = frozenset(
        ("key", "concurrency", "per_minute", "retries", "timeout", "price_in", "price_out")
    )
    """Parameters that change how a verdict is got, and not what it is."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}", f"Give at least {least}")
        for name in ("per_minute", "timeout"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UsageError(f"{name} is {value}", "Give more than 0")
        for name in ("price_in", "price_out"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UsageError(f"{name} is {value}", "Give what a million tokens cost, or leave it out")
        if not self.model.strip():
            raise UsageError("The name of the judge's model is empty", "Give the name that the endpoint knows")
        if self.key is not None and not _KEY.fullmatch(self.key):  # perhaps the key itself: not repeated
            raise UsageError(
                "key is no name of an environment variable in capitals",
                "Put the key into a variable, such as JUDGE_KEY, and write key=JUDGE_KEY: what you give here is stored",
            )
        if self.endpoint is not None:
            _refuse_url(self.endpoint)

    def refuse_unready(self) -> None:
        """Raise if nothing could be asked: found out before hours of answers are generated.

        Raises:
            JudgeError: openai is not installed, or the key is not there.
        """
        if importlib.util.find_spec("openai") is None:
            raise JudgeError("Asking an endpoint needs the package openai", "pip install 'pointsman[judges]'")
        if self._variable is not None and not os.environ.get(self._variable):
            raise JudgeError(
                f"The environment variable {self._variable}, which holds the key of {self.place}, is not set",
                f"Set it, for example with `read -s {self._variable}; export {self._variable}`, or name another "
                "with key=",
            )

    @property
    def place(self) -> str:
        """The endpoint in messages: host and port."""
        return urlsplit(self.endpoint or OPENAI).netloc

    @property
    def _variable(self) -> str | None:
        return self.key or (None if self.endpoint else "OPENAI_API_KEY")

    def money(self, tokens_in: float, tokens_out: float) -> float | None:
        """What that many tokens cost; None without prices."""
        if self.price_in is None and self.price_out is None:
            return None
        return (tokens_in * (self.price_in or 0.0) + tokens_out * (self.price_out or 0.0)) / 1e6

    def ask_all(self, requests: Sequence[Messages], done: Callable[[int, Reply], None]) -> None:
        """Ask everything.

        Once a request has failed for good no other is sent; those under way may end, and are handed over.

        Args:
            requests: The messages of each.
            done: Called with the place of a request and its reply as soon as it is there, in any order.

        Raises:
            JudgeError: Some could not be asked.
        """
        _run(partial(_Asking(self, done).all, requests))

    def client(self) -> AsyncOpenAI:
        """A client that neither tries again nor sends a key elsewhere than here."""
        self.refuse_unready()
        from openai import AsyncOpenAI, Omit

        key = os.environ[self._variable] if self._variable else "none"  # the client refuses an empty one
        theirs: Any = dict.fromkeys(("OpenAI-Organization", "OpenAI-Project"), Omit()) if self.endpoint else None
        return AsyncOpenAI(
            api_key=key, base_url=self.endpoint or OPENAI, timeout=self.timeout, max_retries=0, default_headers=theirs
        )


@dataclass(eq=False)
class _Failure(Exception):
    """A request that failed: for good, or worth another try after so many seconds."""

    problem: str
    remedy: str
    again: bool = True
    wait: float | None = None
    unread: str = ""  # if it stays so, the reply counts as none for this reason


@dataclass
class _Asking:
    """One call of `ask_all`: what its requests share."""

    settings: Endpoint
    done: Callable[[int, Reply], None]
    failed: JudgeError | None = None
    next_turn: float = 0.0
    limits: dict[str, Any] = field(default_factory=dict)

    async def all(self, requests: Sequence[Messages]) -> None:
        self.limits = {"temperature": 0, "max_tokens": self.settings.max_tokens}
        places = iter(range(len(requests)))
        async with self.settings.client() as client:
            workers = [
                asyncio.ensure_future(self._work(client, requests, places))
                for _ in range(min(self.settings.concurrency, len(requests)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        if self.failed is not None:
            raise self.failed

    async def _work(self, client: AsyncOpenAI, requests: Sequence[Messages], places: Any) -> None:
        """Take the next request until there is none."""
        for place in places:
            if self.failed is not None:
                return
            try:
                reply = await self._ask(client, requests[place])
            except _Failure as failure:
                self.failed = self.failed or JudgeError(failure.problem, failure.remedy)
                return
            self.done(place, reply)

    async def _ask(self, client: AsyncOpenAI, messages: Messages) -> Reply:
        tries = self.settings.retries + 1
        for number in range(1, tries + 1):
            await self._turn()
            try:
                async with asyncio.timeout(self.settings.timeout):  # the client's own begins anew with every byte
                    got = await client.chat.completions.create(
                        model=self.settings.model, messages=cast(Any, messages), **self.limits
                    )
                return _read(got, number)
            except Exception as error:
                failure = self._explained(error)
            if failure.unread and (number == tries or not failure.again):
                return Reply(None, failure.unread, Usage(number, counted=False))
            if number == tries or not failure.again or self.failed is not None:
                raise failure from None
            if failure.wait is not None:
                self.next_turn = max(self.next_turn, time.monotonic() + failure.wait)  # it asks everybody to wait
            else:
                await asyncio.sleep(min(0.5 * 2 ** (number - 1), 8.0) * random.uniform(0.75, 1.0))
        raise AssertionError("not reached")

    async def _turn(self) -> None:
        """Wait until one more request may be sent."""
        now = time.monotonic()
        at = max(now, self.next_turn)
        self.next_turn = at + 60.0 / self.settings.per_minute if self.settings.per_minute else self.next_turn
        if at > now:
            await asyncio.sleep(at - now)

    def _explained(self, error: Exception) -> _Failure:
        """What a failure means, in words of ours."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        place = self.settings.place
        remedy = "Give the command again when it answers: what was judged is kept"
        if isinstance(error, _Failure):
            return error
        if isinstance(error, TimeoutError | APITimeoutError):
            return _Failure(f"{place} gave no answer within {self.settings.timeout:g} seconds", remedy)
        if isinstance(error, APIConnectionError):
            return _Failure(f"{place} cannot be reached", remedy)
        if isinstance(error, APIStatusError):
            return self._explained_status(error, remedy)
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            return _Failure(f"{place} answers with something that is not JSON", _NOT_ONE)
        return _Failure(f"Asking {place} failed ({type(error).__name__})", remedy)

    def _explained_status(self, error: Any, remedy: str) -> _Failure:
        status, code, wrong = int(error.status_code), str(error.code), str(error.param)
        code = code if code in _CODES else ""
        said = f"{self.settings.place} says {status}" + (f" ({code})" if code else "")
        if code in _UNREADABLE:
            return _Failure(said, remedy, again=False, unread=_UNREADABLE[code])
        if status in (408, 409, 429) or status >= 500:
            wait = _retry_after(error.response.headers)
            if code == "insufficient_quota" or (wait is not None and wait > LONGEST_WAIT):
                patience = f" and asks to wait {wait:,.0f} seconds" if wait is not None else ""
                return _Failure(said + patience, remedy, again=False)
            return _Failure(said, remedy, wait=wait)
        if status == 400 and code in ("unsupported_parameter", "unsupported_value"):
            # newer models of OpenAI's know one by another name, and the other not at all
            if wrong == "max_tokens":
                self.limits = {**self.limits, "max_completion_tokens": self.settings.max_tokens}
            if self.limits.pop(wrong, None) is not None or wrong in ("max_tokens", "temperature"):
                return _Failure(said, remedy, wait=0.0)
        if status in (401, 403):
            variable = self.settings._variable
            held = f"Check the key in {variable}" if variable else "Name the variable that holds its key with key="
            return _Failure(f"{said}: it does not accept the key, or not for {self.settings.model}", held, again=False)
        if status == 404:
            nothing = f"{said}: there is no model {self.settings.model}, or no chat completions at this address"
            return _Failure(nothing, "Check model= and endpoint=, which often ends in /v1", again=False)
        return _Failure(f"{said} to a request of the judge", "Check model= and max_tokens=", again=False)


_NOT_ONE = "Check endpoint=: it must be the base URL of an OpenAI-compatible server, which often ends in /v1"


def _read(got: Any, requests: int) -> Reply:
    """What a completion says.

    Raises:
        _Failure: It is none, or has nothing in it.
    """
    from openai.types.chat import ChatCompletion

    if not isinstance(got, ChatCompletion):  # HTML comes as text, whatever the status
        raise _Failure("The endpoint answers with something that is no chat completion", _NOT_ONE)
    usage = _usage(got.usage, requests)
    choices: Any = got.choices  # not checked by the client: anything may stand here
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    text, ended = getattr(message, "content", None), getattr(choice, "finish_reason", None)
    if getattr(message, "refusal", None):
        return Reply(None, "the judge declined", usage)
    if ended == "content_filter":
        return Reply(None, "the endpoint's filter kept the judge's reply back", usage)
    if ended == "length":
        return Reply(None, "the judge's reply was cut off: give more max_tokens", usage)
    if not isinstance(text, str) or not text.strip():
        nothing = "the endpoint's reply holds no text"
        raise _Failure(f"T{nothing[1:]}", _NOT_ONE, unread=nothing)
    return Reply(text, usage=usage)


def _usage(found: Any, requests: int) -> Usage:
    read, written = getattr(found, "prompt_tokens", None), getattr(found, "completion_tokens", None)
    if not isinstance(read, int) or not isinstance(written, int):
        return Usage(requests, counted=False)
    return Usage(requests, max(read, 0), max(written, 0))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: given in milliseconds, in seconds, or as a date."""
    with suppress(TypeError, ValueError):
        return max(float(headers["retry-after-ms"]) / 1000, 0.0) if "retry-after-ms" in headers else _seconds(headers)
    return None


def _seconds(headers: Mapping[str, str]) -> float | None:
    given = headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", given):
        return float(given)
    return max((parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds(), 0.0) if given else None


def _refuse_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise UsageError("endpoint is no URL that begins with http:// or https://", _NOT_ONE)
    if parts.username or parts.password or parts.query or parts.fragment:  # not repeated: it may hold a key
        raise UsageError(
            "endpoint holds a user, a password or a query, and it is stored with the run",
            "Give the base URL alone, and the key in an environment variable that key= names",
        )


def _run(begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do it in a loop of its own, also where one is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(begin())
        return
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(begin())

    def work() -> None:
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    finally:
        loop.close()
    if failed:
        raise failed[0]
