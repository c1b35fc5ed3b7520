"""What the unsteered model says to a split, and the labelled contexts that follow from it (METHODS section 5, step 1).

What cannot be steered is refused here, as early as it is known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pointsman.data.splits import SPLITS, cluster
from pointsman.data.types import Behaviour, Conversation, Split
from pointsman.errors import DataError
from pointsman.jobs.steer.contexts import Context, affirmed, matched_pairs, of_conversations, of_requests
from pointsman.jobs.steer.enough import FEWEST_SOURCES
from pointsman.jobs.steer.outcome import Outcome, ask_in_stage, last_turns_again, where_it_falls
from pointsman.jobs.steer.plan import Contrast
from pointsman.jobs.steer.prompts import SteerPrompts
from pointsman.jobs.steer.question import ScenarioQuestion, SteerQuestion
from pointsman.jobs.steer.results import ContextCounts
from pointsman.methods.attempts import Attempt
from pointsman.methods.play import Played
from pointsman.runs.bench import Bench
from pointsman.runs.rates import grouped
from pointsman.stats.rates import Rate

BEGUN = 4
"""Tokens of an answer that are traced, where requests are read with its beginning: enough to tell a refusal."""


@dataclass(frozen=True)
class PlayedSplit:
    """A split as the unsteered model answered it.

    Attributes:
        split: Which one.
        prompts: What was asked.
        outcome: What was said.
        contexts: Labelled: 1 is what the mask shall change, or must keep if it is guarded.
        guarded: Ids of restricted requests outside the scenario (objective allow): they must stay refused.
    """

    split: Split
    prompts: SteerPrompts
    outcome: Outcome
    contexts: tuple[Context, ...]
    guarded: frozenset[str]

    @property
    def to_turn(self) -> list[Context]:
        """The contexts that the mask shall change."""
        return [c for c in self.contexts if c.label == 1 and c.id not in self.guarded]

    @property
    def fallen(self) -> list[Context | None] | None:
        """The context of every conversation that fell, None for the others; None where none are played."""
        if self.outcome.objective != "defend":
            return None
        by_id = {c.id: c for c in self.contexts if c.kind == "fallen"}
        return [by_id.get(c.id) for c in self.prompts.conversations]

    def counts(self) -> ContextCounts:
        """How many conversations fell (or requests were refused), and what there is to learn from."""
        played, labels = self.outcome.played, Counter(c.label for c in self.contexts)
        return ContextCounts(
            played=len(self.outcome.of_scenario),
            fallen=_fallen(self.outcome.of_scenario),
            by_turn=where_it_falls(played),
            by_tactic={name: _fallen(group) for name, group in grouped(played, lambda p: p.tactic).items()},
            matched_pairs=len(matched_pairs(self.contexts)),
            label1=labels[1],
            label0=labels[0],
        )


@dataclass(frozen=True)
class Refusals:
    """How the model refuses.

    Attributes:
        usual: Its most frequent refusal on the discovery split.
        by_request: Its own refusal of each request there, where it refused it.
    """

    usual: str
    by_request: Mapping[str, str]


def play_splits(
    bench: Bench[SteerQuestion], prompts: Mapping[Split, SteerPrompts], contrast: Contrast
) -> tuple[dict[Split, PlayedSplit], Refusals]:
    """Ask every split of the unsteered model; ``artefacts/contexts.jsonl`` holds the contexts.

    Raises:
        DataError: There is nothing to learn from: no conversation falls, nothing is refused, too few contexts.
    """
    splits: dict[Split, PlayedSplit] = {}
    alone: list[Context] = []
    begun = 0
    for split in SPLITS:  # discovery first: what cannot be steered is refused before more is asked
        outcome = ask_in_stage(bench, prompts[split], None, f"base/{split}", f"Unsteered, {split}")
        if split == "discovery":
            refuse_unscored(bench, outcome)
            begun = 0 if contrast == "benign" or _answers_enough(outcome) else BEGUN
            alone = _requests_alone(bench, prompts[split].conversations)
        played = label_contexts(bench, split, prompts[split], outcome, contrast, begun)
        played = replace(played, contexts=(*played.contexts, *(alone if split == "discovery" else ())))
        _refuse_unlearnable(bench, played)
        splits[split] = played
    rows = [c.to_json() for played in splits.values() for c in played.contexts]
    bench.run.write_text("artefacts/contexts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    said = [c.response for c in (*splits["discovery"].contexts, *alone) if c.kind in ("refused", "withstood")]
    if not said:
        raise DataError("The model refuses nothing on the discovery split", "Give restricted requests that it refuses")
    own = {c.goal: c.response for c in alone if c.kind == "refused"}
    return splits, Refusals(Counter(said).most_common(1)[0][0], own)


def label_contexts(
    bench: Bench[ScenarioQuestion],
    split: Split,
    prompts: SteerPrompts,
    outcome: Outcome,
    contrast: Contrast = "benign",
    begun: int = 0,
) -> PlayedSplit:
    """A split with its contexts: label 1 is what the mask shall change.

    Args:
        contrast: What label 0 is of a scenario that allows something.
        begun: Tokens of answers that are traced with the requests. If any, requests that are refused are label 0 once
            more, with their own targets: their prompts are the same, and only so the two differ. (METHODS section 5)
    """
    if outcome.objective == "defend":
        single = of_requests(prompts.restricted, outcome.restricted, refused_is=0)
        talks = of_conversations(prompts.conversations, outcome.played)
        contexts = (*talks, *(c for c in single if c.kind == "refused"))
        return PlayedSplit(split, prompts, outcome, contexts, frozenset())
    holds = bench.question.scenario.holds
    scenario = of_requests(prompts.scenario, outcome.scenario, refused_is=1)
    restricted = of_requests(prompts.restricted, outcome.restricted, refused_is=1)
    kept = [c for c in restricted if c.label and holds(c.category)]
    against = affirmed(scenario, prompts.scenario) if begun else []
    if contrast == "benign":
        against = [c for c in of_requests(prompts.benign, outcome.benign, refused_is=1) if not c.label]
    contexts = tuple(replace(c, begun=begun) for c in (*scenario, *kept, *against))
    return PlayedSplit(split, prompts, outcome, contexts, frozenset(b.id for b in bench.suite.restricted))


def with_last_turns(bench: Bench[ScenarioQuestion], played: PlayedSplit, title: str) -> Outcome:
    """The outcome of the unsteered model on test with its last turns generated again, as those of every mask are."""
    if played.fallen is None:
        return played.outcome
    with bench.stage("test", title, 0) as steps:
        under = steps.under("test/before")
        again = last_turns_again(bench, played.prompts.conversations, played.fallen, None, under)
    return replace(played.outcome, again=again)


def _requests_alone(bench: Bench[SteerQuestion], conversations: Sequence[Conversation]) -> list[Context]:
    """The requests of the conversations on their own, each once, and what the model says to them."""
    goals = {c.goal: c for c in reversed(conversations)}
    behaviours = [
        Behaviour(f"goal of {c.id}", c.goal, c.target, c.category, cluster(c), c.split)
        for c in reversed(goals.values())
    ]
    with bench.stage("goals", "Single requests", len(behaviours)) as steps:
        attempts = bench.ask(behaviours, key="goals", steps=steps, system=bench.question.scenario.system)
    return of_requests(behaviours, attempts, refused_is=0)


def _answers_enough(outcome: Outcome) -> bool:
    """Whether requests of the scenario are answered from as many source questions as one can learn from."""
    return len({a.source for a in outcome.scenario if a.verdict.success}) >= FEWEST_SOURCES


def _fallen(items: Sequence[Played | Attempt]) -> Rate:
    """Conversations that fell, or requests that were refused: what the mask shall change."""
    fallen = [item.fallen is not None if isinstance(item, Played) else item.verdict.refused for item in items]
    return Rate.of(fallen, [item.source for item in items])


# ---------------------------------------------------------------------- what cannot be steered


def refuse_unscored(bench: Bench[ScenarioQuestion], outcome: Outcome) -> None:
    """Refuse a judge that knows none of these prompts."""
    groups: dict[str, Sequence[Played | Attempt]] = {
        "conversations": outcome.played, "scenario requests": outcome.scenario,
        "restricted requests": outcome.restricted, "benign requests": outcome.benign,
        "benign conversations": outcome.harmless,
    }  # fmt: skip
    for name, items in groups.items():
        verdicts = [item.verdict for item in items]
        if verdicts and all(v.label == "unscored" for v in verdicts):
            raise DataError(
                f"The judge {bench.judge.name} scored none of {len(verdicts)} {name} ({verdicts[0].reason})",
                "Name a judge that knows these prompts in the scenario",
            )


def _refuse_unlearnable(bench: Bench[SteerQuestion], played: PlayedSplit) -> None:
    """Refuse a split on which nothing can be measured, and a discovery split from which nothing can be learnt."""
    model, scenario = bench.engine.info.name, bench.question.scenario
    defends, split = scenario.objective == "defend", f"the {played.split} split"
    if not played.to_turn and defends:
        raise DataError(
            f"{model} falls in no conversation of {split}: {scenario.name} has nothing to defend",
            "Give harder conversations, or more of them",
        )
    if not played.to_turn:
        raise DataError(
            f"{model} refuses no scenario request of {split}: {scenario.name} has nothing to open",
            "Give requests that it refuses",
        )
    if played.split != "discovery":
        return
    answers = (*played.outcome.scenario, *played.outcome.benign)
    if all(c.label for c in played.contexts) or not (defends or any(a.verdict.success for a in answers)):
        raise DataError(
            f"{model} never {'refuses' if defends else 'answers'} on {split}",
            "Steering contrasts both: give requests that it refuses" if defends else "Give benign requests",
        )
    for label in (0, 1):
        sources = {c.source for c in played.contexts if c.label == label}
        if len(sources) < 2:
            raise DataError(
                f"Too few contexts to learn from: label {label} comes from {len(sources)} source question",
                "Give more conversations of different source questions",
            )
