"""With which weights the experts of a forced set enter: the rules of routers, and which of them one follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from pointsman.routing.routers import Router

Rule = Literal["fixed", "softmax", "sigmoid", "listed"]


@dataclass(frozen=True)
class Weighing:
    """With which weights the experts of a forced set enter, at some tokens of one layer.

    Attributes:
        rule: ``fixed``: w_e(c) = strength_e. ``softmax`` and ``sigmoid``: w_e(c) = scale_e strength_e / sum of the
            strengths of c, with exp or sigmoid of the logits as strengths. ``listed``: all sets were tried.
        strength: Shape: [T, E]; empty if listed.
        scale: Shape: [E]; ones if fixed, empty if listed.
        sets: All sets, if listed. Shape: [N, k].
        listed: Their weights. Shape: [T, N, k].
    """

    rule: Rule
    strength: np.ndarray
    scale: np.ndarray
    sets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    listed: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))

    @property
    def renormalised(self) -> bool:
        """Whether the weight of an expert depends on the others of its set."""
        return self.rule != "fixed"

    def of(self, experts: Sequence[int] | np.ndarray) -> np.ndarray:
        """The weights of this set at every token. Shape: [T, k]."""
        index = np.asarray(experts, dtype=np.int64)
        if self.rule == "listed":
            (number,) = np.flatnonzero((self.sets == np.sort(index)).all(1))
            return np.asarray(self.listed[:, number][:, np.argsort(np.argsort(index))])
        strength = self.strength[:, index]
        if self.rule == "fixed":
            return strength
        return np.asarray(self.scale[index] * strength / strength.sum(-1, keepdims=True))

    def at(self, rows: int, row: int, tokens: slice) -> Weighing:
        """At tokens of one of so many rows, which stand one after another."""

        def part(table: np.ndarray) -> np.ndarray:
            return np.asarray(table.reshape(rows, -1, *table.shape[1:])[row][tokens])

        if self.rule == "listed":
            return Weighing("listed", self.strength, self.scale, self.sets, part(self.listed))
        return Weighing(self.rule, part(self.strength), self.scale)


def by_rule(rule: Rule, scale: np.ndarray, entered: np.ndarray, logits: np.ndarray) -> Weighing:
    """The weights at some tokens by a rule that is not ``listed``.

    Args:
        scale: Of each expert. Shape: [E].
        entered: The weight of each expert within a set that held it. Shape: [T, E].
        logits: Shape: [T, E].
    """
    return Weighing(rule, entered if rule == "fixed" else _STRENGTHS[rule](logits), scale)


def error_of(weighing: Weighing, tried: Sequence[tuple[Sequence[int], np.ndarray]]) -> float:
    """By how much it errs at most about the weights of sets, relative to the largest of the set; infinite for NaN.

    Args:
        tried: Sets, with the weights that the router gave them. Shapes: [T, k].
    """
    with np.errstate(invalid="ignore"):  # strengths that are all zero beside the largest of their token
        errors = [
            (np.abs(weighing.of(each) - seen).max(-1) / np.maximum(np.abs(seen).max(-1), 1e-30)).max()
            for each, seen in tried
        ]
    return float(np.nan_to_num(np.max(errors), nan=np.inf))


def closest_rule(
    entered: np.ndarray,
    logits: np.ndarray,
    covers: Sequence[Sequence[int]],
    tried: Sequence[tuple[Sequence[int], np.ndarray]],
) -> tuple[float, Rule, np.ndarray]:
    """The rule that foretells the weights of other sets best.

    Args:
        entered: The weight of each expert within its set of the covers. Shape: [T, E].
        logits: Shape: [T, E].
        covers: Sets that hold all experts between them.
        tried: Other sets, with the weights that the router gave them. Shapes: [T, k].

    Returns:
        By how much it errs at most, relative to the largest of the set; the rule; and the scale of each expert.
    """
    experts = entered.shape[-1]
    ones = np.ones(experts)

    def off(rule: Rule, strength: np.ndarray, scale: np.ndarray) -> float:
        return error_of(Weighing(rule, strength, scale), tried)

    found: list[tuple[float, Rule, np.ndarray]] = [(off("fixed", entered, ones), "fixed", ones)]
    for rule in _SHARED_RULES:
        strength, scale = _STRENGTHS[rule](logits), np.zeros(experts)
        for each in covers:
            share = strength[:, each] / strength[:, each].sum(-1, keepdims=True)
            scale[each] = np.median(entered[:, each] / np.maximum(share, 1e-30), 0)
        scale = np.array([float(f"{value:.4g}") for value in scale])  # the same whatever prompts it is found on
        found.append((off(rule, strength, scale), rule, scale))
    return min(found, key=lambda each: each[0])


def every_set(router: Router) -> np.ndarray:
    """All sets that the architecture can select, in order. Shape: [N, k], int64."""
    sets = [each for each in combinations(range(router.experts), router.top_k) if router.selectable(each)]
    return np.array(sets, dtype=np.int64).reshape(-1, router.top_k)


def _exp(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(logits - logits.max(-1, keepdims=True)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


_SHARED_RULES: tuple[Rule, ...] = ("softmax", "sigmoid")
_STRENGTHS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"softmax": _exp, "sigmoid": _sigmoid}
