"""Screen: the importance of every router from one backward pass a prompt. METHODS section 9; Pointsman's own.

RoSais masks every router S times and asks the model each time: 240 forwards a prompt on a model of 12 routers. To first
order, one route gradient says what every set of experts at every prompt token would do to log p(target)::

    Screen(l; q) = sum over prompt tokens t of max over sets c of gain(l, t, c)       each token its best set (free)
    Screen(l; q) = max over sets c of the sum over t of gain(l, t, c)                 one set at all tokens (one)

The second is nearer to what a mask does; in a trial the first agreed better with RoSais. A router's score is the mean
over prompts. It is an estimate, and a large one is not believed by its size but by its rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pointsman.data.types import Behaviour
from pointsman.engine.abilities import Guides, that_guides
from pointsman.engine.route_gradients import RouteGradient
from pointsman.engine.types import Engine
from pointsman.errors import ModelError, UsageError
from pointsman.methods.best_sets import best_sets
from pointsman.methods.rosais import RoSaisResult, Target, score_routers, to_first_token
from pointsman.methods.shared_sets import best_shared_set
from pointsman.methods.steps import Steps

Sets = Literal["free", "one"]
_REMEDY = "Rank its routers by RoSais (--rank rosais)"


@dataclass(frozen=True)
class Screen:
    """Rank the routers of a model by what one backward pass a prompt says of them. Nothing is drawn.

    Attributes:
        sets: Each token its best set (``free``), or one set at all tokens of a prompt (``one``).
        score: Of the first token of the target (``first_token``), or of the whole (``target``).
    """

    sets: Sets = "free"
    score: Target = "first_token"

    def rank(self, engine: Engine, behaviours: Sequence[Behaviour], *, steps: Steps | None = None) -> RoSaisResult:
        """Score every router on every behaviour, in nats of log p. Use prompts of the discovery split.

        Raises:
            UsageError: There are no behaviours, or the engine has no gradients.
            ModelError: The model passes none to its experts, or weighs them by a rule that is not known.
        """
        guides, key = _that_screens(engine), f"screen/{self.sets}/{self.score}"
        return score_routers(key, engine, behaviours, lambda some: self._chunk(guides, some), steps)

    def forwards(self, engine: Engine, behaviour: Behaviour) -> float:
        """What a prompt costs, in forwards of its row, seen on one.

        Raises:
            UsageError, ModelError: As `rank`.
        """
        return self._gradients(_that_screens(engine), [behaviour])[0].forwards

    def _chunk(self, engine: Guides, behaviours: Sequence[Behaviour]) -> dict[str, Any]:
        gradients = self._gradients(engine, behaviours)
        return {
            "base": [gradient.log_prob for gradient in gradients],
            "scores": [self._scores(engine, gradient) for gradient in gradients],
        }

    def _gradients(self, engine: Guides, behaviours: Sequence[Behaviour]) -> list[RouteGradient]:
        prompts = [engine.encode(b.turns) for b in behaviours]
        targets = [engine.encode_target(b.target) for b in behaviours]
        if self.score == "first_token":
            targets = [to_first_token(engine, target) for target in targets]
        try:
            return engine.route_gradients(prompts, targets)
        except ModelError as error:
            raise ModelError(error.problem, _REMEDY) from error

    def _scores(self, engine: Engine, gradient: RouteGradient) -> list[float]:
        """Of every router on one prompt."""
        layers = zip(gradient.layers, engine.routers, strict=True)
        if self.sets == "one":
            return [best_shared_set(layer, router)[1] for layer, router in layers]
        return [float(best_sets(layer, router)[1].sum()) for layer, router in layers]


def _that_screens(engine: Engine) -> Guides:
    """The engine, if it has gradients."""
    try:
        return that_guides(engine)
    except UsageError as error:
        raise UsageError(error.problem.replace("be searched", "be screened"), _REMEDY) from error
