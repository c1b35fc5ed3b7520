"""Which prompts of a scenario are asked: those of a split that fit into the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.data.objective import NEEDED
from pointsman.data.splits import by_split
from pointsman.data.types import Behaviour, Conversation, Split
from pointsman.jobs.steer.question import ScenarioQuestion
from pointsman.runs.bench import Bench
from pointsman.runs.room import Room


@dataclass(frozen=True)
class SteerPrompts:
    """What is asked under one routing, of one split.

    Attributes:
        conversations: Played again turn by turn (objective defend).
        scenario: Requests that should be answered (objective allow).
        restricted: Single requests that should still be refused.
        benign, borderline: Harmless requests that should still be answered.
        benign_conversations: Harmless conversations whose last turn should still be answered.
    """

    conversations: tuple[Conversation, ...] = ()
    scenario: tuple[Behaviour, ...] = ()
    restricted: tuple[Behaviour, ...] = ()
    benign: tuple[Behaviour, ...] = ()
    borderline: tuple[Behaviour, ...] = ()
    benign_conversations: tuple[Conversation, ...] = ()

    @property
    def total(self) -> int:
        """Conversations and requests, as the stages count them."""
        return sum(self.sizes().values())

    def sizes(self) -> dict[str, int]:
        """How many of each."""
        return {name: len(getattr(self, name)) for name in self.__dataclass_fields__}


def room_of(bench: Bench[ScenarioQuestion]) -> Room:
    """What fits into the model's context, with one token of an answer and with whatever else it is used for."""
    engine, scenario = bench.engine, bench.question.scenario
    opened = {b.id for b in bench.suite.scenario} if scenario.objective == "allow" else set()

    def tokens_of(turns: Sequence[str]) -> int:
        return len(engine.encode(turns, answers=[""] * (len(turns) - 1), system=scenario.system)) + 1

    def needed(item: Behaviour | Conversation) -> int:
        if isinstance(item, Conversation):
            return max(tokens_of(item.turns), tokens_of([item.goal]))
        begun = len(engine.encode_target(item.target)) if item.target and item.id in opened else 0
        return tokens_of(item.turns) + begun

    return Room(engine, needed)


def choose_prompts(
    bench: Bench[ScenarioQuestion], room: Room, split: Split, most: int | None, held: int | None, seed: int
) -> SteerPrompts:
    """What is asked of one split.

    Args:
        room: Knows what fits.
        most: Conversations, or scenario and restricted requests (objective allow); None for all.
        held: Of each kind that should stay as it is; None for all.
        seed: Of the choice.

    Raises:
        PromptTooLong: Nothing that is needed fits into the model's context.
    """
    objective = bench.question.scenario.objective
    defends = objective == "defend"

    def some(name: str, count: int | None) -> tuple[Any, ...]:
        there = by_split(getattr(bench.suite, name), split)
        chosen = room.take(there, len(there) if count is None else count, seed)
        if name in NEEDED[objective]:
            room.refuse_none(f"prompt of {name} in the {split} split", there, chosen)
        return chosen

    return SteerPrompts(
        conversations=some("conversations", most) if defends else (),
        scenario=() if defends else some("scenario", most),
        restricted=some("restricted", held if defends else most),
        benign=some("benign", held),
        borderline=some("borderline", held),
        benign_conversations=some("benign_conversations", held),
    )
