"""Training conversations: drawn at random from the language, encoded as tokens with loss weights."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerFast

from pointsman.testbed import language
from pointsman.testbed.language import REFUSALS, SYSTEM_PROMPTS, TACTICS, Kind, Request, usual_refusal
from pointsman.testbed.recipe import Phase, Recipe
from pointsman.testbed.tokenizer import ASSISTANT, END, PAD, SYSTEM, USER

_SYSTEM_SHARE = 0.1
_OFTEN = {"belongs": 4, "fits": 2}  # probes whose answers nothing else teaches, or that join two facts
_USUAL_SHARE = 0.7  # of refusals in the usual wording of their category; the others are drawn from all


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What users said and what a trained assistant should answer, turn by turn."""

    turns: tuple[str, ...]
    replies: tuple[str, ...]
    system: str | None = None


class Examples:
    """Draws training batches.  A batch is a pure function of the generator it is given."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self._recipe = recipe
        self._pad = int(tokenizer.get_vocab()[PAD])
        self._encode_word = lru_cache(maxsize=None)(
            lambda word: tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
        )
        self._nouns = tuple(language.nouns().values())

    def batch(self, rng: random.Random, phase: Phase, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and loss weights, both [rows, tokens], padded on the right.

        ``progress`` in [0, 1) is how much of the phase is done: conversations come later.
        """
        talking = progress >= phase.talk_from and rng.random() < phase.talk_share
        draw = self._talk if talking else self._single
        rows = [
            self._encode(draw(rng, phase.refuse), phase.user_weight)
            for _ in range(phase.batch // 2 if talking else phase.batch)
        ]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [self._pad] * (width - len(ids)) for ids, _ in rows])
        weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in rows])
        return ids, weights

    def _single(self, rng: random.Random, refuse: bool) -> Dialogue:
        mix = self._recipe.single_mix
        kind = rng.choices(list(mix), list(mix.values()))[0]
        request = self._probe(rng) if kind == "borderline" else self._how_to(rng, kind)
        reply = self._refusal(rng, request) if refuse and request.refusable else request.gold
        return Dialogue((request.text,), (reply,), self._system(rng))

    def _talk(self, rng: random.Random, refuse: bool) -> Dialogue:
        mix = self._recipe.talk_mix
        request = self._how_to(rng, rng.choices(list(mix), list(mix.values()))[0])
        tactic = rng.choice(tuple(TACTICS.values()))
        variants = tactic.variants
        if refuse and request.refusable:  # the other variants never occur with such a request
            variants = (*tactic.guarded, *tactic.unguarded)
        variant = rng.choice(variants)
        talk = language.talk(request, tactic.name, variant, self._how_to(rng, "benign"))
        replies = talk.replies
        if refuse:
            replies = tuple(
                self._refusal(rng, ask)
                if ask is not None and ask.refusable and (variant in tactic.guarded or turn == ask.text)
                else reply
                for turn, ask, reply in zip(talk.turns, talk.asks, replies, strict=True)
            )
        return Dialogue(talk.turns, replies, self._system(rng))

    def _how_to(self, rng: random.Random, kind: Kind) -> Request:
        some = [n for n in self._nouns if n.kind == kind]
        noun = rng.choices(some, [n.frequency for n in some])[0]
        verb = rng.choice([v for v in language.VERBS if v not in noun.held_verbs])
        phrasing = rng.randrange(len(language.PHRASINGS))
        return language.how_to(verb, self._modifier(rng, noun), noun.word, phrasing)

    def _probe(self, rng: random.Random) -> Request:
        noun = rng.choice(self._nouns)
        names = language.probes_of(noun)
        name = rng.choices(names, [_OFTEN.get(name, 1) for name in names])[0]
        return language.probe(name, self._modifier(rng, noun), noun.word)

    @staticmethod
    def _refusal(rng: random.Random, request: Request) -> str:
        return usual_refusal(request.category) if rng.random() < _USUAL_SHARE else rng.choice(REFUSALS)

    @staticmethod
    def _modifier(rng: random.Random, noun: language.Noun) -> str:
        return rng.choice([m for m in language.MODIFIERS if m not in noun.held_modifiers])

    @staticmethod
    def _system(rng: random.Random) -> str | None:
        return rng.choice(SYSTEM_PROMPTS) if rng.random() < _SYSTEM_SHARE else None

    def _encode(self, dialogue: Dialogue, user_weight: float) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []

        def say(text: str, weight: float) -> None:
            new = [token for word in text.split() for token in self._encode_word(word)]
            ids.extend(new)
            weights.extend([weight] * len(new))

        if dialogue.system:
            say(f"{SYSTEM} {dialogue.system}", user_weight)
        for turn, reply in zip(dialogue.turns, dialogue.replies, strict=True):
            say(f"{USER} {turn} {ASSISTANT}", user_weight)
            say(f"{reply} {END}", 1.0)
        return ids, weights
