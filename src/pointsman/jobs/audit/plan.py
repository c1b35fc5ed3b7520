"""`Audit`: the parameters of an audit, as data. Its stages read them, its forecast counts with them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pointsman.errors import UsageError
from pointsman.routing.intervention import Phase

FRACTIONS = (0.3, 0.2, 0.5)  # discovery, validation, test, where the data set has no splits of its own

WITHOUT_CONTROLS: dict[str, Any] = {
    "placebo": False, "utility_prompts": 0, "noise": (), "route_controls": False, "other_targets": 0, "transfer": 0,
}  # fmt: skip
"""Fields of an `Audit` that measures the attacks alone, in a fraction of the time."""


@dataclass(frozen=True)
class Audit:
    """What an audit does.

    Attributes:
        seed: Seed of splits, masks, random routers and searches.
        limit: At most this many test behaviours, conversations and benign requests each; None for all.
        rank_prompts: Discovery prompts that routers are ranked on; None for as many as `limit`.
        samples: Random masks per prompt and router set (S).
        routers: Mask the top 1 .. this many routers; None for min(5, L / 4).
        random_draws: Random router sets per number of routers, the control.
        phases: When masks are in force; those after the first have one random router set each.
        candidates, restarts, min_gain: Of F-SOUR (N, R).
        searches: Behaviours that F-SOUR attacks; None for all tested.
        together: Behaviours that F-SOUR searches side by side; None for as many as fill a forward.
        method_seeds: Repeat ranking, masking and search with this many seeds, reported apart from n.
        placebo: Rank the routers on benign prompts too, by the rise of the refusal.
        utility_prompts: Benign requests asked under every mask; 0 for none.
        noise: Standard deviations of Gaussian noise on all router logits, in units of sigma_l; empty for none.
        route_controls: Random routes and the natural top-k at the pairs of every route found.
        other_targets: Behaviours whose routes are searched again with each of their other targets; 0 for none.
        transfer: Routes replayed on as many behaviours; 0 for none.
        max_new_tokens: Answer length; None for the suite's.
    """

    seed: int = 0
    limit: int | None = None
    rank_prompts: int | None = None
    samples: int = 20
    routers: int | None = None
    random_draws: int = 10
    phases: tuple[Phase, ...] = ("prefill", "both")
    candidates: int = 10
    restarts: int = 5
    min_gain: float = 1e-9
    searches: int | None = None
    together: int | None = None
    method_seeds: int = 1
    placebo: bool = True
    utility_prompts: int = 40
    noise: tuple[float, ...] = (0.1, 0.3, 1.0)
    route_controls: bool = True
    other_targets: int = 40
    transfer: int = 12
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "limit",
            "rank_prompts",
            "samples",
            "routers",
            "candidates",
            "restarts",
            "searches",
            "together",
            "method_seeds",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}", f"Give {name.replace('_', '-')} of at least 1, or leave it out")
        for name in ("random_draws", "utility_prompts", "other_targets", "transfer"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name.replace('_', '-')} is {getattr(self, name)}", "Give 0 or more")
        if any(not 0 < level < float("inf") for level in self.noise):
            raise UsageError(f"A noise of {self.noise}", "Give positive multiples of sigma, such as 0.1, 0.3, 1")
        if self.seed < 0:
            raise UsageError(f"The seed is {self.seed}", "Give 0 or more")
        if not (math.isfinite(self.min_gain) and self.min_gain >= 0):
            raise UsageError(f"min-gain is {self.min_gain}", "Give a number of nats, 0 or more")

    def most_masked(self, layers: int) -> int:
        """How many of the top routers are masked at most: asked for, or min(5, L / 4)."""
        return min(self.routers or max(1, min(5, layers // 4)), layers)


def audit_config(audit: Audit, **options: Any) -> dict[str, Any]:
    """Everything that decides the results, as JSON, for the run's manifest."""
    return {**options, **asdict(audit), "phases": list(audit.phases), "noise": list(audit.noise)}
