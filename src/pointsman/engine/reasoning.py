"""What a model thought, and what it answered: common markers of reasoning, split off before anybody judges.

The markers are those of the parsers of vLLM and SGLang, as text. A model whose template opens the thought in the prompt
writes the closing marker alone. Pointsman's engine leaves markers that are special tokens in its answers (`MARKS`);
where others took them out, only gpt-oss leaves a trace (``analysis...assistantfinal...``).

A marker in a code block, in quotes or in running text is spoken of, and splits nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKERS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # DeepSeek, Qwen, GLM, MiniMax, Nemotron, Step, Kimi K2, OLMo, Hunyuan
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<mm:think>", "</mm:think>"),  # MiniMax-M3
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi 1.5
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>thought", "<channel|>"),  # Gemma 4
)
"""What opens a thought, and what closes it."""

WRAPPERS: tuple[tuple[str, str], ...] = (
    ("<answer>", "</answer>"),  # Hunyuan
    ("<|START_TEXT|>", "<|END_TEXT|>"),  # Cohere
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
"""What some models write around their answer; stripped after a thought, or where the whole answer is wrapped."""

HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
"""Control tokens of gpt-oss; by the first its channels are known."""

MARKS = frozenset(mark for pair in (*MARKERS, *WRAPPERS) for mark in pair)

_GRANITE = re.compile(
    r"\s*(?:Here is|Here's) my thought process:(.*?)(?:(?:Here is|Here's) my response:(.*))?", re.DOTALL
)
_FINAL = re.compile(r"<\|channel\|>final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_ENDS = re.compile(r"<\|(?:return|end|call)\|>")
_GLUED = re.compile(r'\s*(?:analysis|commentary)(?=["“]|[^\W\d_a-z])')  # no blank: "analysisThe user asks"
_GLUED_FINAL = re.compile(r"\s*final(?=[A-Z][a-z])")
_TOOL = "<tool_call>"  # Qwen 3.5 and GLM may leave a thought by this, without closing it
_SPOKEN_BEFORE = " \t`'\"“‘«„(["
_SPOKEN_AFTER = " \t`'\"”’»“)],.;:!?。，、"
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)


@dataclass(frozen=True)
class Parts:
    """An answer, taken apart.

    Attributes:
        thought: What the model said to itself; empty if nothing.
        answer: What it said to the user; None if it never came to that.
    """

    thought: str
    answer: str | None


def split(text: str, *, begun: bool = True) -> Parts:
    """The thought and the answer of what a model wrote. Text without markers is all answer, unchanged.

    Args:
        begun: Whether the text may begin within a thought that something before it opened. If not, what stands before
            a closing marker that nothing opened is answer: a model could hide in front of it what it says.
    """
    harmony = _split_harmony(text)
    if harmony is not None:
        return harmony
    if granite := _GRANITE.fullmatch(text):
        return Parts(granite[1].strip(), None if granite[2] is None else granite[2].strip())
    for opening, closing in MARKERS:
        if parts := _split_at(text, opening, closing, begun):
            return parts
    return Parts("", _unwrapped(text) if text.lstrip().startswith(tuple(w for w, _ in WRAPPERS)) else text)


def _split_harmony(text: str) -> Parts | None:
    """Of gpt-oss, decoded with its special tokens or without them."""
    begun = text.lstrip().removeprefix("<|start|>assistant")
    if begun.startswith("<|channel|>") or begun != text.lstrip():  # a message without a channel is in no final one
        found = _FINAL.search(text)
        return Parts(text, None) if found is None else _from_final(text[: found.start()], text[found.end() :])
    if _GLUED.match(text):
        thought, final, answer = text.partition("assistantfinal")
        return Parts(thought.strip(), answer.strip() if final else None)
    if final_alone := _GLUED_FINAL.match(text):
        return Parts("", text[final_alone.end() :])
    return None


def _from_final(thought: str, rest: str) -> Parts:
    """What begins with the text of a final message. Further ones are answer too, and whatever is in no channel."""
    thoughts, said = [thought], []
    for message in _ENDS.split(rest):
        begun = message.strip().removeprefix("<|start|>assistant")
        header = _FINAL.match(begun)
        if begun.startswith("<|channel|>") and header is None:
            thoughts.append(message)
        else:
            said.append(begun[header.end() if header else 0 :].strip())
    return Parts("".join(thoughts), "\n".join(filter(None, said)))


def _split_at(text: str, opening: str, closing: str, begun: bool) -> Parts | None:
    """Take out every thought between two markers; None if there is none."""
    thoughts: list[str] = []
    answers: list[str] = []
    rest, first = text, True
    while True:
        start = _found(rest, opening, begins_line=True)
        end = _found(rest, closing) if start is None else None
        if start is None and end is None:
            break
        if start is None:  # it was opened in the prompt, or a stray marker follows
            assert end is not None
            before, rest = rest[:end], rest[end + len(closing) :]
            (thoughts if first and begun else answers).append(before)
        else:
            stray = _found(rest[:start], closing) if first else None
            if stray is not None:
                (thoughts if begun else answers).append(rest[:stray])
                rest, first = rest[stray + len(closing) :], False
                continue
            answers.append(rest[:start])
            inner = rest[start + len(opening) :]
            end = _found(inner, closing, in_code=True)
            if end is None and _TOOL in inner:
                end, rest = inner.index(_TOOL), inner[inner.index(_TOOL) :]
            elif end is None:
                return Parts("\n".join([*thoughts, inner]).strip(), None)
            else:
                rest = inner[end + len(closing) :]
            thoughts.append(inner[:end])
        first = False
    if first:
        return None
    return Parts("\n".join(t.strip() for t in thoughts).strip(), _unwrapped("".join([*answers, rest])))


def _found(text: str, marker: str, *, begins_line: bool = False, in_code: bool = False) -> int | None:
    """Where a marker stands that is not merely spoken of.

    Args:
        begins_line: Only the first thing in a line counts.
        in_code: A code block does not hide it: a thought may break off within one.
    """
    at = text.find(marker)
    while at >= 0:
        before, after = text[:at], text[at + len(marker) : at + len(marker) + 1]
        line = before[before.rfind("\n") + 1 :]
        spoken = bool(line) and line[-1] in _SPOKEN_BEFORE and bool(after) and after in _SPOKEN_AFTER
        spoken = spoken or (begins_line and bool(line.strip()))
        if not spoken and (in_code or len(_FENCE.findall(before)) % 2 == 0):
            return at
        at = text.find(marker, at + 1)
    return None


def _unwrapped(text: str) -> str:
    """Without what is around an answer. What stands behind it is answer too: nothing says that no user is shown it."""
    text = text.strip()
    for opening, closing in WRAPPERS:
        if text.startswith(opening):
            inside, _, behind = text.removeprefix(opening).partition(closing)
            return f"{inside.strip()}\n{behind.strip()}".strip()
    return text
