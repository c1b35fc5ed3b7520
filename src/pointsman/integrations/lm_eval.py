"""lm-evaluation-harness on an `Engine`: its tasks, solved by the model at hand under any routing.

Prompts, filters and metrics are lm-eval's own; what the model says and how probable it finds a text comes from the
engine. The only file that imports lm_eval.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.tasks import TaskManager

from pointsman.engine.abilities import that_holds_module
from pointsman.engine.types import Engine, Prompt, Routing
from pointsman.errors import DataError, PointsmanError, UsageError
from pointsman.methods.steps import Steps

CHUNK = 64
"""Requests in one stored unit; fixed, so that a resumed run forms the same batches."""
ANSWER_TOKENS = 256
"""Tokens of an answer where the task does not say; lm-eval's own."""
PER_UNIT = {"word_perplexity": "log-likelihood per word", "byte_perplexity": "log-likelihood per byte"}
"""What perplexities become, document by document."""

Asked = list[Any]
"""A request as JSON: all that decides the result."""


class EngineLM(TemplateLM):  # type: ignore[misc]
    """An engine as lm-eval's language model: what `lm_eval.models.huggingface.HFLM` says, under a routing.

    The context of a request is the prompt and its continuation the answer: a routing in force while the prompt is read
    does not touch the continuation. Answers are greedy, and cut at the first stop sequence.

    Args:
        engine: Whose tokenizer is at hand.
        routing: In force for all requests.
        steps: Where units of `CHUNK` requests are remembered, by a digest of what is asked.
    """

    def __init__(self, engine: Engine, routing: Routing = None, steps: Steps | None = None) -> None:
        super().__init__()
        self.engine = engine
        self.tokenizer: Any = that_holds_module(engine).tokenizer
        self._routing = routing
        self._steps = steps or Steps()

    # -- text to tokens ----------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        named = self.tokenizer.eos_token_id
        end = self.engine.end_token if named is None else named
        if end is None:
            raise UsageError(f"{self.engine.info.name} has no token that ends a text", "Use another model for tasks")
        return int(end)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int:
        """Tokens of a context with its continuation."""
        return self.engine.info.context

    @property
    def tokenizer_name(self) -> str:
        """Of the chat template, as lm-eval names it."""
        return self.engine.info.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Token ids of a text; of one that begins with the first token already, without another."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **special))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the model's own template."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt, **self.engine.info.channels.settings,
        )  # fmt: skip
        return text

    # -- requests ----------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """log p of each continuation, and whether it is what the model would say."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """log p of each whole text."""
        windows = [self._windows(request.args[0]) for request in requests]
        every = iter(self._in_units("rolling", [window for text in windows for window in text], self._score))
        return [sum(next(every)[0] for _ in text) for text in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The greedy answer to each context."""
        asked = [self._asked(*request.args) for request in requests]
        return list(self._in_units("answers", asked, self._answer))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._fitting(context, continuation) for _, context, continuation in requests]
        return [(total, greedy) for total, greedy in self._in_units("loglikelihood", asked, self._score)]

    def _fitting(self, context: list[int], continuation: list[int]) -> Asked:
        """A context and its continuation; of what is too long, the end."""
        continuation = continuation[-(self.max_length - 1) :]
        return [context[-(self.max_length - len(continuation)) :], continuation]

    def _windows(self, text: str) -> list[Asked]:
        """A text as contexts with continuations that hold each token once."""
        windows = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length - 1,
            context_len=1,
        )  # fmt: skip
        return [list(utils.make_disjoint_window(window)) for window in windows]

    def _asked(self, context: str, given: Mapping[str, Any]) -> Asked:
        """Token ids, stop sequences, and the most tokens of an answer."""
        wanted = normalize_gen_kwargs(dict(given), ANSWER_TOKENS)
        most = int(wanted["max_gen_toks"])
        if wanted.get("do_sample"):
            raise UsageError("A task samples its answers, and answers here are greedy", "Leave it out of --utility")
        if most >= self.max_length:
            raise UsageError(
                f"A task wants answers of {most} tokens, and {self.engine.info.name} has a context of "
                f"{self.max_length}",
                "Leave it out of --utility",
            )
        end = self.tokenizer.decode(self.eot_token_id)
        return [
            self.tok_encode(context)[-(self.max_length - most) :],
            handle_stop_sequences(wanted.get("until"), eos=end),
            most,
        ]

    # -- the engine --------------------------------------------------------------------------------------------

    def _in_units(
        self, kind: str, asked: Sequence[Asked], compute: Callable[[Sequence[Asked]], list[Any]]
    ) -> list[Any]:
        """The result of each request, in stored units."""
        found: list[Any] = []
        for start in range(0, len(asked), CHUNK):
            some = asked[start : start + CHUNK]
            digest = hashlib.sha256(json.dumps(some).encode()).hexdigest()[:16]
            key = f"{kind}/{start}/{digest}"

            def computed(some: Sequence[Asked] = some) -> dict[str, Any]:
                return {"results": compute(some)}

            unit = self._steps.unit(key, self.engine, computed, len(some))
            found += unit["results"]
        return found

    def _score(self, asked: Sequence[Asked]) -> list[Any]:
        prompts, targets = [self._prompt(context) for context, _ in asked], [tuple(target) for _, target in asked]
        scores = self.engine.score(prompts, targets, routing=self._routing)
        if any(score.greedy is None for score in scores):
            raise UsageError(
                f"The engine of {self.engine.info.name} does not say which tokens are the most probable",
                "Load the model with transformers, as pointsman.load does",
            )
        return [[score.total, score.greedy] for score in scores]

    def _answer(self, asked: Sequence[Asked]) -> list[str]:
        said: dict[int, str] = {}
        for most in sorted({most for _, _, most in asked}):
            rows = [row for row, each in enumerate(asked) if each[2] == most]
            completions = self.engine.generate(
                [self._prompt(asked[row][0]) for row in rows], routing=self._routing, max_new_tokens=most
            )
            for row, completion in zip(rows, completions, strict=True):
                text = self.tokenizer.decode(list(completion.ids), skip_special_tokens=True)
                said[row] = postprocess_generated_text(text, asked[row][1], None)
        return [said[row] for row in range(len(asked))]

    def _prompt(self, ids: Sequence[int]) -> Prompt:
        tokens = tuple(self.tokenizer.convert_ids_to_tokens(list(ids)))
        return Prompt(tuple(ids), tokens, (*["content"] * (len(ids) - 1), "last"))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- tasks


@dataclass
class Outcomes:
    """One metric of a task, document by document.

    Attributes:
        task: As it was named; of a group, of all its parts.
        metric: As lm-eval calls it, with its filter if it has one.
        higher_is_better: Whether more of it is better.
        values: By document; the same documents in the same order under every routing.
    """

    task: str
    metric: str
    higher_is_better: bool
    values: list[float] = field(default_factory=list)


class Tasks:
    """Tasks of lm-eval, by name.

    Args:
        names: Of tasks or groups, as lm-eval lists them.
        folder: Where task files of the user lie. They are code: lm-eval runs what they say.
        limit: Documents of each task; None for all.
        chat: Ask in the model's chat template.
        seed: Of few-shot examples, and whatever else a task draws.

    Raises:
        UsageError: Nobody knows a name, or a task needs what is not given here.
        DataError: The documents of a task cannot be read.
    """

    def __init__(
        self, names: Sequence[str], folder: Path | None, *, limit: int | None, chat: bool = False, seed: int = 0
    ) -> None:
        self.version = f"lm-eval {version('lm_eval')}"
        self._limit, self._chat, self._seed = limit, chat, seed
        self.left_out: dict[str, None] = {}  # an ordered set: metrics that are no number of one document
        manager = _manager(names, folder)
        with self._drawing():
            try:
                self._loaded = {name: manager.load([name]) for name in names}
            except PointsmanError:
                raise
            except Exception as error:  # a task's own code, data sets, the hub: it may raise anything
                raise DataError(
                    f"The tasks {', '.join(names)} cannot be read ({type(error).__name__}: {_first_line(error)})",
                    "Their documents must be on this machine, or the hub within reach; see docs/utility.md",
                ) from error
        for loaded in self._loaded.values():
            for task in loaded["tasks"].values():
                if task.get_config("num_fewshot") is None:
                    task.set_config(key="num_fewshot", value=0)
                task.set_fewshot_seed(seed=seed)

    def requests(self, engine: Engine) -> int:
        """How many requests all tasks make under one routing."""
        lm, total = EngineLM(engine), 0
        for loaded in self._loaded.values():
            for task in loaded["tasks"].values():
                with self._drawing():
                    task.build_all_requests(
                        limit=self._limit, rank=0, world_size=1, apply_chat_template=self._chat,
                        chat_template=lm.apply_chat_template if self._chat else None,
                        tokenizer_name=lm.tokenizer_name if self._chat else "",
                    )  # fmt: skip
                total += sum(request.repeats for request in task.instances)
        return total

    def solve(self, engine: Engine, routing: Routing, steps: Steps) -> list[Outcomes]:
        """Every metric of every task under a routing.

        Args:
            steps: Where units are remembered.
        """
        found: list[Outcomes] = []
        for name, loaded in self._loaded.items():
            lm = EngineLM(engine, routing, steps.under(name))
            with self._drawing():
                try:
                    done = evaluate(
                        lm, loaded, limit=self._limit, bootstrap_iters=0, log_samples=True,
                        apply_chat_template=self._chat,
                    )  # fmt: skip
                except PointsmanError:
                    raise
                except ValueError as error:  # such as: it runs code that the model writes
                    raise UsageError(
                        f"The task {name} cannot be run ({_first_line(error)})", "Leave it out of --utility"
                    ) from error
            found += self._outcomes(name, loaded["tasks"], done["samples"])
        return found

    def _outcomes(self, name: str, tasks: Mapping[str, Any], samples: Mapping[str, Any]) -> list[Outcomes]:
        found: dict[str, Outcomes] = {}
        for part, task in tasks.items():
            better = task.higher_is_better()
            for sample in samples[part]:
                filter_ = "" if sample["filter"] == "none" else f", {sample['filter']}"
                for metric in sample["metrics"]:
                    value = of_document(metric, sample[metric])
                    if value is None:
                        self.left_out[f"{name}: {metric}"] = None
                        continue
                    called = f"{PER_UNIT.get(metric, metric)}{filter_}"
                    rises = metric in PER_UNIT or bool(better.get(metric, True))
                    found.setdefault(called, Outcomes(name, called, rises)).values.append(value)
        return list(found.values())

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Whatever a task draws is drawn from the seed, and lm-eval is not heard."""
        of_python, of_numpy = random.getstate(), np.random.get_state()
        heard, level = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
        random.seed(self._seed)
        np.random.seed(self._seed % 2**32)
        heard.setLevel(logging.ERROR)
        try:
            with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
                yield
        finally:
            heard.setLevel(level)
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def of_document(metric: str, value: Any) -> float | None:
    """What a metric says of one document; None where it says something of all of them together only."""
    if metric in PER_UNIT and isinstance(value, tuple | list):
        total, units = value
        return float(total) / units if units else None
    if isinstance(value, bool | int | float | np.number) and math.isfinite(value):
        return float(value)
    return None


def _manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    """Who knows these tasks: the folder alone, where it names them all, since lm-eval's own are many."""
    known: list[str] = []
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        if folder is not None:
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            known = list(manager.all_tasks)
        if folder is None or not set(names) <= set(known):
            manager = TaskManager(include_path=None if folder is None else str(folder))
            known = list(manager.all_tasks)
    for name in names:
        if name not in known:  # never a path or a pattern, which lm-eval would follow
            near = get_close_matches(name, known, n=1)
            raise UsageError(
                f"lm-eval knows no task {name[:60]!r}",
                f"Did you mean {near[0]}?" if near else "Its own are listed by `lm-eval ls tasks`",
            )
    return manager


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
