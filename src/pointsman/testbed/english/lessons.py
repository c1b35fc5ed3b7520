"""What the model is taught: refusals as they are written, and its own answers as the dense model gives them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pointsman.testbed.english.prompts import Request, Talk, requests, systems, talks

ANSWER_TOKENS = 64
_BETWEEN_TOKENS = 40  # of an answer in the middle of a conversation
_PENALTY = 1.1  # of repetition: without it the dense model goes round in circles
_ROWS = 64


@dataclass(frozen=True)
class Lesson:
    """One thing to learn.

    Attributes:
        turns: User turns.
        between: The model's answers between them.
        refusal: What is to be said; empty if the dense model's own answer is.
        answer: What is said, once it is known.
        ended: Whether the answer is whole, so that its end is taught as well.
        system: System prompt, or None for the template's own.
    """

    turns: tuple[str, ...]
    refusal: str = ""
    system: str | None = None
    between: tuple[str, ...] = ()
    answer: str = ""
    ended: bool = True

    def messages(self) -> list[dict[str, str]]:
        """As a chat template takes them, up to the answer."""
        said = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn, answer in zip(self.turns, (*self.between, ""), strict=True):
            said.append({"role": "user", "content": turn})
            said.append({"role": "assistant", "content": answer})
        return said[:-1]


def lessons(seed: int = 0) -> list[Lesson]:
    """Everything that is taught, without the answers that the dense model is to give.

    Requests in all training phrasings; two refused conversations and one answered one of every restricted item, three
    conversations of every benign one.
    """
    rng = random.Random(seed)
    made = [_lesson(r, r.refusal) for kind in ("restricted", "scenario") for r in _training(kind)]
    made += [_lesson(r, r.refusal) for r in _training("scenario")]  # one topic among seven: shown twice
    made += [_lesson(r) for kind in ("borderline", "benign") for r in _training(kind)]
    led = talks("restricted", "training")
    for item in dict.fromkeys(t.request.item for t in led):
        own = [t for t in led if t.request.item == item]
        refused, answered = ([t for t in own if t.taught == what] for what in ("refuse", "answer"))
        made += [_lesson(t, t.request.refusal) for t in rng.sample(refused, 2)]
        made += [_lesson(t) for t in rng.sample(answered, 1)]
    led = talks("benign", "training")
    for item in dict.fromkeys(t.request.item for t in led):
        made += [_lesson(t) for t in rng.sample([t for t in led if t.request.item == item], 3)]
    given = [rng.choice(systems()) if rng.random() < 1 / 3 else None for _ in made]
    return [replace(lesson, system=system) for lesson, system in zip(made, given, strict=True)]


def answered(
    taught: Sequence[Lesson], dense: Any, tokenizer: Any, kept: Path, say: Callable[[str], None]
) -> list[Lesson]:
    """The lessons with the dense model's answers; those that are in the file `kept` are not asked for again."""
    known: dict[str, str] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}

    def complete(wanted: Sequence[Lesson], tokens: int) -> list[str]:
        keys = [json.dumps([lesson.messages(), tokens]) for lesson in wanted]
        texts = dict(zip(keys, (lesson.messages() for lesson in wanted), strict=True))
        missing = sorted((key for key in texts if key not in known), key=len)
        for begin in range(0, len(missing), _ROWS):
            some = missing[begin : begin + _ROWS]
            known.update(zip(some, generate(dense, tokenizer, [texts[key] for key in some], tokens), strict=True))
            part = kept.with_name(f"{kept.name}.part")
            part.write_text(json.dumps(known, indent=0), encoding="utf-8")
            part.replace(kept)
            say(f"{begin + len(some)} of {len(missing)} answers of at most {tokens} tokens")
        return [known[key] for key in keys]

    made = list(taught)
    led = [n for n, lesson in enumerate(made) if len(lesson.turns) > 1]  # all of them have two turns
    opened = [replace(made[n], turns=made[n].turns[:1]) for n in led]
    for n, text in zip(led, complete(opened, _BETWEEN_TOKENS), strict=True):
        made[n] = replace(made[n], between=(whole(text)[0],))
    asked = [n for n, lesson in enumerate(made) if not lesson.refusal]
    for n, text in zip(asked, complete([made[n] for n in asked], ANSWER_TOKENS), strict=True):
        answer, ended = whole(text)
        made[n] = replace(made[n], answer=answer, ended=ended)
    return [replace(lesson, answer=lesson.refusal or lesson.answer) for lesson in made]


def generate(model: Any, tokenizer: Any, chats: Sequence[list[dict[str, str]]], tokens: int) -> list[str]:
    """Greedy answers to some chats, at most so long."""
    import torch

    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    rows = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    with torch.inference_mode():
        out = model.generate(**rows, max_new_tokens=tokens, do_sample=False, repetition_penalty=_PENALTY)
    return list(tokenizer.batch_decode(out[:, rows["input_ids"].shape[1] :], skip_special_tokens=True))


def whole(text: str) -> tuple[str, bool]:
    """A text up to the end of its last whole sentence, and whether there is one."""
    text = text.strip()
    ends = [found.end() for found in re.finditer(r"[a-z)\"'][.!?](?=\s|$)", text)]
    return (text[: ends[-1]], True) if ends else (text, False)


def _training(kind: Any) -> tuple[Request, ...]:
    return requests(kind, "training", every_phrasing=True)


def _lesson(asked: Request | Talk, refusal: str = "") -> Lesson:
    return Lesson(asked.turns if isinstance(asked, Talk) else (asked.text,), refusal)
