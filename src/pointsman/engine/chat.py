"""From messages to token ids by the tokenizer's own chat template, with the role of every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property
from typing import Any

from pointsman.engine.channels import LONGEST_OPENING, Channels, channels_of
from pointsman.engine.reasoning import HARMONY, MARKS, Parts, split
from pointsman.engine.types import Prompt, TokenRole
from pointsman.errors import ModelError, UsageError

_SENTINEL = "\ue000{}\ue001"  # private-use characters: no template and no vocabulary gives them a meaning


class Chat:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"The tokenizer of {name} has no chat template",
                "Use an instruction-tuned model, or give its template with --chat-template FILE",
            )
        self._tokenizer = tokenizer
        self._targets: dict[str, tuple[int, ...]] = {}

    def refuse_malformed(self) -> None:
        """Raise if the template is not well formed: no conversation at all could be rendered.

        Raises:
            ModelError: It is not.
        """
        from jinja2 import TemplateSyntaxError

        try:
            self._render([{"role": "user", "content": "a"}])
        except ModelError as error:
            if isinstance(error.__cause__, TemplateSyntaxError):
                raise

    def encode(
        self, turns: str | Sequence[str], answers: str | Sequence[str] = (), system: str | None = None
    ) -> Prompt:
        """Token ids and roles of a conversation that waits for the model's next answer.

        Args:
            turns: User turns, at least one; a single text is one turn.
            answers: The model's answers between them: one fewer than turns.
            system: System prompt, if any.
        """
        turns, answers = _texts(turns, "turns"), _texts(answers, "answers")
        if not turns or not turns[-1]:
            raise UsageError("There is no user turn, or the last one is empty", 'Write encode(["your question"])')
        if len(answers) != len(turns) - 1:
            raise ValueError(f"{len(turns)} user turns need {len(turns) - 1} answers, not {len(answers)}")
        messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        for n, turn in enumerate(turns):
            messages.append({"role": "user", "content": turn})
            if n < len(answers):  # without what the model thought, as templates ask
                messages.append({"role": "assistant", "content": split(answers[n]).answer or ""})
        text = self._render(messages)
        _refuse_changed(messages, text)
        ids, spans = self._tokenize(text)
        roles = _roles(self._pieces(messages, text), spans)
        tokens = tuple(text[a:b] or self._tokenizer.decode([i]) for i, (a, b) in zip(ids, spans, strict=True))
        return Prompt(tuple(ids), tokens, roles)

    def encode_target(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` as the beginning of an answer, tokenized together with what comes before it.

        They begin with `opening`, unless `text` has a thought or a header of its own.
        """
        if not isinstance(text, str):
            raise UsageError(f"A target is {type(text).__name__}, not text", 'Write encode_target("Sure, here is")')
        if text not in self._targets:
            opening = self.channels.opening
            own = text.lstrip().startswith(opening.strip()) or split(text) != Parts("", text)
            if opening.strip() and own:
                ids = self._after("", text.removeprefix(self.channels.opened))
            elif opening.strip():
                ids = (*self.opening, *self._after(opening, text))
            else:
                ids = self._after("", text if text[:1].isspace() else opening + text)
            if not ids:
                raise ModelError(f"The target {text!r} has no tokens", "Give a target of at least one word")
            self._targets[text] = ids
        return self._targets[text]

    @cached_property
    def channels(self) -> Channels:
        """What the template does with thoughts, and what it writes before an answer, as far as tokens differ by it."""
        found = channels_of(self._tokenizer.chat_template, self._apply)
        if found.opening and not found.opening.strip():
            before = self._apply([{"role": "user", "content": "a"}], found.settings)
            if self._tokenize(before + "a")[0] == self._tokenize(before + found.opening + "a")[0]:
                return replace(found, opening="")
        return found

    @property
    def dated(self) -> bool:
        """Whether the template writes today's date into a prompt, so that tomorrow's is another."""
        if "strftime_now" not in self._tokenizer.chat_template:
            return False
        try:
            return str(date.today().year) in self._apply([{"role": "user", "content": "a"}], self.channels.settings)
        except Exception:  # a template is code of the checkpoint: it may raise anything
            return False

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """Tokens that every target begins with: the header of the channel that is the answer, if there is one.

        Raises:
            ModelError: There are more than any such header has.
        """
        found = self._after("", self.channels.opening) if self.channels.opening.strip() else ()
        if len(found) > LONGEST_OPENING:
            raise ModelError(
                f"The chat template writes {len(found)} tokens between a prompt and its answer, and none of them would "
                f"be scored; {LONGEST_OPENING} are the most that a header has",
                "Give a chat template whose answers begin where the prompt ends",
            )
        return found

    def answer(self, prompt: Prompt, ids: Sequence[int]) -> str:
        """The text of an answer; with what it goes on with, where it would be taken for all answer without."""
        text, begun = self.decode(ids), self._begun
        goes_on = bool(begun) and prompt.ids[-len(begun) :] == begun
        return f"{self.channels.opened}{text}" if text and goes_on and not text.startswith(HARMONY[0]) else text

    @cached_property
    def _begun(self) -> tuple[int, ...]:
        """Tokens at the end of a prompt that an answer goes on with."""
        return tuple(self._tokenize(self.channels.opened)[0]) if self.channels.opened else ()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of answer tokens, without special ones but for those that mark off thoughts and channels."""
        marked = not self._marks.isdisjoint(ids)
        if marked:
            left_out = set(self._special.values()) - self._marks
            ids = [i for i in ids if i not in left_out]
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=not marked)
        return text.strip()

    @cached_property
    def _marks(self) -> frozenset[int]:
        """Special tokens that mark off thoughts and channels."""
        marks = {*MARKS, *(HARMONY if HARMONY[0] in self._special else ())}
        return frozenset(number for token, number in self._special.items() if token in marks)

    @cached_property
    def _special(self) -> Mapping[str, int]:
        """All that decoding leaves out, by token: what has a role, and what is only added as special, as in gpt-oss."""
        tokenizer = self._tokenizer
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))

    def _after(self, opening: str, text: str) -> tuple[int, ...]:
        """Token ids of `text` behind a prompt and the opening of an answer."""
        before = self._render([{"role": "user", "content": "a"}]) + opening
        alone, _ = self._tokenize(before)
        joined, _ = self._tokenize(before + text)
        if joined[: len(alone)] == alone and len(joined) > len(alone):
            return tuple(joined[len(alone) :])
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _apply(self, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any], waits: bool = True) -> str:
        """The template's text; `waits` for an answer, or not."""
        rendered: str = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=waits, **settings
        )
        return rendered

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            rendered = self._apply(messages, self.channels.settings)
        except Exception as error:  # a template is code of the checkpoint: it may raise anything
            raise ModelError(
                f"The chat template refused the conversation ({error})",
                "Leave the system prompt out, or give another template with --chat-template FILE",
            ) from error
        return rendered

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character spans. The template has written the special tokens already."""
        try:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise ModelError(
                f"The tokenizer {type(self._tokenizer).__name__} does not say where its tokens stand in the text",
                "Give a checkpoint with a tokenizer.json, which fast tokenizers have",
            ) from error
        return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]

    def _pieces(self, messages: list[dict[str, str]], text: str) -> list[tuple[int, int, TokenRole]]:
        """Character spans of the message contents in `text`, found by rendering sentinels in their place.

        Not a search for the contents: a user message that repeats the template's words is still located.
        """
        marks = [_SENTINEL.format(n) for n in range(len(messages))]
        marked = self._render([{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)])
        for message, mark in reversed(list(zip(messages, marks, strict=True))):
            if mark not in marked:
                raise _left_out(message, last=mark == marks[-1])
        spans: list[tuple[int, int, TokenRole]] = []
        read, written = 0, 0  # how far in `marked`, and in `text`
        for n, (message, mark) in enumerate(zip(messages, marks, strict=True)):
            at = marked.find(mark, read)
            if at < 0:  # written before an earlier message
                return self._last_piece(messages, text)
            scaffold = marked[read:at]
            content = message["content"]
            begin = written + len(scaffold)
            if not text.startswith(content, begin):
                content = content.strip()  # many templates strip
            if text[written:begin] != scaffold or not text.startswith(content, begin):
                return self._last_piece(messages, text)
            last = n == len(messages) - 1
            role: TokenRole = "content" if last else "system" if message["role"] == "system" else "history"
            spans.append((begin, begin + len(content), role))
            read, written = at + len(mark), begin + len(content)
        if marked[read:] != text[written:]:
            return self._last_piece(messages, text)
        return spans

    def _last_piece(self, messages: list[dict[str, str]], text: str) -> list[tuple[int, int, TokenRole]]:
        """Only the last user message, where a template rearranges the others."""
        mark = _SENTINEL.format("last")
        marked = self._render([*messages[:-1], {**messages[-1], "content": mark}])
        before, found, after = marked.partition(mark)
        if not found or not text.startswith(before) or not text.endswith(after):
            raise ModelError(
                "The last user message cannot be located in the rendered chat template",
                "Give a template that writes user messages unchanged, with --chat-template FILE",
            )
        return [(len(before), len(text) - len(after), "content")]


def _refuse_changed(messages: Sequence[dict[str, str]], text: str) -> None:
    """Whatever the user and the system prompt say must stand in the prompt, up to white space around it.

    The model's own answers may be changed: templates leave out what it thought.
    """
    for n, message in reversed(list(enumerate(messages))):
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise _left_out(message, last=n == len(messages) - 1)


def _left_out(message: dict[str, str], *, last: bool) -> ModelError:
    """A template that drops what it is given would have the model asked for something else, in silence."""
    if message["role"] == "system":
        return ModelError(
            "The chat template leaves out the system prompt or changes it", "Ask without one, or give another template"
        )
    what = "what the user says" if last else "an earlier turn"
    return ModelError(
        f"The chat template leaves out {what} or changes it",
        "Give a template that writes every message as it is with --chat-template FILE",
    )


def _texts(given: str | Sequence[str], name: str) -> list[str]:
    """Texts of a conversation; one that stands alone is the only one."""
    remedy = 'Write encode(["first question", "second question"], answers=["first answer"])'
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence):
        raise UsageError(f"{name} is {type(given).__name__}, not texts", remedy)
    for text in given:
        if not isinstance(text, str):
            raise UsageError(f"{name} holds {type(text).__name__}, not text", remedy)
    return list(given)


def _roles(pieces: list[tuple[int, int, TokenRole]], spans: list[tuple[int, int]]) -> tuple[TokenRole, ...]:
    """The role of each token: that of the message its characters lie in; the very last token is ``last``."""
    roles: list[TokenRole] = []
    for begin, end in spans:
        inside: TokenRole = "template"
        for a, b, role in pieces:
            if begin < b and end > a:
                inside = role
        roles.append(inside)
    if roles:
        roles[-1] = "last"
    return tuple(roles)
