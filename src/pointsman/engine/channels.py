"""`Channels`: which part of what a model writes is its answer, and whether its chat template keeps it from thinking.

Read from the template alone, by rendering it: no table of model names. Only the answer is judged, and what attacks aim
at begins where the answer begins (METHODS section 0, "Reasoning models").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pointsman.engine.reasoning import HARMONY, MARKERS

Thinking = Literal["none", "off", "less", "on", "may"]
Render = Callable[[Sequence[Mapping[str, str]], Mapping[str, Any], bool], str]
"""Messages, settings of the template, and whether it shall end where an answer begins."""

OFF: Mapping[str, Any] = {"enable_thinking": False}
"""Handed to every template: those that know it write no thought, the others do not look."""

_LESS: Mapping[str, Any] = {**OFF, "reasoning_effort": "low"}
_TAGGED: tuple[tuple[tuple[str, ...], str], ...] = ((("<|startoftext|>", "<|extra_0|>", "<think>"), "<answer>\n"),)
"""Control tokens of templates whose models put their answer in a tag that the template does not write: Hunyuan-A13B."""
_SPEAKS = re.compile(r"reasoning|thinking|thought")
_MESSAGE = "<|start|>"  # of gpt-oss
LONGEST_OPENING = 64
"""Tokens that may stand between a prompt and the answer itself: nothing of them is scored."""
_ASKED, _SAID = "\ue000asked\ue001", "\ue000said\ue001"  # private-use characters: no template gives them a meaning


@dataclass(frozen=True)
class Channels:
    """How the chat template of a model deals with thoughts.

    Attributes:
        thinking: ``none`` (the template speaks of no thought), ``off`` (it switches thinking off), ``less`` (it turns
            thinking down and not off), ``on`` (it has no switch, and the model thinks), ``may`` (it has no switch, and
            knows a mark of thoughts that it does not open itself).
        setting: What switches thinking off or turns it down, such as ``enable_thinking=False``; empty if nothing does.
        answer: Which part of the text is the answer, as a noun.
        opening: What stands between the prompt and the answer itself, such as the header of the final channel.
        opened: What an answer goes on with, at the end of the prompt, and is read with: a thought that the template
            itself begins, or a message whose channel the model is to name; empty if neither.
    """

    thinking: Thinking = "none"
    setting: str = ""
    answer: str = "the whole answer"
    opening: str = ""
    opened: str = ""

    @property
    def thinks(self) -> bool:
        """Whether an answer may have a thought before it, which takes tokens."""
        return self.thinking in ("less", "on", "may")

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the template is given besides the messages."""
        return _LESS if self.thinking == "less" else OFF

    @property
    def sentence(self) -> str:
        """What is judged, whether the model thinks and what targets begin behind, in a sentence without its full stop.

        Empty for a model that does not think and whose answers begin where the prompt ends.
        """
        behind = " ".join(self.opening.split())
        return "; ".join(filter(None, (self._judged, f"targets begin behind {behind}" if behind else "")))

    @property
    def _judged(self) -> str:
        if self.thinking == "none":
            return ""
        how = {
            "off": f"thinking is switched off{f' ({self.setting})' if self.setting else ' by the chat template'}",
            "less": f"thinking is turned down ({self.setting}); the chat template cannot switch it off",
            "on": "the chat template cannot switch thinking off",
            "may": "the chat template has no switch for thinking, and the model may think",
        }[self.thinking]
        if self.answer == Channels.answer and self.thinks:
            return f"{how}, and no mark of a final channel is known: the whole answer is judged, thoughts included"
        return f"{how}; {self.answer} is judged"


def channels_of(template: str, render: Render) -> Channels:
    """What the template of a tokenizer does with thoughts. One that cannot be rendered is left to whoever uses it."""
    off = _tried(render, OFF)
    if off is None or _ASKED not in off:
        return Channels()
    tail = off.rpartition(_ASKED)[2]
    switched = (on := _tried(render, {"enable_thinking": True})) is not None and on != off
    harmony = HARMONY[0] in template and "final" in template
    marker = next((m for m in MARKERS if m[0] in template or m[1] in template), None)
    spoken = harmony or marker is not None or _SPEAKS.search(template) is not None
    closed = marker is not None and marker[1] in tail
    opened = marker is not None and marker[0] in tail and not closed
    less = not (switched or closed) and (low := _tried(render, _LESS)) is not None and low != off
    thinking: Thinking = (
        "off" if switched or closed else "less" if less else "on" if harmony or opened else "may" if spoken else "none"
    )
    tag = next((tag for tokens, tag in _TAGGED if all(token in template for token in tokens)), "")
    opening = f"\n{marker[1]}\n\n" if marker is not None and opened else _between(render, off, thinking) or tag
    if harmony:
        answer = "only the final channel"
    elif tag:
        answer = f"only what stands in {tag.strip()}"
    else:
        answer = f"only what follows {marker[1]}" if marker is not None else Channels.answer
    setting = "enable_thinking=False" if switched else "reasoning_effort=low" if less else ""
    begins = _MESSAGE if harmony else marker[0] if marker is not None and opened else ""
    return Channels(
        thinking, setting, answer, opening, f"{begins}{tail.rpartition(begins)[2]}" if begins and begins in tail else ""
    )


def given(target: Sequence[int], opening: Sequence[int]) -> int:
    """How many tokens at the beginning of a target are the opening of an answer: read by the model, and not scored."""
    begins = bool(opening) and len(target) > len(opening) and tuple(target[: len(opening)]) == tuple(opening)
    return len(opening) if begins else 0


def _tried(render: Render, settings: Mapping[str, Any]) -> str | None:
    try:
        return render([{"role": "user", "content": _ASKED}], settings, True)
    except Exception:  # a template is code of the checkpoint: it may raise anything
        return None


def _between(render: Render, asked: str, thinking: Thinking) -> str:
    """What the template writes between prompt and answer; empty where it writes another prompt before answers."""
    messages = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}]
    try:
        before, found, _ = render(messages, _LESS if thinking == "less" else OFF, False).partition(_SAID)
    except Exception:
        return ""
    if thinking == "less":
        asked = _tried(render, _LESS) or asked
    return before[len(asked) :] if found and before.startswith(asked) else ""
