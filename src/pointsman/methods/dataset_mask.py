"""One mask for all prompts: chosen on the discovery split, then frozen. METHODS section 2, a control.

A mask that is searched anew for every behaviour may be luck of the draw. One that was chosen on other prompts and
still works says that the routers themselves are to blame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.errors import UsageError
from pointsman.methods.rosais import Target, affirmative_score, to_first_token
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention, Phase


@dataclass(frozen=True)
class DatasetMaskResult:
    """The mask that was chosen.

    Attributes:
        layers: The masked MoE layers, ascending.
        experts: The experts that it allows in each of them. Shape: [layers, top_k].
        chosen: Its number among those drawn.
        scores: Mean p(A) over the prompts under every mask that was drawn. Shape: [S].
    """

    layers: tuple[int, ...]
    experts: tuple[tuple[int, ...], ...]
    chosen: int
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean p(A) under the chosen mask, on the prompts that it was chosen on."""
        return self.scores[self.chosen]

    def routing(self, phase: Phase) -> Intervention:
        """The mask, in force during `phase`."""
        return Intervention.force(dict(zip(self.layers, self.experts, strict=True)), phase=phase)


@dataclass(frozen=True)
class DatasetMask:
    """Find the joint mask of a few routers under which answers to many prompts most probably begin affirmatively.

    Attributes:
        samples: Joint masks drawn, once for all prompts (S).
        score: ``first_token`` or ``target``.
        seed: Seed of the masks.
    """

    samples: int = 20
    score: Target = "first_token"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"{self.samples} masks are no choice", "Use at least 1, the paper uses 20")

    def search(
        self, engine: Engine, behaviours: Sequence[Behaviour], layers: Sequence[int], *, steps: Steps | None = None
    ) -> DatasetMaskResult:
        """Choose on these prompts, which must not be those that the mask is then scored on.

        The mask is in force during the prefill, where the first token is decided; so the choice is the same for all
        phases that have a prefill.
        """
        if not behaviours or not layers:
            raise UsageError("A dataset-level mask without prompts or routers", "Give at least one of both")
        steps = steps or Steps()
        masked = tuple(sorted(layers))
        sets = self.masks(engine, masked)  # shapes: [S, k]
        routing = [
            Intervention.force({layer: sets[layer][s].tolist() for layer in masked}, phase="prefill")
            for s in range(self.samples)
        ]

        def compute(behaviour: Behaviour) -> dict[str, list[float]]:
            prompt, target = engine.encode(behaviour.turns), engine.encode_target(behaviour.target)
            if self.score == "first_token":
                target = to_first_token(engine, target)
            scored = engine.score([prompt] * self.samples, [target] * self.samples, routing=routing)
            return {"scores": [affirmative_score(s, self.score) for s in scored]}

        name = f"dataset-mask/{'-'.join(map(str, masked))}"
        units = [
            steps.unit(f"{name}/{b.id}", engine, lambda b=b: compute(b))  # type: ignore[misc]
            for b in behaviours
        ]
        scores = np.mean([u["scores"] for u in units], axis=0)  # shape: [S]
        chosen = int(scores.argmax())
        experts = tuple(tuple(int(e) for e in sets[layer][chosen]) for layer in masked)
        return DatasetMaskResult(masked, experts, chosen, tuple(float(s) for s in scores))

    def masks(self, engine: Engine, layers: Sequence[int]) -> dict[int, np.ndarray]:
        """The joint masks, one a row: a pure function of (seed, layers). Shapes: [S, top_k] for every layer."""
        rng = stream(self.seed, "dataset mask", *layers)
        return {layer: engine.routers[layer].draw(rng, self.samples) for layer in layers}
