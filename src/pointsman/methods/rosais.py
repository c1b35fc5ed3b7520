"""RoSais, the router safety importance score. METHODS section 1; Jiang et al., arXiv 2602.08621, section 4.

For prompt q and router l, random masks are applied at every prompt token of layer l, all other layers free::

    RoSais(l; q) = max_s [ p(A | q, mask m_s on router l) - p(A | q) ]

with p(A | q) the probability that the answer begins affirmatively. A router's score is the mean over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.channels import given
from pointsman.engine.types import Engine, Score
from pointsman.errors import UsageError
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router

TOGETHER = 16  # prompts scored side by side and stored as one unit; fixed, so that a resumed run repeats the same

Target = Literal["first_token", "target"]
Scale = Literal["probability", "log_probability"]


@dataclass(frozen=True)
class RoSaisResult:
    """Scores of every prompt and router.

    Attributes:
        prompts: Behaviour ids. Shape: [Q].
        sources: Their clusters. Shape: [Q].
        base: p(A | q) or its log without any mask. Shape: [Q].
        scores: RoSais(l; q), in units of `scale`. Shape: [Q, L].
        routers: Module paths, in depth order. Shape: [L].
    """

    prompts: tuple[str, ...]
    sources: tuple[str, ...]
    base: np.ndarray
    scores: np.ndarray
    routers: tuple[str, ...]

    @property
    def mean(self) -> np.ndarray:
        """Data-set score of every router. Shape: [L]."""
        return np.asarray(self.scores.mean(axis=0))

    @property
    def ranking(self) -> tuple[int, ...]:
        """MoE layers from the most to the least important; equal scores in depth order."""
        return tuple(int(layer) for layer in np.argsort(-self.mean, kind="stable"))


@dataclass(frozen=True)
class RoSais:
    """Rank the routers of a model by their importance for its safety.

    Attributes:
        samples: Random masks for each prompt and router (S).
        score: ``first_token`` (the paper) or ``target`` (joint probability of the whole target).
        scale: Differences of probabilities (the paper) or of log-probabilities.
        affirmative: Token ids that count as affirmative; None takes the first token of each target.
        seed: Seed of the masks. They are drawn independently for every prompt and router.
    """

    samples: int = 20
    score: Target = "first_token"
    scale: Scale = "probability"
    affirmative: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"{self.samples} masks cannot rank a router", "Use at least 1, the paper uses 20")

    def rank(self, engine: Engine, behaviours: Sequence[Behaviour], *, steps: Steps | None = None) -> RoSaisResult:
        """Score every router on every behaviour. Use prompts of the discovery split, never those of the report."""
        key = f"rosais/{self.score}/{self.seed}"
        return score_routers(key, engine, behaviours, lambda some: self._chunk(engine, some), steps)

    def masks(self, behaviour: Behaviour, router: Router) -> np.ndarray:
        """The random masks of one prompt and router. Shape: [S, top_k]."""
        return router.draw(stream(self.seed, "rosais", behaviour.id, router.layer), self.samples)

    def _chunk(self, engine: Engine, behaviours: Sequence[Behaviour]) -> dict[str, Any]:
        """All masks of a few behaviours side by side; the engine computes no layer before the masked one again."""
        prompts = [engine.encode(b.turns) for b in behaviours]
        targets = [engine.encode_target(b.target) for b in behaviours]
        if self.score == "first_token":
            targets = [to_first_token(engine, target) for target in targets]
        of_row: list[int] = []
        routing: list[Intervention | None] = []
        for n, behaviour in enumerate(behaviours):
            masks = [
                Intervention.force(experts.tolist(), layers=router.layer, phase="prefill")
                for router in engine.routers
                for experts in self.masks(behaviour, router)
            ]
            routing += [None, *masks]
            of_row += [n] * (1 + len(masks))
        scored = engine.score(
            [prompts[n] for n in of_row],
            [targets[n] for n in of_row],
            routing=routing,
            first_tokens=self.affirmative,
        )
        values = np.array([affirmative_score(s, self.score, self.scale) for s in scored])
        values = values.reshape(len(behaviours), -1)  # shape: [behaviours, 1 + L * S]
        rises = (values[:, 1:] - values[:, :1]).reshape(len(behaviours), len(engine.routers), self.samples)
        return {"base": values[:, 0].tolist(), "scores": rises.max(axis=2).tolist()}


def score_routers(
    key: str,
    engine: Engine,
    behaviours: Sequence[Behaviour],
    compute: Callable[[Sequence[Behaviour]], dict[str, Any]],
    steps: Steps | None,
) -> RoSaisResult:
    """The scores of every prompt and router, by RoSais or another method, in stored units of a few prompts.

    Args:
        key: Under which the units are stored.
        compute: Of a few behaviours, their `base`, a number each, and their `scores`, one of every router each.

    Raises:
        UsageError: There are no behaviours.
    """
    if not behaviours:
        raise UsageError("There are no prompts to rank routers on", "Give at least one behaviour")
    units = (steps or Steps()).units(key, engine, behaviours, compute, TOGETHER)
    return RoSaisResult(
        prompts=tuple(b.id for b in behaviours),
        sources=tuple(b.row_cluster for b in behaviours),
        base=np.array([base for u in units for base in u["base"]]),
        scores=np.array([scores for u in units for scores in u["scores"]]),
        routers=tuple(r.path for r in engine.routers),
    )


def to_first_token(engine: Engine, target: tuple[int, ...]) -> tuple[int, ...]:
    """A target up to the first token of the answer, behind what every answer of the model opens with."""
    return target[: given(target, engine.info.opening) + 1]


def affirmative_score(score: Score, target: Target, scale: Scale = "probability") -> float:
    """How affirmative an answer begins: p(A) or p(target), or its logarithm in nats."""
    value = score.first if target == "first_token" else score.total
    return value if scale == "log_probability" else math.exp(value)
