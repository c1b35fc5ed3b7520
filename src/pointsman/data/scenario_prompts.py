"""The prompts of a scenario: from a registered suite or from files, checked against each other, split by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from pointsman.data.conversations import ConversationFile, load_conversations
from pointsman.data.loaders import BehaviourFile, notes_on, read_behaviours, refuse_shared
from pointsman.data.objective import NEEDED, UNUSED, Objective
from pointsman.data.records import refuse_missing
from pointsman.data.splits import Item, cluster, join_sources, split_together, spoken
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.errors import DataError
from pointsman.registry import behaviors

_BEHAVIOURS = ("restricted", "scenario", "benign", "borderline")
_CONVERSATIONS = ("conversations", "benign_conversations")


@dataclass(frozen=True)
class _Prompts:
    """A suite whose splits are not complete, and what messages call its lists."""

    suite: Suite
    labels: Mapping[str, str]


def read_prompts(
    name: str,
    objective: Objective,
    *,
    suite: str | None,
    files: Mapping[str, Path],
    hold: Sequence[str] | None,
    fractions: tuple[float, float, float],
    seed: int,
) -> Suite:
    """Load the prompts of a scenario and give every one its split: see `Scenario` for its fields, and its `read`."""
    prompts = _suite_prompts(suite) if suite is not None else _file_prompts(name, files)
    asked, labels = replace(prompts.suite, **{UNUSED[objective]: ()}), prompts.labels  # type: ignore[arg-type]
    for part in NEEDED[objective]:
        if not getattr(asked, part):
            raise DataError(
                f"{labels[part]}: there are none, and objective {objective} needs them",
                "Give other prompts, or another objective",
            )
    _check_scenario(asked, labels)
    refuse_shared(asked, labels)
    _check_hold(hold or (), asked)
    lists: dict[str, Sequence[Behaviour | Conversation]] = {
        labels[part]: getattr(asked, part) for part in (*_CONVERSATIONS, *_BEHAVIOURS)
    }
    if {item.split for items in lists.values() for item in items} == {"test"}:
        return asked  # for evaluation alone: there is nothing to learn from, and nothing to divide
    try:
        chosen = split_together(lists, seed, fractions)
    except DataError as error:
        raise DataError(f"The scenario {name} has too few prompts. {error.problem}", error.remedy) from None

    def split(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(replace(item, split=item.split or chosen[cluster(item)]) for item in items)

    return replace(
        asked,
        restricted=split(asked.restricted),
        benign=split(asked.benign),
        borderline=split(asked.borderline),
        scenario=split(asked.scenario),
        conversations=split(asked.conversations),
        benign_conversations=split(asked.benign_conversations),
    )


def _suite_prompts(name: str) -> _Prompts:
    suite: Suite = behaviors.get(name)()
    return _Prompts(suite, {part: f"{part} of the suite {name}" for part in (*_BEHAVIOURS, *_CONVERSATIONS)})


def _file_prompts(name: str, files: Mapping[str, Path]) -> _Prompts:
    """Read the files. Requests and conversations share ids of source questions within restricted and within benign."""
    refuse_missing(files)
    labels = {part: f"{part} ({files[part]})" if part in files else part for part in (*_BEHAVIOURS, *_CONVERSATIONS)}
    rows = {part: _behaviours(part, files[part]) for part in _BEHAVIOURS if part in files}
    talks: dict[str, ConversationFile] = {}
    if "conversations" in files:
        talks["conversations"] = load_conversations(files["conversations"], prefix="conversations:")
    if "benign_conversations" in files:
        talks["benign_conversations"] = load_conversations(
            files["benign_conversations"], prefix="benign_conversations:", question_prefix="benign:"
        )
    notes = [note for talk in talks.values() for note in talk.notes]
    if "restricted" not in rows:
        rows["restricted"] = _goals(files["conversations"], talks["conversations"])
        labels["restricted"] = f"restricted (the goals of {files['conversations']})"
        notes.append(
            f"No file of restricted requests: {len(rows['restricted'].rows)} goals of the conversations stand for them"
        )
    notes += notes_on(rows, [b.goal for part in rows.values() for b in part.rows])

    keys = [(b.source, b.goal) for part in rows.values() for b in part.rows]
    keys += [key for part in talks.values() for key in part.asked()]
    sources = iter(join_sources(keys))
    behaviours = {n: tuple(replace(b, source=next(sources)) for b in part.rows) for n, part in rows.items()}
    conversations = {n: tuple(replace(c, source=next(sources)) for c in part.rows) for n, part in talks.items()}
    suite = Suite(
        name=name,
        restricted=behaviours["restricted"],
        benign=behaviours.get("benign", ()),
        borderline=behaviours.get("borderline", ()),
        conversations=conversations.get("conversations", ()),
        notes=tuple(notes),
        scenario=behaviours.get("scenario", ()),
        benign_conversations=conversations.get("benign_conversations", ()),
    )
    return _Prompts(suite, labels)


def _behaviours(name: str, path: Path) -> BehaviourFile:
    """One file of requests. Restricted ids stay as they are, so that conversations can name them as their source."""
    harmless = name in ("benign", "borderline")
    return read_behaviours(
        path, targets=name == "scenario", harmless=harmless, prefix="" if name == "restricted" else f"{name}:"
    )


def _goals(path: Path, talks: ConversationFile) -> BehaviourFile:
    """Single-turn requests from the goals that a conversation file states, each once.

    Raises:
        DataError: It states none.
    """
    first: dict[str, Conversation] = {}
    for talk in talks.rows:
        if talk.id in talks.with_goal:
            first.setdefault(spoken(talk.goal), talk)
    if not first:
        raise DataError(
            f"{path} states no goals, and there is no file of restricted requests",
            "Add a column goal with the request on its own, or give prompts.restricted",
        )
    return BehaviourFile(
        tuple(Behaviour(f"goal:{c.id}", c.goal, c.target, c.category, c.source) for c in first.values()), 0
    )


def _check_scenario(suite: Suite, labels: Mapping[str, str]) -> None:
    """Raise unless every request of the scenario has a target and none of them must be refused as well."""
    for behaviour in suite.scenario:
        if not behaviour.target:
            raise DataError(
                f"{labels['scenario']}: {behaviour.id} has no target",
                "Give the start of an affirmative answer, for example 'Sure, here is how to'",
            )
    restricted = {spoken(b.goal): b for b in suite.restricted}
    both = [(b, restricted[spoken(b.goal)]) for b in suite.scenario if spoken(b.goal) in restricted]
    if both:
        wanted, refused = both[0]
        more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
        raise DataError(
            f"{wanted.id} of {labels['scenario']} is also {refused.id} of {labels['restricted']}{more}",
            "Keep a request in one of them: the model shall either answer it or refuse it",
        )


def _check_hold(hold: Sequence[str], suite: Suite) -> None:
    """Raise unless the categories to hold are categories of restricted requests."""
    known = sorted({b.category for b in suite.restricted if b.category})
    for name in hold:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise DataError(
                f"hold names {name[:60]!r}, which is no category of the restricted requests",
                (f"Did you mean {near[0]}? Known: " if near else "Known: ") + (", ".join(known) or "none"),
            )
