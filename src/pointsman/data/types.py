"""The nouns of what is asked: `Behaviour`, `Conversation`, `Suite`. Plain, immutable data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from pointsman.errors import DataError

Split = Literal["discovery", "validation", "test"]


@dataclass(frozen=True)
class Behaviour:
    """One request, and what an answer that gives in would begin with.

    Attributes:
        id: Unique within its suite.
        goal: The request, as the user turn.
        target: The prefix of an affirmative answer, for example ``"Sure, here is how to ..."``.
        category: Free text; rates are also reported per category.
        source: The source question. Rows that share it are one cluster in every interval (METHODS section 0).
        split: Discovery ranks and trains, validation chooses, test reports. Assigned by source.
        targets: Other targets, for example one that begins with content instead of "Sure".
        reference: The right answer, where it is known. Not in `repr`: manifests hold digests of it, and what is asked
            does not depend on it.
        cluster_by: What intervals cluster by, where claims generalise over more than source questions: the noun, if
            they are about words. All rows of a source have the same. Not in `repr`, as `reference`.
    """

    id: str
    goal: str
    target: str
    category: str = ""
    source: str = ""
    split: Split | None = None
    targets: tuple[str, ...] = ()
    reference: str = field(default="", repr=False)
    cluster_by: str = field(default="", repr=False)

    @property
    def turns(self) -> tuple[str, ...]:
        """The user turns: one, the goal. Shape: [1]."""
        return (self.goal,)

    @property
    def row_cluster(self) -> str:
        """The cluster of its row in every interval."""
        return self.cluster_by or self.source or self.id


@dataclass(frozen=True)
class Conversation:
    """User turns that end in a request; the model's own answers come between them.

    Attributes:
        id: Unique within its suite.
        turns: User turns in order; the last one is the request itself.
        goal: The request that the conversation is after, stated on its own.
        target: The prefix of an affirmative answer to the goal.
        tactic: How the conversation wears the refusal down, for example ``"roleplay"``.
        category, source, split, cluster_by: As in `Behaviour`.
    """

    id: str
    turns: tuple[str, ...]
    goal: str
    target: str
    tactic: str = ""
    category: str = ""
    source: str = ""
    split: Split | None = None
    cluster_by: str = field(default="", repr=False)

    @property
    def row_cluster(self) -> str:
        """The cluster of its row in every interval."""
        return self.cluster_by or self.source or self.id


@dataclass(frozen=True)
class Suite:
    """Everything that is asked of a model, by an audit or to steer it.

    Attributes:
        name: Shown with every figure, for example ``"testbed"`` or the file's name.
        restricted: What the model should refuse.
        benign: What it should answer; `target` is the start of the right answer. Empty: utility is not measured.
        borderline: Benign requests that look restricted; empty: they are left out of the over-refusal rate.
        conversations: Multi-turn attempts at restricted requests.
        judge: Name of the judge that suits this suite, used unless the user names another.
        max_new_tokens: How long an answer may be, in tokens.
        notes: What a reader should know about how it was made.
        scenario: Requests that the model refuses and a mask shall make it answer; each has a target.
        benign_conversations: Harmless conversations, whose last turn the model should answer.
    """

    name: str
    restricted: tuple[Behaviour, ...]
    benign: tuple[Behaviour, ...] = ()
    borderline: tuple[Behaviour, ...] = ()
    conversations: tuple[Conversation, ...] = ()
    judge: str = "refusal"
    max_new_tokens: int = 512
    notes: tuple[str, ...] = field(default=())
    scenario: tuple[Behaviour, ...] = ()
    benign_conversations: tuple[Conversation, ...] = ()

    def __post_init__(self) -> None:
        """Refuse rows of one source question that are in several clusters: intervals would be too narrow.

        Raises:
            DataError: A list has such rows.
        """
        for each in fields(self):
            rows = getattr(self, each.name)
            known: dict[str, str] = {}
            for row in rows if isinstance(rows, tuple) else ():
                if isinstance(row, Behaviour | Conversation):
                    source = row.source or row.id
                    if known.setdefault(source, row.row_cluster) != row.row_cluster:
                        raise DataError(
                            f"Rows of {each.name} that ask the same ({source}) differ in what they cluster by: "
                            f"{known[source]!r} and {row.row_cluster!r}",
                            "Give all rows of a source question the same cluster_by",
                        )

    def __repr__(self) -> str:
        """All fields; those of steering only where they hold something.

        Manifests of runs hold digests of it: suites without those fields keep theirs.
        """
        shown = [f.name for f in fields(self) if f.name not in _STEERING_ONLY or getattr(self, f.name)]
        return f"Suite({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


_STEERING_ONLY = ("scenario", "benign_conversations")
