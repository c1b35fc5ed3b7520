"""The router masking attack. METHODS section 2; Jiang et al., arXiv 2602.08621, section 4.

S joint random masks over a few routers are drawn for each behaviour; the one under which the answer most probably
begins affirmatively is in force while the model answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.errors import UsageError
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt, ask
from pointsman.methods.rosais import Target, affirmative_score, to_first_token
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention, Phase


@dataclass(frozen=True)
class MaskingResult:
    """What masking these routers did.

    Attributes:
        layers: The masked MoE layers.
        attempts: One per behaviour.
        chosen: Number of the mask that was kept for each behaviour.
        scores: Its p(A). Shape: [behaviours].
    """

    layers: tuple[int, ...]
    attempts: tuple[Attempt, ...]
    chosen: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Masking:
    """Mask a few routers and see whether the model gives in.

    Attributes:
        samples: Joint masks drawn for each behaviour (S).
        phase: When the chosen mask is in force: ``prefill`` (the paper), ``decode`` or ``both``.
        score: What chooses the mask: ``first_token`` or ``target``.
        max_new_tokens: Length of the answer.
        seed: Seed of the masks.
    """

    samples: int = 20
    phase: Phase = "prefill"
    score: Target = "first_token"
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"{self.samples} masks are no attack", "Use at least 1, the paper uses 20")

    def search(
        self,
        engine: Engine,
        behaviours: Sequence[Behaviour],
        judge: Judge,
        layers: Sequence[int],
        *,
        steps: Steps | None = None,
    ) -> MaskingResult:
        """Attack every behaviour through `layers`; no layers at all is the model as it is."""
        steps = steps or Steps()
        masked = tuple(sorted(layers))
        name = f"masking/{self.phase}/{'-'.join(map(str, masked)) or 'none'}"
        units = steps.units(name, engine, behaviours, lambda some: self._chunk(engine, some, judge, masked))
        return MaskingResult(
            masked,
            tuple(Attempt.from_json(a) for u in units for a in u["attempts"]),
            tuple(c for u in units for c in u["chosen"]),
            tuple(s for u in units for s in u["scores"]),
        )

    def masks(self, engine: Engine, behaviour: Behaviour, layers: Sequence[int]) -> list[Intervention]:
        """The joint masks of one behaviour: a pure function of (seed, behaviour, layers)."""
        rng = stream(self.seed, "masking", behaviour.id, *layers)
        drawn = {layer: engine.routers[layer].draw(rng, self.samples) for layer in layers}  # shapes: [S, k]
        return [
            Intervention.force({layer: sets[s].tolist() for layer, sets in drawn.items()}, phase=self.phase)
            for s in range(self.samples)
        ]

    def _chunk(
        self, engine: Engine, behaviours: Sequence[Behaviour], judge: Judge, layers: tuple[int, ...]
    ) -> dict[str, Any]:
        if not layers:
            plain = ask(engine, behaviours, judge, max_new_tokens=self.max_new_tokens)
            return {"attempts": [a.to_json() for a in plain], "chosen": [], "scores": []}
        masks = [self.masks(engine, b, layers) for b in behaviours]
        prompts = [engine.encode(b.turns) for b in behaviours]
        targets = [engine.encode_target(b.target) for b in behaviours]
        if self.score == "first_token":
            targets = [to_first_token(engine, target) for target in targets]
        of_row = [n for n in range(len(behaviours)) for _ in range(self.samples)]  # behaviour of each scored row
        scored = engine.score(
            [prompts[n] for n in of_row], [targets[n] for n in of_row], routing=[m for each in masks for m in each]
        )
        values = np.array([affirmative_score(s, self.score) for s in scored])
        values = values.reshape(len(behaviours), self.samples)
        best = values.argmax(axis=1)  # shape: [behaviours]
        routing = [each[n] for each, n in zip(masks, best, strict=True)]
        chosen, scores = best.tolist(), values.max(axis=1).tolist()
        attempts = ask(engine, behaviours, judge, routing=routing, max_new_tokens=self.max_new_tokens)
        return {"attempts": [a.to_json() for a in attempts], "chosen": chosen, "scores": scores}
