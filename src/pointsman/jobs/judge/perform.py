"""Judge the answers of a run again: nothing is generated, and the model is not loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pointsman.errors import RunError
from pointsman.jobs.judge.claims import conclude
from pointsman.jobs.judge.plan import JudgeAgain
from pointsman.jobs.judge.question import JudgeQuestion
from pointsman.jobs.judge.results import JudgedRun, JudgeResults, StageTwice
from pointsman.judges.types import Judge, Verdict, judged, tells_garbage
from pointsman.methods.attempts import refuse_other_answers
from pointsman.methods.steps import Steps
from pointsman.runs.answers import VERDICTS, KeptAnswer, kept_name, written_verdicts
from pointsman.runs.bench import Bench
from pointsman.runs.likelihood import UNLIKELY
from pointsman.runs.results import JudgeFacts, Provenance, dump
from pointsman.runs.run import Run
from pointsman.stats.agreement import Agreement, Confusion
from pointsman.stats.paired import compare
from pointsman.stats.rates import Rate

CHUNK = 32
"""Answers in one stored unit: no more are lost where an endpoint dies."""
LABELS = ("refused", "complied", "correct", "wrong", "garbage", "unscored")


def perform(plan: JudgeAgain, bench: Bench[JudgeQuestion]) -> JudgeResults:
    """Do (or finish) the judging; writes ``artefacts/verdicts.jsonl`` and, last, ``results.json``."""
    question, run = bench.question, bench.run
    answers = question.kept.answers
    distinct = {_what(answer): answer for answer in answers}
    bench.say(
        f"Judging {len(answers)} answers of {question.kept.folder} ({len(distinct)} of them differ) with "
        f"{bench.judge.name}; writing to {run.folder}"
    )
    for note in question.kept.notes():
        bench.note(note)
    bench.foretell_judging(len(distinct))
    with bench.stage("judge", "Judging", len(distinct)) as steps:
        found = dict(zip(distinct, _judge(bench.judge, list(distinct.values()), steps), strict=True))
    now = [answer.verdict if _set_apart(bench.judge, answer) else found[_what(answer)] for answer in answers]

    text = written_verdicts(bench.judge, answers, now)
    run.write_text(VERDICTS, text)
    if plan.keep:
        _keep_with_run(bench, text)
    before = [answer.verdict for answer in answers]
    results = conclude(
        JudgeResults(
            job="judge",
            suite=question.of.suite,
            seed=plan.seed,
            small_n=question.of.small_n,
            threat_model=question.of.threat_model,
            judge=JudgeFacts.of(bench.judge),
            model=question.of.model,
            notes=question.kept.notes(),
            judged=JudgedRun(
                name=question.kept.folder.resolve().name, job=question.of.job, answers=len(answers),
                distinct=len(distinct), stages=len(question.kept.stages), digest=question.digest,
            ),
            before=question.of.judge,
            stages=tuple(_stage(name, answers, now, plan.seed) for name in question.kept.stages),
            agreement=on_success(answers, before, now, plan.seed),
            confusion=Confusion.of([v.label for v in before], [v.label for v in now], LABELS),
            unscored=sum(verdict.label == "unscored" for verdict in now),
            cost=bench.cost(),
            provenance=Provenance.of(bench.command),
        )
    )  # fmt: skip
    run.write_results(dump(results))  # last: a run that has its results is finished
    return results


def on_success(
    answers: Sequence[KeptAnswer], a: Sequence[Verdict | None], b: Sequence[Verdict | None], seed: int = 0
) -> Agreement:
    """How far two judges agree on what is a success, of the answers that both scored."""
    both = [n for n in range(len(answers)) if _scored(a[n]) and _scored(b[n])]
    first, second = ([success(verdicts[n]) for n in both] for verdicts in (a, b))
    return Agreement.of(first, second, [answers[n].asked.source for n in both], seed)


def success(verdict: Verdict | None) -> bool:
    """Was the request met?"""
    return verdict is not None and verdict.success


def _scored(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.score is not None


def _what(answer: KeptAnswer) -> Any:
    """All that a judge may read: where it is the same, so is the verdict."""
    return answer.asked, answer.answer


def _set_apart(judge: Judge, answer: KeptAnswer) -> bool:
    """Whether the model found it unlikely when the run was made: that stands before every judge, as it did then."""
    return answer.verdict.reason.startswith(UNLIKELY) and not tells_garbage(judge)


def _judge(judge: Judge, answers: Sequence[KeptAnswer], steps: Steps) -> list[Verdict]:
    """The verdicts on some answers, in stored units of `CHUNK`."""
    found: list[Verdict] = []
    for start in range(0, len(answers), CHUNK):
        chunk = answers[start : start + CHUNK]

        def compute(chunk: Sequence[KeptAnswer] = chunk) -> dict[str, Any]:
            began = time.perf_counter()
            verdicts = judged(judge, [a.asked for a in chunk], [a.answer for a in chunk])
            spent = {"forwards": 0, "tokens": 0, "token_layers": 0, "seconds": round(time.perf_counter() - began, 3)}
            return {"answers": [a.id for a in chunk], "verdicts": [asdict(v) for v in verdicts], "cost": spent}

        key = f"judge/{start}"
        unit = steps.remember(key, compute)
        refuse_other_answers(key, unit["answers"], [a.id for a in chunk])
        steps.spent[key] = unit["cost"]
        steps.advance(len(chunk))
        found += [Verdict(**verdict) for verdict in unit["verdicts"]]
    return found


def _stage(name: str, answers: Sequence[KeptAnswer], verdicts: Sequence[Verdict], seed: int) -> StageTwice:
    rows = [n for n, answer in enumerate(answers) if answer.stage == name]
    here, now = [answers[n] for n in rows], [verdicts[n] for n in rows]
    before = [answer.verdict for answer in here]
    both = [n for n in range(len(here)) if _scored(before[n]) and _scored(now[n])]
    sources = [here[n].asked.source for n in both]
    flags_before, flags_now = ([success(verdicts[n]) for n in both] for verdicts in (before, now))
    return StageTwice(
        stage=name,
        before=Rate.of(flags_before, sources, seed),
        now=Rate.of(flags_now, sources, seed),
        difference=compare(flags_now, flags_before, sources, seed),
        agreement=on_success(here, before, now, seed),
        unscored_before=sum(verdict.label == "unscored" for verdict in before),
        unscored=sum(verdict.label == "unscored" for verdict in now),
    )


def _keep_with_run(bench: Bench[JudgeQuestion], text: str) -> None:
    """Keep the verdicts in the folder of the judged run, too: its journal knows of the file, all else stays."""
    try:
        with Run.open(bench.question.kept.folder) as run:
            run.write_text(kept_name(bench.judge), text)
    except RunError as error:
        bench.note(f"the verdicts are not kept with the judged run: {error.problem}")
