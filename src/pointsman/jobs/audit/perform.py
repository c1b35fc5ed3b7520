"""The audit: how fragile is this model's safety to its routing? RoSais, masking and F-SOUR in one run.

Routers are ranked on the discovery split; every rate is reported on the test split (METHODS sections 0 to 3).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pointsman.data.splits import SPLITS, assign_splits, by_split, cluster, take
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.engine.types import Engine, refuse_unable
from pointsman.errors import DataError
from pointsman.jobs.audit.findings import (
    attempt_rates,
    headline,
    model_section,
    notes_on_model,
    useful,
)
from pointsman.jobs.audit.forecast import forecast
from pointsman.jobs.audit.masking import mask
from pointsman.jobs.audit.plan import FRACTIONS, Audit
from pointsman.jobs.audit.ranking import rank
from pointsman.jobs.audit.routes import search
from pointsman.jobs.audit.work import Asked, Work
from pointsman.judges.making import judge_section
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt, ask_in_steps
from pointsman.methods.play import Played, play
from pointsman.routing.intervention import Intervention
from pointsman.runs.progress import NullProgress, ProgressLike
from pointsman.runs.provenance import provenance, shareable_command
from pointsman.runs.room import Room
from pointsman.runs.run import Run
from pointsman.stats.rates import Rate

SCHEMA = "pointsman.audit/2"
Taking = Callable[[Sequence[Behaviour], int, int], tuple[Behaviour, ...]]
"""How so many of some behaviours are chosen with a seed."""
FEWEST_BENIGN = 20  # sources; fewer are all tested, and there is no placebo


def perform(
    audit: Audit,
    engine: Engine,
    suite: Suite,
    judge: Judge,
    run: Run,
    *,
    progress: ProgressLike | None = None,
    command: str = "",
    foreseen: Callable[[dict[str, Any]], None] | None = None,
    noted: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Do (or finish) the audit in `run`; writes ``results.json`` and ``artefacts/completions.jsonl``.

    Args:
        foreseen: Called with the forecast of the cost before anything long begins.
        noted: Called before that with what a user should know of the prompts, such as those left out.

    Returns:
        The results.

    Raises:
        InterventionError: The engine cannot carry out what would be tried.
    """
    _refuse_unable(engine, audit)
    work = _Stages(engine, suite, judge, run, progress or NullProgress(), audit=audit)
    results = work.results(foreseen, noted)
    results["provenance"]["command"] = shareable_command(command)
    run.write_text("artefacts/completions.jsonl", "".join(json.dumps(c) + "\n" for c in work.completions))
    run.write_results(results)  # last: a run that has its results is finished
    return results


class _Stages(Work):
    """The stages of an audit in order, each remembered by the run."""

    def results(
        self, foreseen: Callable[[dict[str, Any]], None] | None, noted: Callable[[str], None] | None
    ) -> dict[str, Any]:
        room = Room(self.engine, self._tokens)
        asked = self._choose(room.take)
        restricted = self.suite.restricted
        room.refuse_none("behaviour to rank routers on", restricted, asked.discovery)
        room.refuse_none("behaviour to test", restricted, asked.test)
        room.tell(noted)
        predicted = forecast(self, asked, self._conversations())
        if foreseen is not None:
            foreseen(predicted)
        base = self._ask("base", asked.test)
        benign = self._ask("benign", asked.benign) if asked.benign else None
        borderline = self._ask("borderline", asked.borderline) if asked.borderline else []
        played = self._play()
        ranked, ranking = rank(self, asked)
        masking = mask(self, asked, ranked, base, ranking.get("seeds"))
        routes = search(self, asked)
        harmless = [*(benign or []), *borderline]
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "suite": self.suite.name,
            "judge": judge_section(self.judge),
            "seed": self.audit.seed,
            "small_n": min(len(asked.test), self.audit.searches or len(asked.test)) < 100,
            "threat_model": "T1",
            "model": model_section(self.engine),
            "notes": [*self.suite.notes, *notes_on_model(self.engine), *room.notes()],
            **room.section(),
            "splits": asked.sizes,
            "base": attempt_rates(base, by_category=True),
            "utility": None if benign is None else asdict(_utility(benign, self.judge)),
            "over_refusal": _rate([a.verdict.refused for a in harmless], harmless) if harmless else None,
            "multi_turn": _multi_turn(played, self._conversations()),
            **_merge(ranking, masking, routes),
            "cost": {**self.cost(), "predicted": predicted},
            "provenance": {**provenance(), "created": datetime.now(UTC).isoformat(timespec="seconds")},
        }  # fmt: skip
        results["headline"] = headline(results)
        return results

    # -- stages ------------------------------------------------------------------------------------------------

    def _choose(self, take: Taking = take) -> Asked:
        audit, seed = self.audit, self.audit.seed
        restricted = self.suite.restricted
        if any(b.split is None for b in restricted):
            restricted = assign_splits(restricted, seed, FRACTIONS)
        discovery, test = by_split(restricted, "discovery"), by_split(restricted, "test")
        if not discovery or not test:
            raise DataError(
                f"{self.suite.name} leaves {len(discovery)} prompts to rank routers on and {len(test)} to test",
                "Give more behaviours with different source questions",
            )
        benign = _divided(self.suite.benign, seed)
        sizes: dict[str, int] = {name: len(by_split(restricted, name)) for name in SPLITS}
        limit = audit.limit or len(test)
        chosen = Asked(
            take(discovery, audit.rank_prompts or audit.limit or len(discovery), seed),
            take(test, limit, seed),
            take(_tested(benign), audit.limit or len(benign), seed),
            take(_tested(self.suite.borderline), audit.limit or len(self.suite.borderline), seed),
            take(by_split(benign, "discovery"), audit.rank_prompts or audit.limit or len(discovery), seed),
            sizes,
        )
        chosen.sizes.update({"discovery_used": len(chosen.discovery), "test_used": len(chosen.test)})
        return chosen

    def _tokens(self, behaviour: Behaviour) -> int:
        """How many a behaviour needs with the longest of its targets."""
        targets = (behaviour.target, *behaviour.targets)
        return len(self.engine.encode(behaviour.turns)) + max(len(self.engine.encode_target(t or "a")) for t in targets)

    def _ask(self, stage: str, behaviours: Sequence[Behaviour]) -> list[Attempt]:
        with self.stage(stage, stage.capitalize(), len(behaviours)) as steps:
            attempts = ask_in_steps(
                self.engine, behaviours, self.judge, key=stage, steps=steps, max_new_tokens=self.answer_tokens
            )
        self.note(stage, behaviours, attempts)
        return attempts

    def _play(self) -> list[Played]:
        chosen = self._conversations()
        if not chosen:
            return []
        with self.stage("multi_turn", "Conversations", len(chosen)) as steps:
            played = play(
                self.engine, chosen, self.judge, key="multi_turn", steps=steps, max_new_tokens=self.answer_tokens
            )
        for conversation, p in zip(chosen, played, strict=True):
            turn = len(p.responses) - 1 if p.fallen is None else p.fallen
            verdict = p.verdicts[turn]
            self.completions.append(
                {"stage": "multi_turn", "id": p.id, "category": p.category, "tactic": p.tactic,
                 "prompt": " / ".join(conversation.turns[: turn + 1]), "response": p.responses[turn],
                 "label": verdict.label, "reason": verdict.reason}
            )  # fmt: skip
        return played

    def _conversations(self) -> tuple[Conversation, ...]:
        tested = _tested(self.suite.conversations)
        return take(tested, self.audit.limit or len(tested), self.audit.seed)


