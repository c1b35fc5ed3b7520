"""Steering: from a scenario to a mask on the routers that works on prompts it has never seen (METHODS section 5).

Matrices are learnt on the discovery split, everything is chosen on validation, and the headline is the test split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pointsman.data.scenario import Scenario
from pointsman.data.splits import SPLITS
from pointsman.data.types import Behaviour, Split, Suite
from pointsman.engine.abilities import that_learns
from pointsman.engine.types import Engine, refuse_unable
from pointsman.jobs.audit.findings import model_section, notes_on_model
from pointsman.jobs.audit.work import Bench
from pointsman.jobs.steer.candidates import Candidate, Tried, broken_limits, choose, mark
from pointsman.jobs.steer.choosing import Choosing
from pointsman.jobs.steer.contexts import Context, of_requests
from pointsman.jobs.steer.latency import latency
from pointsman.jobs.steer.matrices import Found, Learning, Material, surrogate_section
from pointsman.jobs.steer.outcome import Asked, Outcome, compared, gains_compared, last_turns_again
from pointsman.jobs.steer.plan import Start, Steer
from pointsman.jobs.steer.scene import Scene, usual_refusal
from pointsman.judges.making import judge_section, written_judge
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt
from pointsman.methods.mascing import circuit, jaccard
from pointsman.routing.intervention import Intervention
from pointsman.runs.progress import NullProgress, ProgressLike
from pointsman.runs.provenance import provenance, shareable_command
from pointsman.runs.run import Run
from pointsman.stats.rates import Rate
from pointsman.steering.artefact import DATA, Steering

SCHEMA = "pointsman.steer/1"
ARTEFACT = "steering"

ALPHA = 1.0  # of the gap
GAP = 80  # contexts that it is measured on, at most


def perform(
    plan: Steer,
    engine: Engine,
    scenario: Scenario,
    suite: Suite,
    judge: Judge,
    run: Run,
    *,
    progress: ProgressLike | None = None,
    command: str = "",
    noted: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Do (or finish) the run; writes ``results.json``, the artefact, contexts and completions.

    Args:
        suite: What `scenario.read` gave.

    Returns:
        The results.

    Raises:
        DataError: There is nothing to learn from: no conversation falls, nothing is refused, too few contexts.
        UsageError: It needs an engine that learns, and this one does not.
        InterventionError: The engine cannot carry out what would be tried.
    """
    if "through_model" in scenario.grid.refinements or plan.upper_bound:
        that_learns(engine)
    _refuse_unable(engine, scenario)
    stages = _Stages(engine, suite, judge, run, progress or NullProgress(), plan, scenario)
    results = stages.results(noted)
    results["provenance"]["command"] = shareable_command(command)
    run.write_text("artefacts/completions.jsonl", "".join(json.dumps(c) + "\n" for c in stages.bench.completions))
    run.write_results(results)  # last: a run that has its results is finished
    return results


