"""The likelihood test in front of a judge, on the testbed, whose exact judge says what garbage is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import small_engine
from judging import OneByOne
from pointsman.data.types import Behaviour
from pointsman.engine.hf import HFEngine
from pointsman.engine.load import load
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.judges.making import parameters_of, written_judge
from pointsman.judges.refusal import RefusalJudge
from pointsman.judges.types import Judge, Verdict, judged
from pointsman.methods.attempts import ask
from pointsman.methods.steps import compute_fresh
from pointsman.routing.intervention import Intervention
from pointsman.routing.phase import Phase
from pointsman.runs.bench import Bench
from pointsman.runs.likelihood import FEWEST, KEY, UNLIKELY, UnlikelyAnswersApart
from pointsman.runs.run import Run
from pointsman.testbed.language import Kind, requests
from pointsman.testbed.models import locate
from pointsman.testbed.plugin import TestbedJudge, load_suite


def asked(kind: Kind, count: int) -> list[Behaviour]:
    return [
        Behaviour(r.id, r.text, r.target, r.category, r.source, "test") for r in requests(kind, "test", limit=count)
    ]


@pytest.fixture(scope="module")
def testbed() -> HFEngine:
    return load(str(locate("testbed")))


def apart(
    engine: Any, benign: int = 16, judge: Judge | None = None, remember: Any = compute_fresh
) -> UnlikelyAnswersApart:
    return UnlikelyAnswersApart(judge or RefusalJudge(), engine, asked("benign", benign), remember, 32)


def random_bias(engine: HFEngine, scale: float, phase: Phase = "both") -> Intervention:
    rng = np.random.default_rng(7)
    biases = {r.layer: (scale * rng.standard_normal(r.experts)).tolist() for r in engine.routers}
    return Intervention.bias(biases, phase=phase)


def test_salad_of_a_random_mask_is_garbage_and_right_answers_are_not(testbed: HFEngine) -> None:
    prompts, judge, exact = [*asked("restricted", 24), *asked("benign", 24)], apart(testbed), TestbedJudge()
    found: Counter[tuple[str, bool]] = Counter()
    phases: list[tuple[float, Phase]] = [(1.0, "both"), (2.0, "both"), (4.0, "both"), (4.0, "prefill"), (0.0, "both")]
    for scale, phase in phases:
        read = [testbed.encode(b.turns) for b in prompts]
        said = testbed.generate(read, routing=random_bias(testbed, scale, phase), max_new_tokens=32)
        truth = judged(exact, prompts, said)
        ours = judged(judge, prompts, said, read)
        found.update((t.label, v.label == "garbage") for t, v in zip(truth, ours, strict=True))
    salad, missed = found["garbage", True], found["garbage", False]
    assert salad + missed >= 60
    assert salad >= 0.8 * (salad + missed), found
    assert found["correct", True] == 0
    assert found["correct", False] >= 40
    assert found["refused", True] == 0


def test_the_models_own_benign_answers_stay(testbed: HFEngine) -> None:
    attempts = ask(testbed, asked("benign", 40), apart(testbed), max_new_tokens=32)
    assert {a.verdict.label for a in attempts} <= {"complied", "refused"}
    assert sum(a.verdict.success for a in attempts) >= 38


@pytest.mark.parametrize(("family", "seed"), [("olmoe", 0), ("mixtral", 0), ("qwen3_moe", 0)])
def test_an_untrained_model_answers_nothing(family: str, seed: int) -> None:
    engine = small_engine(family, seed=seed)
    judge = apart(engine)
    attempts = ask(engine, asked("restricted", 50), judge, max_new_tokens=32)
    assert not any(a.verdict.success for a in attempts)
    assert judge.note([]).startswith("The model finds even its own answers to benign requests unlikely")


def test_with_few_answers_of_its_own_nothing_is_tested(testbed: HFEngine) -> None:
    judge = apart(testbed, benign=FEWEST - 1)
    routing = random_bias(testbed, 4.0)
    attempts = ask(testbed, asked("restricted", 8), judge, routing=routing, max_new_tokens=32)
    assert not any(a.verdict.reason.startswith(UNLIKELY) for a in attempts)
    assert judge.note([]).startswith("Answers were not tested")


class Guard(OneByOne):
    name, version, grades_content, tells_garbage = "guard", "7", False, False
    asked = 0

    def one(self, asked: Any, answer: Any) -> Verdict:
        Guard.asked += 1
        return Verdict("complied", 1.0)


def test_it_passes_for_the_judge_that_it_stands_before(testbed: HFEngine) -> None:
    guard = Guard()
    judge = apart(testbed, judge=guard)
    assert isinstance(judge, Judge)
    assert (judge.name, judge.version, judge.grades_content, judge.reads) == ("guard", "7", False, guard.reads)
    assert parameters_of(judge) == parameters_of(guard) == {}
    assert written_judge(judge) == "guard"


def test_a_judge_is_not_asked_of_what_is_set_apart(testbed: HFEngine) -> None:
    Guard.asked = 0
    attempts = ask(
        testbed,
        asked("restricted", 8),
        apart(testbed, judge=Guard()),
        routing=random_bias(testbed, 4.0),
        max_new_tokens=32,
    )
    assert Guard.asked == sum(a.verdict.label == "complied" for a in attempts) < 8


def test_a_run_asks_for_own_answers_once_and_exact_judges_stay_alone(testbed: HFEngine, tmp_path: Path) -> None:
    suite = load_suite()
    with Run.create(tmp_path / "run", "audit", {}) as run:
        bench = Bench(testbed, AuditQuestion(suite, TestbedJudge()), run, max_new_tokens=32)
        bench.set_unlikely_answers_apart()
        assert isinstance(bench.judge, TestbedJudge)
        assert bench.notes_on_likelihood() == []
        bench = Bench(testbed, AuditQuestion(suite, RefusalJudge()), run, max_new_tokens=32)
        bench.set_unlikely_answers_apart()
        assert bench.notes_on_likelihood() == []
        routing = random_bias(testbed, 4.0)
        attempts = ask(testbed, asked("restricted", 8), bench.judge, routing=routing, max_new_tokens=32)
        bench.keep_answers("masking", asked("restricted", 8), attempts)
        assert KEY in run
        count = sum(a.verdict.reason.startswith(UNLIKELY) for a in attempts)
        assert count > 0
        (note,) = bench.notes_on_likelihood()
        assert f"{count} answer" in note
        again = Bench(testbed, AuditQuestion(suite, RefusalJudge()), run, max_new_tokens=32)
        again.set_unlikely_answers_apart()
        before = testbed.cost.copy()
        assert again.likelihood is not None
        assert again.likelihood.own == bench.likelihood.own  # type: ignore[union-attr]
        assert testbed.cost.forwards == before.forwards
