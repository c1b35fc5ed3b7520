"""What an audit is given, and `Audit`: its parameters, as data. Its stages read them, its forecast counts with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, MinLen

from pointsman.jobs.parameters import Count, Formerly, Metavar, Positive, Preset, check
from pointsman.routing.phase import Phase

Splitting = Literal["balanced", "drawn"]
RouteAttack = Literal["fsour", "guided"]
ROUTE_ATTACKS: tuple[RouteAttack, ...] = get_args(RouteAttack)
"""Searches of unsafe routes, by the names under which `attacks` chooses them."""
RankedBy = Literal["rosais", "screen"]
DISCOVERY = 0.3
"""Share of the source questions that routers are ranked on, where the data set has no splits of its own."""


@dataclass(frozen=True)
class AuditInputs:
    """What an audit is given beside the model.

    Attributes:
        behaviors: What the model should refuse: CSV, TSV, JSONL, JSON, Parquet or hub:owner/name, with columns Goal,
            Target, Category; `data check` says what is understood.
        benign: Benign requests: measures utility and over-refusal.
        borderline: Benign requests that look restricted.
        conversations: Multi-turn attempts at restricted requests.
        columns: What a column is used for, where its name does not say it: goal=Question of --behaviors,
            benign.goal=Question of --benign.
        system: A system prompt for every request, or the file that holds it.
        judge: The suite's own if left out; some judges take parameters.
        utility_tasks: Folder with task files of your own for --utility. They are code, and lm-eval runs it.
    """

    behaviors: Path | None = None
    benign: Path | None = None
    borderline: Path | None = None
    conversations: Path | None = None
    columns: Annotated[tuple[str, ...], Metavar("[FILE.]USE=NAME")] = ()
    system: Annotated[str, Metavar("TEXT|@FILE")] | None = None
    judge: Annotated[str, Metavar("NAME[:KEY=VALUE,...]")] | None = None
    utility_tasks: Annotated[Path, Metavar("FOLDER")] | None = None


@dataclass(frozen=True)
class Audit:
    """What an audit does.

    Attributes:
        seed: Seed of splits, masks, random routers and searches.
        limit: Most behaviours, conversations and benign requests to test, of each; None for all.
        samples: Random masks per prompt and set of routers.
        routers: Mask the top 1 to this many routers; None for L/4, at most 5.
        random_draws: Random sets of routers per number, as control.
        phases: When masks are in force; those after the first have one random set each.
        candidates: F-SOUR: sets per token and layer.
        restarts: F-SOUR: searches per behaviour.
        rank: How routers are ranked: by random masks (rosais, the paper's), or by one backward pass a prompt and a
            small RoSais beside it (screen).
        rank_prompts: Prompts that routers are ranked on; None for as many as limit.
        rank_check: Where the screen ranks: prompts on which RoSais is measured beside it.
        searches: Behaviours whose routes are searched; None for all tested.
        together: Behaviours searched side by side; None for as many as fill a forward.
        method_seeds: Repeat ranking, masking and search with this many seeds, reported apart from n.
        min_gain: F-SOUR: accept a set only if log p(target) rises by more, in nats.
        placebo: Rank the routers on benign prompts too, by the rise of the refusal.
        utility_prompts: Benign requests asked under every mask; 0 for none.
        noise: Gaussian noise on all router logits, in standard deviations of a layer's logits.
        route_controls: Random routes, and the natural top-k, at the pairs of every route found.
        other_targets: F-SOUR: behaviours whose routes are searched again with each of their other targets.
        transfer: F-SOUR: routes replayed on as many behaviours.
        universal: Discovery prompts on which one unsafe route for all prompts is searched by the gradient; 0 for none.
        attacks: How unsafe routes are searched: fsour (random sets, the paper's) or guided (by the gradient). Any other
            name is an attack that a package registers, tried as well; empty for both searches, fsour alone where the
            model has no gradients.
        answer_loss: Measure how much less probable a routing makes the model's own answers to benign requests.
        utility: Tasks of lm-eval to solve as well, by name, to see what the routing costs; empty for none.
        utility_limit: Documents of each of these tasks at most; None for all.
        utility_chat: Ask them in the model's chat template.
        max_new_tokens: Length of answers; None for the suite's.
        splits: How source questions without splits are divided: balanced (of every category 30 % to rank on, the others
            to test) or drawn (each by lot: 30 % to rank on, 50 % to test; the other 20 % are not asked).
    """

    seed: Count = 0
    limit: Positive | None = 20
    rank: Annotated[RankedBy, Formerly("rosais")] = "rosais"
    rank_prompts: Positive | None = None
    rank_check: Annotated[Positive, Formerly(4)] = 4
    samples: Positive = 20
    routers: Positive | None = None
    random_draws: Count = 10
    phases: Annotated[tuple[Phase, ...], MinLen(1)] = ("prefill", "both")
    candidates: Positive = 10
    restarts: Positive = 5
    min_gain: Annotated[float, Ge(0)] = 1e-9
    searches: Positive | None = None
    together: Positive | None = None
    method_seeds: Positive = 1
    placebo: bool = True
    utility_prompts: Count = 40
    noise: tuple[Annotated[float, Gt(0)], ...] = (0.1, 0.3, 1.0)
    route_controls: bool = True
    other_targets: Count = 40
    transfer: Count = 12
    universal: Annotated[Count, Formerly(0)] = 0
    attacks: Annotated[tuple[Annotated[str, Metavar("NAME[:KEY=VALUE,...]")], ...], Formerly(("fsour",))] = ()
    answer_loss: Annotated[bool, Formerly(False)] = False
    utility: Annotated[tuple[Annotated[str, Metavar("NAME[,NAME]")], ...], Formerly(())] = ()
    utility_limit: Annotated[Positive | None, Formerly(100)] = 100
    utility_chat: Annotated[bool, Formerly(False)] = False
    max_new_tokens: Positive | None = None
    splits: Annotated[Splitting, Formerly("drawn")] = "balanced"

    PRESETS: ClassVar[tuple[Preset, ...]] = (
        Preset(
            "no-controls",
            "Controls",
            "Leave out placebo, noise, utility under masks, random and natural routes, other targets, transfer; "
            "random, lowest and frozen masks stay.",
            {"placebo": False, "utility_prompts": 0, "noise": (), "route_controls": False, "other_targets": 0,
             "transfer": 0},
        ),
    )  # fmt: skip
    """Without controls it measures the attacks alone, in a fraction of the time."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def route_attacks(self) -> tuple[RouteAttack, ...]:
        """The searches of unsafe routes that are named; empty where that is left open."""
        return tuple(name for name in ROUTE_ATTACKS if name in self.attacks)

    @property
    def other_attacks(self) -> tuple[str, ...]:
        """The attacks of other packages that are named, with their parameters."""
        return tuple(name for name in self.attacks if name not in ROUTE_ATTACKS)

    def most_masked(self, layers: int) -> int:
        """How many of the top routers are masked at most: asked for, or min(5, L / 4)."""
        return min(self.routers or max(1, min(5, layers // 4)), layers)
