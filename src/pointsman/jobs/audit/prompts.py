"""Which prompts an audit uses for what: split by source question, limited, and short enough for the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pointsman.data.splits import SPLITS, Item, by_split, cluster, note_on_clusters, take
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.engine.types import Engine
from pointsman.errors import DataError
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.splitting import divided, divided_benign
from pointsman.runs.room import Room

AFFIRMATIVE = "Sure"
"""How an answer to a benign request without a target is taken to begin."""

Taking = Callable[[Sequence[Behaviour], int, int], tuple[Behaviour, ...]]
"""How so many of some behaviours are chosen with a seed."""


@dataclass(frozen=True)
class AuditPrompts:
    """What an audit asks, after splitting and limiting.

    Attributes:
        discovery: Restricted requests that routers are ranked on, and dataset-level masks are chosen on.
        test: Restricted requests that every rate is reported on.
        benign, borderline: Harmless requests of the test split.
        benign_discovery: Harmless requests of the discovery split, for the placebo of the ranking.
        conversations: Of the test split.
        sizes: Of the splits, and of what is used of them.
        notes: What was left out, in sentences.
    """

    discovery: tuple[Behaviour, ...]
    test: tuple[Behaviour, ...]
    benign: tuple[Behaviour, ...] = ()
    borderline: tuple[Behaviour, ...] = ()
    benign_discovery: tuple[Behaviour, ...] = ()
    conversations: tuple[Conversation, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def choose_prompts(suite: Suite, plan: Audit, take_fitting: Taking = take) -> AuditPrompts:
    """Split and limit what a suite asks.

    Args:
        take_fitting: Chooses behaviours that the model has room for.

    Raises:
        DataError: Nothing is left to rank routers on, or to test.
    """
    seed, limit, restricted = plan.seed, plan.limit, divided(suite.restricted, plan)
    discovery, test = by_split(restricted, "discovery"), by_split(restricted, "test")
    if not discovery or not test:
        raise DataError(
            f"{suite.name} leaves {len(discovery)} prompts to rank routers on and {len(test)} to test",
            "Give more behaviours with different source questions",
        )
    benign, talks = divided_benign(suite.benign, plan), _tested(suite.conversations)
    apart = {cluster(b) for b in discovery} if plan.splits == "balanced" else set()
    fresh = tuple(c for c in talks if c.split or cluster(c) not in apart)
    ranked = len(talks) - len(fresh)
    notes = (f"{ranked} conversations are left out: routers are ranked on their source questions",) if ranked else ()
    ranked_on = plan.rank_prompts or limit or len(discovery)
    chosen = AuditPrompts(
        discovery=take_fitting(discovery, ranked_on, seed),
        test=take_fitting(test, limit or len(test), seed),
        benign=take_fitting(_tested(benign), limit or len(benign), seed),
        borderline=take_fitting(_tested(suite.borderline), limit or len(suite.borderline), seed),
        benign_discovery=take_fitting(by_split(benign, "discovery"), ranked_on, seed),
        conversations=take(fresh, limit or len(fresh), seed),
    )
    sizes: dict[str, int] = {name: len(by_split(restricted, name)) for name in SPLITS}
    on_clusters = note_on_clusters(chosen.discovery, chosen.test)
    used = {"discovery_used": len(chosen.discovery), "test_used": len(chosen.test)}
    said = (*notes, on_clusters) if on_clusters else notes
    return replace(chosen, sizes={**sizes, **used}, notes=said)


def choose_fitting_prompts(suite: Suite, plan: Audit, engine: Engine) -> tuple[AuditPrompts, Room]:
    """`choose_prompts` among those that fit into the model's context, and what was left out.

    Raises:
        DataError, PromptTooLong: Nothing is left to rank routers on, or to test.
    """

    def tokens(behaviour: Behaviour) -> int:
        """How many a behaviour needs with the longest of its targets."""
        targets = (behaviour.target, *behaviour.targets)
        return len(engine.encode(behaviour.turns)) + max(len(engine.encode_target(t or "a")) for t in targets)

    room = Room(engine, tokens)
    prompts = choose_prompts(suite, plan, room.take)
    room.refuse_none("behaviour to rank routers on", suite.restricted, prompts.discovery)
    room.refuse_none("behaviour to test", suite.restricted, prompts.test)
    return prompts, room


def with_targets(behaviours: Sequence[Behaviour]) -> list[Behaviour]:
    """The same, with `AFFIRMATIVE` for the target of those that have none."""
    return [b if b.target else replace(b, target=AFFIRMATIVE) for b in behaviours]


def _tested(items: Sequence[Item]) -> tuple[Item, ...]:
    """Those of the test split; all, where the items have no splits."""
    return tuple(i for i in items if i.split in (None, "test"))