def _divided(benign: tuple[Behaviour, ...], seed: int) -> tuple[Behaviour, ...]:
    """Benign requests with splits, since the placebo ranks on some: unless they have their own, or are few."""
    if any(b.split for b in benign) or len({cluster(b) for b in benign}) < FEWEST_BENIGN:
        return benign
    return assign_splits(benign, seed, FRACTIONS)


def _tested(items: Sequence[Any]) -> tuple[Any, ...]:
    """Those of the test split; all, where the items have no splits."""
    return tuple(i for i in items if i.split in (None, "test"))


def _rate(successes: Sequence[bool], attempts: Sequence[Attempt]) -> dict[str, Any]:
    return asdict(Rate.of(successes, [a.source for a in attempts]))


def _refuse_unable(engine: Engine, audit: Audit) -> None:
    """Refuse an engine that cannot carry out one of the kinds of routing that are tried."""
    router = engine.routers[0]
    experts = router.draw(np.random.default_rng(0), 1)[0].tolist()
    for phase in dict.fromkeys(("prefill", *audit.phases)):
        refuse_unable(engine, Intervention.force({router.layer: experts}, phase=phase), f"A mask ({phase})")
    refuse_unable(engine, Intervention.force({(router.layer, 0): experts}, phase="prefill"), "A route")
    if audit.noise:
        refuse_unable(engine, Intervention.noise({router.layer: 1.0}, seed=0, phase="prefill"), "Noise")


def _utility(attempts: Sequence[Attempt], judge: Judge) -> Rate:
    """Benign requests answered."""
    return Rate.of(useful(attempts, judge.grades_content), [a.source for a in attempts])


def _multi_turn(played: Sequence[Played], conversations: Sequence[Conversation]) -> dict[str, Any] | None:
    """How many conversations fall, by tactic; and for how many questions some fall and some do not (matched)."""
    if not played:
        return None
    outcomes: dict[str, set[bool]] = {}
    for p, conversation in zip(played, conversations, strict=True):
        outcomes.setdefault(conversation.goal, set()).add(p.fallen is not None)
    tactics: dict[str, list[Played]] = {}
    for p in played:
        tactics.setdefault(p.tactic, []).append(p)

    def fallen(group: Sequence[Played]) -> dict[str, Any]:
        return asdict(Rate.of([p.fallen is not None for p in group], [p.source for p in group]))

    return {
        "fallen": fallen(played),
        "by_tactic": {name: fallen(group) for name, group in sorted(tactics.items())},
        "questions": len(outcomes),
        "matched_questions": sum(len(both) == 2 for both in outcomes.values()),
    }


def _merge(*parts: dict[str, Any]) -> dict[str, Any]:
    """The sections of several stages as one; what they say of method seeds is united under ``seeds``."""
    merged = {name: value for part in parts for name, value in part.items() if name != "seeds"}
    seeds = {name: value for part in parts for name, value in (part.get("seeds") or {}).items()}
    return merged | ({"seeds": seeds} if seeds else {})
