"""Conditional steering: a low-rank function of what each router reads, learnt through the model. METHODS section 10.

    r'[l, t] = r[l, t] + B_l A_l x[l, t],    A in R^{q x d}, B in R^{E x q}

A constant vector on router logits does the same to every word. This tells words apart, and is still no retraining:
q (d + E) numbers a layer, which fold into the weight of a linear router. B is zero at the start and A is random with
unit rows, as in LoRA (arXiv 2106.09685). B is learnt in units of the router's own weight, so that one learning rate
fits models of any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pointsman.engine.learning import Lesson
from pointsman.errors import UsageError
from pointsman.methods.optimise import Course, Learnt
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Phase
from pointsman.routing.low_rank import LowRank
from pointsman.routing.plan import Trainable
from pointsman.routing.rank import RANKS
from pointsman.routing.routers import Router

if TYPE_CHECKING:
    from pointsman.engine.abilities import Learns


@dataclass(frozen=True)
class LearntMaps:
    """A conditional steering after some steps.

    Attributes:
        step: Steps taken.
        maps: By MoE layer, in logit units.
        wanted, held: See `Learnt`.
    """

    step: int
    maps: Mapping[int, LowRank]
    wanted: tuple[float, ...]
    held: tuple[float, ...]


@dataclass(frozen=True)
class Conditional:
    """Parameters of the optimisation.

    Attributes:
        rank: q, from 1 to 8.
        phase: Tokens that are steered.
        steps: Steps of Adam.
        batch: Contexts of each step, and as many of each held group.
        lr: Learning rate; it falls along a cosine to a twentieth.
        hold: Weight of the divergence on what is held.
        decay: Weight of |B A|^2 / |W|^2 (Frobenius), summed over layers, in nats.
        threshold: Learn B relu(A x - b) instead, which cannot be folded.
        layers: MoE layers that are steered; None for all.
        seed: Of A and of the batches.
    """

    rank: int = 4
    phase: Phase = "both"
    steps: int = 150
    batch: int = 16
    lr: float = 0.02
    hold: float = 10.0
    decay: float = 10.0
    threshold: bool = False
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= RANKS:
            raise UsageError(f"A rank of {self.rank}", f"Give one from 1 to {RANKS}")
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise UsageError(f"decay is {self.decay}", "Give a finite weight of 0 or more, such as 10")
        _ = self._course

    def learn(
        self,
        engine: Learns,
        wanted: Sequence[Lesson],
        held: Mapping[str, Sequence[Lesson]],
        *,
        key: str = "conditional",
        steps: Steps | None = None,
    ) -> Iterator[LearntMaps]:
        """Optimise A and B, in stored units; what is learnt so far is given after each, so that one can stop early.

        Args:
            engine: The model.
            wanted: Contexts of the discovery split with the answers they should get.
            held: Groups of contexts with the unsteered model's answers, which should not move; may be empty.
            key, steps: How units are remembered.

        Raises:
            DataError: There is nothing to learn from.
            UsageError: The rank is above the width of a router, or its logits are no product with one matrix.
        """
        layers = range(len(engine.routers)) if self.layers is None else self.layers
        routers = [engine.routers[layer] for layer in layers]
        self.refuse(routers)
        norms = engine.router_norms()
        form = _LowRankForm(self, routers, [norms[layer] for layer in layers], len(norms))
        for learnt in self._course.run(form, engine, wanted, held, key=key, steps=steps):
            yield LearntMaps(learnt.step, form.maps(learnt), learnt.wanted, learnt.held)

    @property
    def _course(self) -> Course:
        return Course("conditional", self.steps, self.batch, self.lr, self.hold, self.seed)

    def refuse(self, routers: Sequence[Router]) -> None:
        """Refuse routers that cannot be steered so.

        Raises:
            UsageError: The rank is above the width of one, or its logits are no product with one matrix.
        """
        for router in routers:
            if router.width is None:
                raise UsageError(
                    f"Router {router.path} has not one matrix with a row for each expert, as a conditional rule needs",
                    "Steer this model with constant masks (--method mascing)",
                )
            if self.rank > min(router.width, router.experts):
                raise UsageError(
                    f"A rank of {self.rank} for router {router.path}, which reads {router.width} numbers and has "
                    f"{router.experts} experts",
                    f"Give a rank of at most {min(router.width, router.experts)}",
                )


@dataclass(frozen=True)
class _LowRankForm:
    """A and B (and b) of every steered router, as a form of what is learnt.

    Attributes:
        method: The parameters.
        routers: Those that are steered. Shape: [n].
        norms: Mean norm of a row of their weights. Shape: [n].
        depth: Routers of the model.
    """

    method: Conditional
    routers: Sequence[Router]
    norms: Sequence[float]
    depth: int

    def begin(self) -> list[Tensor]:
        numbers: list[Tensor] = []
        for router in self.routers:
            assert router.width is not None
            rng = stream(self.method.seed, "conditional start", router.layer)
            down = rng.normal(size=(self.method.rank, router.width))
            down /= np.linalg.norm(down, axis=1, keepdims=True)
            numbers += [torch.from_numpy(down.astype(np.float32)), torch.zeros(router.experts, self.method.rank)]
            if self.method.threshold:
                numbers.append(torch.zeros(self.method.rank))
        return numbers

    @property
    def _parts(self) -> int:
        return 3 if self.method.threshold else 2

    def leaves(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.clone() for tensor in numbers]

    def routing(self, leaves: Sequence[Tensor]) -> Trainable:
        maps: list[tuple[Tensor, Tensor, Tensor | None] | None] = [None] * self.depth
        for n, (router, norm) in enumerate(zip(self.routers, self.norms, strict=True)):
            down, up, *threshold = leaves[n * self._parts : (n + 1) * self._parts]
            maps[router.layer] = (down, up * norm, threshold[0] if threshold else None)
        return Trainable(phase=self.method.phase, maps=maps)

    def gradients(self, numbers: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        total = list(found)
        for n, router in enumerate(self.routers):  # of decay * |B A|^2 / E, B in units of the mean norm of a row of W
            at = n * self._parts
            down, up = numbers[at], numbers[at + 1]
            weight = 2 * self.method.decay / router.experts
            total[at] = total[at] + weight * (up.T @ up) @ down
            total[at + 1] = total[at + 1] + weight * up @ (down @ down.T)
        return total

    def maps(self, learnt: Learnt) -> dict[int, LowRank]:
        found = {}
        for n, (router, norm) in enumerate(zip(self.routers, self.norms, strict=True)):
            down, up, *threshold = learnt.numbers[n * self._parts : (n + 1) * self._parts]
            found[router.layer] = LowRank(down, up * np.float32(norm), threshold[0] if threshold else None)
        return found