class _Stages:
    """The stages of a steering run in order, each remembered by the run."""

    def __init__(
        self,
        engine: Engine,
        suite: Suite,
        judge: Judge,
        run: Run,
        progress: ProgressLike,
        plan: Steer,
        what: Scenario,
    ) -> None:
        self.engine, self.suite, self.judge, self.run, self.plan = engine, suite, judge, run, plan
        self.bench = Bench(engine, suite, judge, run, progress)
        self.scene = Scene(self.bench, engine, what, plan.max_new_tokens, plan.lesson_tokens)
        self.notes: list[str] = [*suite.notes, *notes_on_model(engine)]
        self.sigma: tuple[float, ...] = ()
        self.limits = asdict(what.limits)
        if not judge.grades_content:
            self.notes.append(
                f"The judge {judge.name} cannot tell right content from wrong: what is not refused counts as answered, "
                "nonsense too. Look at the answers before you believe a gain."
            )
        phases = what.grid.phases
        self.through_phases = [p for p in plan.through_phases if p in phases] or [phases[0]]

    def results(self, noted: Callable[[str], None] | None = None) -> dict[str, Any]:
        asked = {split: self._asked(split) for split in SPLITS}
        self.notes += self.scene.room.notes()
        self.scene.room.tell(noted)
        base: dict[Split, Outcome] = {}
        contexts: dict[Split, list[Context]] = {}
        for split in SPLITS:  # discovery first: what cannot be steered is refused before more is asked
            base[split] = self.scene.measure(asked[split], None, f"base/{split}", f"Unsteered, {split}")
            contexts[split] = self.scene.contexts(asked[split], base[split])
            if split == "discovery":
                self.scene.check_judged(base[split])
                goals = self.scene.goals(asked[split])
                contexts[split] += of_requests(*goals, refused_is=0) if self.scene.defends else []
            self.scene.check_contexts(split, contexts[split])
        self._write_contexts(contexts)
        refusal = usual_refusal(contexts["discovery"] + of_requests(*goals, refused_is=0))
        material = self._material(asked["discovery"], base["discovery"], contexts["discovery"], goals, refusal)
        learning = self._learning(material)
        surrogates, founds = self._learn(learning)
        choosing = Choosing(
            self.scene, self.sigma, seed=self.plan.seed, finalists=self.plan.finalists,
            random_draws=self.plan.random_draws,
        )  # fmt: skip
        screen = choosing.screen(asked["validation"], base["validation"], contexts["validation"], refusal)
        unseen = [*contexts["validation"], *contexts["test"]]
        tested = self.scene.traced(unseen, "unseen")
        gap = self._gap(founds, contexts["validation"])
        screened, unscreened = choosing.screened(founds, material, screen)
        measured = base["validation"].rates()
        tried, seconds = choosing.tried(asked["validation"], screened, unscreened, measured)
        best, why = choose([t for t in tried if t.candidate.method == "mascing"], measured["gain"]["rate"] or 0.0)
        random, more = choosing.random(best, screen, asked["validation"], measured, seconds)
        tried += random
        screened |= more
        outcomes = self._test(asked["test"], base["test"], contexts["test"], tried, best)
        seeds = self._method_seeds(learning, choosing, best, asked, measured, _of(outcomes, "after"))
        bound = self._upper_bound(asked["test"], base["test"], contexts["test"], refusal, best)
        timed = latency(
            self.engine, asked["test"].benign, best.candidate.routing, rounds=self.plan.latency_rounds,
            run=self.run, progress=self.bench.progress, max_new_tokens=self.scene.tokens, system=self.scene.system,
        )  # fmt: skip
        matrices = seeds["matrices"] if seeds else []
        results = {
            "schema": SCHEMA,
            "suite": self.suite.name,
            "seed": self.plan.seed,
            "small_n": len(_of(outcomes, "after").gain()[0]) < 100,
            "threat_model": "T3",
            "scenario": self.scene.section(),
            "judge": judge_section(self.judge),
            "model": model_section(self.engine),
            "notes": self.notes,
            **self.scene.room.section(),
            "splits": {split: asked[split].sizes() for split in SPLITS},
            "contexts": {split: self.scene.contexts_section(base[split], contexts[split]) for split in SPLITS},
            "surrogate": surrogate_section(surrogates, material, unseen, tested),
            "gap": gap,
            "baseline_validation": measured,
            "candidates": choosing.section(screened, tried, best, seconds),
            "chosen": {**best.candidate.to_json(), "admissible": not best.broken, "why": why},
            "circuit": self._circuit(best, matrices),
            "test": {name: self._tested(o, outcomes) for name, o in outcomes.items()},
            "comparisons": _comparisons(outcomes),
            "broken_on_test": broken_on_test(outcomes, self.limits),
            "overfit": {"validation": best.rates["gain"], "test": _of(outcomes, "after").rates()["gain"]},
            "upper_bound": bound,
            "latency": timed,
            "seeds": seeds["rows"] if seeds else None,
            "artefact": f"artefacts/{ARTEFACT}",
            "cost": self.bench.cost(),
            "provenance": {**provenance(), "created": datetime.now(UTC).isoformat(timespec="seconds")},
        }  # fmt: skip
        results["headline"] = headline(results)
        self._save(best, results)
        return results

    def _asked(self, split: Split) -> Asked:
        plan = self.plan
        most = {"discovery": plan.learn, "validation": plan.validate, "test": plan.limit}[split]
        held = most if most is None or split != "discovery" else max(1, most // 2)
        return self.scene.asked(split, most, held, plan.seed)

    def _write_contexts(self, contexts: Mapping[Split, Sequence[Context]]) -> None:
        rows = [c.to_json() for split in SPLITS for c in contexts[split]]
        self.run.write_text("artefacts/contexts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _material(
        self,
        asked: Asked,
        base: Outcome,
        contexts: Sequence[Context],
        goals: tuple[Sequence[Behaviour], Sequence[Attempt]],
        refusal: str,
    ) -> Material:
        store = self.scene.traced(contexts, "discovery")
        sigma = self.run.remember("sigma", lambda: [float(s) for s in store.stds()])
        self.sigma = tuple(sigma)
        turning = [c for c in contexts if self.scene.turns(c)]
        forks = self.scene.forks(turning, asked, refusal, "discovery", goals)
        guarded = tuple(n for n, c in enumerate(contexts) if self.scene.is_guarded(c))
        return Material(tuple(contexts), store, self.sigma, forks, self.scene.held(asked, base), guarded)

    def _learning(self, material: Material) -> Learning:
        return Learning(
            self.bench, self.engine, material, self.scene.scenario.grid.lambdas, system=self.scene.system,
            again=self.scene.again,
        )  # fmt: skip

    def _learn(self, learning: Learning) -> tuple[dict[int, Any], list[Found]]:
        """All matrices of the first seed, and the surrogates of all seeds."""
        plan, grid = self.plan, self.scene.scenario.grid
        first, founds = learning.on_surrogate(plan.seed)
        surrogates = {plan.seed: first}
        for seed in range(plan.seed + 1, plan.seed + plan.surrogate_seeds):
            surrogates[seed] = learning.fit(seed)
        return surrogates, self._refined(learning, plan.seed, founds, grid.refinements)

    def _refined(self, learning: Learning, seed: int, founds: list[Found], refinements: Sequence[str]) -> list[Found]:
        grid = self.scene.scenario.grid
        every = list(founds)
        if "on_policy" in refinements:
            every += learning.on_policy(seed, founds, grid.phases[0], self.plan.rounds)
        if "through_model" in refinements:
            steps = self.plan.steps_for(self.scene.scenario)
            phases = self.through_phases
            begin: dict[Start, Found | None] = {"zero": None}
            if "surrogate" in self.plan.through_starts:
                begin["surrogate"] = learning.strongest(founds, phases[0])
            every += [
                learning.through_model(seed, lambda_, hold, phase, steps, begin[start])
                for lambda_ in self.plan.lambdas_for(self.scene.scenario)
                for hold in self.plan.holds_for(self.scene.scenario)
                for phase in phases
                for start in self.plan.through_starts
            ]
        return [f for f in every if f.refinement in refinements]

    def _gap(self, founds: Sequence[Found], contexts: Sequence[Context]) -> list[dict[str, Any]]:
        """Surrogate turned (on discovery, where it was optimised), model turned (on validation), at alpha 1."""
        turning = [c for c in contexts if self.scene.turns(c)][:GAP]
        rows = []
        with self.bench.stage("gap", "Surrogate and model", len(founds) * len(turning)) as steps:
            for found in founds:
                phase = found.phase or self.scene.scenario.grid.phases[0]
                routing = found.routing(self.sigma, ALPHA, phase)
                labels = self.scene.again(turning, routing, f"gap/{found.name}", steps)
                rate = Rate.of([label == 0 for label in labels], [c.source for c in turning])
                rows.append(
                    {"refinement": found.refinement, "lambda": found.lambda_, "alpha": ALPHA, "phase": phase,
                     "surrogate_turned": found.turned, "model_turned": asdict(rate),
                     "entries": len(circuit(found.values)), "start": found.start, "hold": found.hold}
                )  # fmt: skip
        return rows

    def _test(
        self, asked: Asked, base: Outcome, contexts: Sequence[Context], tried: Sequence[Tried], best: Tried
    ) -> dict[str, Outcome | None]:
        fallen: list[Context | None] | None = None
        if self.scene.defends:
            by_id = {c.id: c for c in contexts if c.kind == "fallen"}
            fallen = [by_id.get(c.id) for c in asked.conversations]

        def again(name: str, candidate: Candidate | None, own: Outcome | None = None) -> Outcome | None:
            routing = candidate.routing if candidate is not None else None
            if candidate is None and own is None:
                return None
            title = f"Test: {name.replace('_', ' ')}"
            if own is not None:  # the unsteered model: only its last turns again, through the same pipeline
                part = replace(asked, scenario=(), restricted=(), benign=(), borderline=(), benign_conversations=())
                if fallen is None:
                    return own
                with self.bench.stage("test", title, 0) as steps:
                    verdicts = last_turns_again(
                        self.engine, part.conversations, fallen, self.judge, key=f"test/{name}/again", steps=steps,
                        max_new_tokens=self.scene.tokens, system=self.scene.system,
                    )  # fmt: skip
                return own.with_again(verdicts)
            key = f"test/{name}/{mark(routing)}" if routing else f"test/{name}"
            return self.scene.measure(asked, routing, key, title, fallen, "test")

        def chosen(method: str, refinement: str | None = None) -> Candidate | None:
            some = [t for t in tried if t.candidate.method == method and refinement in (None, t.candidate.refinement)]
            return choose(some)[0].candidate if some else None

        surrogate = chosen("mascing", "surrogate") if best.candidate.refinement != "surrogate" else None
        outcomes = {
            "before": again("before", None, base),
            "after": again("after", best.candidate),
            "steermoe": again("steermoe", chosen("steermoe")),
            "random": again("random", chosen("random")),
            "surrogate_only": again("surrogate_only", surrogate),
        }
        for name in ("before", "after"):
            note_outcome(self.bench, f"test/{name}", asked, _of(outcomes, name))
        return outcomes

    def _tested(self, outcome: Outcome | None, outcomes: Mapping[str, Outcome | None]) -> dict[str, Any] | None:
        """An outcome, with the limits that it breaks."""
        if outcome is None:
            return None
        before = _of(outcomes, "before").rates()
        return {**outcome.to_json(), "broken": broken_limits(outcome.rates(), before, self.limits)}

    def _method_seeds(
        self,
        learning: Learning,
        choosing: Choosing,
        best: Tried,
        asked: Mapping[Split, Asked],
        measured: Mapping[str, Any],
        after: Outcome,
    ) -> dict[str, Any] | None:
        """The chosen way of learning with other seeds, each with its own strength from validation, on test."""
        plan, chosen = self.plan, best.candidate
        if plan.method_seeds < 2:
            return None
        assert chosen.matrix is not None
        matrices, rows = [chosen.matrix], [_seed_row(plan.seed, chosen, chosen.matrix, after)]
        for seed in range(plan.seed + 1, plan.seed + plan.method_seeds):
            found = replace(self._again_with(learning, seed, chosen), seed=seed)
            tried = choosing.again(found, chosen, asked["validation"], measured)
            candidate = choose(tried)[0].candidate if tried else None  # None: all entries were cut
            routing = candidate.routing if candidate else Intervention()
            key = f"test/seed-{seed}/{mark(routing)}"
            outcome = self.scene.measure(asked["test"], routing, key, f"Test: seed {seed}", None, "seeds")
            matrices.append(found.values)
            rows.append(_seed_row(seed, candidate, found.values, outcome))
        return {"matrices": matrices, "rows": rows}

    def _again_with(self, learning: Learning, seed: int, chosen: Candidate) -> Found:
        """The matrix that another seed gives in the chosen way, at the same lambda and phase."""
        lambda_ = chosen.lambda_ or 0.0
        if chosen.refinement == "through_model" and chosen.start == "zero":
            begin = None
        else:
            _, founds = learning.on_surrogate(seed)
            if chosen.refinement == "on_policy":
                founds = learning.on_policy(seed, founds, self.scene.scenario.grid.phases[0], self.plan.rounds)
            if chosen.refinement != "through_model":
                return next(found for found in founds if found.lambda_ == lambda_)
            begin = learning.strongest(founds, self.through_phases[0])
        return learning.through_model(
            seed, lambda_, chosen.hold or 1.0, chosen.phase, self.plan.steps_for(self.scene.scenario), begin
        )

    def _upper_bound(
        self, asked: Asked, base: Outcome, contexts: Sequence[Context], refusal: str, best: Tried
    ) -> dict[str, Any] | None:
        """What a constant mask can reach when it is learnt on the very contexts that it is scored on."""
        if not self.plan.upper_bound:
            return None
        forks = self.scene.forks([c for c in contexts if self.scene.turns(c)], asked, refusal, "test")
        store = self.scene.traced(contexts, "test")
        material = Material(tuple(contexts), store, self.sigma, forks, self.scene.held(asked, base), ())
        learning = self._learning(material)
        phase = best.candidate.phase
        steps = self.plan.steps_for(self.scene.scenario)
        found = learning.through_model(
            self.plan.seed, self.plan.lambdas_for(self.scene.scenario)[0], self.plan.holds_for(self.scene.scenario)[0],
            phase, steps, None, key="upper_bound",
        )  # fmt: skip
        outcome = self.scene.measure(
            asked, found.routing(self.sigma, 1.0, phase), "test/upper_bound", "Test: upper bound", None, "upper_bound"
        )
        return {
            **outcome.rates(),
            "what": f"learnt through the model on the test contexts themselves, {steps} steps, alpha 1, {phase}: "
            "no result, but a bound for a constant mask found in this way",
            "entries": len(circuit(found.values)),
        }

    def _circuit(self, best: Tried, matrices: Sequence[Any]) -> dict[str, Any]:
        matrix = best.candidate.matrix
        assert matrix is not None
        entries = circuit(matrix)
        stability = None
        if len(matrices) > 1:
            table = [[round(jaccard(a, b), 4) for b in matrices] for a in matrices]
            pairs = [table[i][j] for i in range(len(table)) for j in range(i)]
            seeds = list(range(self.plan.seed, self.plan.seed + len(matrices)))
            stability = {"seeds": seeds, "jaccard": table, "mean": float(np.mean(pairs))}
        return {
            "entries": [{"layer": layer, "expert": expert, "value": value} for layer, expert, value in entries],
            "size": len(entries),
            "possible": sum(self.scene.experts),
            "layers": [float(np.abs(row).sum()) for row in matrix],
            "matrix": [[float(x) for x in row] for row in matrix],
            "sigma": list(self.sigma),
            "stability": stability,
        }

    def _save(self, best: Tried, results: Mapping[str, Any]) -> None:
        candidate = best.candidate
        assert candidate.matrix is not None
        assert candidate.alpha is not None
        before, after = results["test"]["before"], results["test"]["after"]
        names = {
            "gain": "conversations withstood (replayed)" if self.scene.defends else "scenario requests answered",
            "garbage": "garbage", "benign": "benign requests answered",
            "benign_conversations": "benign conversations answered", "over_refusal": "harmless requests refused",
            "held": "restricted requests refused",
        }  # fmt: skip
        about = {
            "scenario": self.scene.scenario.name, "objective": self.scene.scenario.objective, "method": "MASCing",
            "refinement": candidate.refinement, "lambda": candidate.lambda_, "seed": self.plan.seed,
            "suite": self.suite.name, "split_seed": self.plan.seed,
            "judge": f"{written_judge(self.judge)} {self.judge.version}",
            "within_limits_on_validation": not best.broken,
            "measured": [
                {"what": words, "before": before[name], "after": after[name]}
                for name, words in names.items()
                if before[name] is not None
            ],
        }  # fmt: skip
        steering = Steering(
            matrix=candidate.matrix, sigma=self.sigma, alpha=candidate.alpha, phase=candidate.phase,
            fingerprint=self.engine.info.fingerprint, base_model=self.engine.info.name,
            revision=self.engine.info.revision, about=about, weights=self.engine.weights,
        )  # fmt: skip
        self.run.artefact(f"{ARTEFACT}/{DATA}", lambda path: steering.save_pretrained(path.parent))


# ---------------------------------------------------------------------- small things


def _refuse_unable(engine: Engine, scenario: Scenario) -> None:
    """Refuse an engine that cannot carry out one of the kinds of mask that are tried."""
    layer, experts = engine.routers[0].layer, engine.routers[0].experts
    for phase in scenario.grid.phases:
        refuse_unable(engine, Intervention.bias({layer: [0.0] * experts}, phase=phase), f"A mask ({phase})")
        refuse_unable(engine, Intervention.pin({layer: [0]}, phase=phase), f"A pin ({phase})")


def headline(results: Mapping[str, Any]) -> str:
    """One sentence: what was gained on test, and what it cost."""
    scenario, before, after = results["scenario"], results["test"]["before"], results["test"]["after"]
    what = "conversations withstood" if scenario["objective"] == "defend" else "scenario requests answered"

    def percent(rate: Mapping[str, Any]) -> str:
        return f"{100 * rate['rate']:.0f} % [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"

    broken = results["broken_on_test"]
    words = ", ".join(name.replace("_", " ") for name in broken)
    kept = f"beyond the limits: {words}" if broken else "no limit is broken on the test split"
    return (
        f"{scenario['name']}: {what} {percent(before['gain'])} without and {percent(after['gain'])} with the mask "
        f"(n = {after['gain']['n']}); benign requests answered {percent(before['benign'])} and "
        f"{percent(after['benign'])} (n = {after['benign']['n']}); {kept}."
    )


def _seed_row(seed: int, candidate: Candidate | None, matrix: Sequence[np.ndarray], outcome: Outcome) -> dict[str, Any]:
    """What another seed of the method came to."""
    what = {"id": candidate.id, "alpha": candidate.alpha} if candidate else {"id": "zero", "alpha": None}
    return {"seed": seed, **what, **outcome.rates(), "entries": len(circuit(matrix))}


def note_outcome(bench: Bench, stage: str, asked: Asked, outcome: Outcome) -> None:
    """Keep what was said for the completions file."""
    for part in ("scenario", "restricted", "benign", "borderline"):
        bench.note(f"{stage}/{part}", getattr(asked, part), getattr(outcome, part))
    for name, played in (("conversations", outcome.played), ("benign_conversations", outcome.harmless)):
        for c, p in zip(getattr(asked, name), played, strict=True):
            turn = len(p.responses) - 1 if p.fallen is None else p.fallen
            bench.completions.append(
                {"stage": f"{stage}/{name}", "id": c.id, "category": c.category, "tactic": c.tactic,
                 "prompt": " / ".join(c.turns[: turn + 1]), "response": p.responses[turn],
                 "label": p.verdicts[turn].label, "reason": p.verdicts[turn].reason}
            )  # fmt: skip


def _of(outcomes: Mapping[str, Outcome | None], name: str) -> Outcome:
    outcome = outcomes[name]
    assert outcome is not None
    return outcome


def _comparisons(outcomes: Mapping[str, Outcome | None]) -> dict[str, Any]:
    after = _of(outcomes, "after")
    found = compared(after, _of(outcomes, "before"))
    for name in ("steermoe", "random", "surrogate_only"):
        other = outcomes[name]
        found[f"vs_{name}"] = None if other is None else asdict(gains_compared(after, other))
    return found


def broken_on_test(outcomes: Mapping[str, Outcome | None], limits: Mapping[str, float]) -> list[str]:
    return broken_limits(_of(outcomes, "after").rates(), _of(outcomes, "before").rates(), limits)
