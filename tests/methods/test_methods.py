"""What the methods promise beyond the papers' loops: streams, units, phases, ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines import behaviours, small_engine
from judging import OneByOne
from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.hf import HFEngine
from pointsman.errors import UsageError
from pointsman.judges.types import Answer, Verdict
from pointsman.methods.attempts import ask, ask_in_steps
from pointsman.methods.fsour import FSour
from pointsman.methods.masking import Masking
from pointsman.methods.rosais import RoSais
from pointsman.methods.steps import Steps, stream


class AlwaysJudge(OneByOne):
    """Says one thing."""

    name, version, grades_content = "always", "1", True

    def __init__(self, label: str) -> None:
        self.label = label
        self.asked = 0

    def one(self, asked: Behaviour | Conversation, answer: Answer) -> Verdict:
        self.asked += 1
        return Verdict(self.label, 1.0 if self.label == "correct" else 0.0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def test_a_stream_depends_on_its_key_alone() -> None:
    first = stream(0, "fsour", "a", 0, 1, 2).random(4)
    stream(1, "other").random(100)
    assert np.array_equal(first, stream(0, "fsour", "a", 0, 1, 2).random(4))
    for other in ((1, "fsour", "a", 0, 1, 2), (0, "fsour", "b", 0, 1, 2), (0, "fsour", "a", 0, 2, 1)):
        assert not np.array_equal(first, stream(*other).random(4))


def test_candidates_depend_on_nothing_else_and_are_selectable(engine: HFEngine) -> None:
    method, behaviour = FSour(candidates=50, seed=7), behaviours(1)[0]
    sets = method.candidate_sets(engine, behaviour, 1, 2, 3)
    assert sets.shape == (50, 2)
    assert np.array_equal(sets, FSour(candidates=50, seed=7, restarts=9).candidate_sets(engine, behaviour, 1, 2, 3))
    assert all(engine.routers[2].selectable(row) for row in sets.tolist())
    assert not np.array_equal(sets, method.candidate_sets(engine, behaviour, 2, 2, 3))


def test_success_ends_the_restarts_and_failure_uses_all(engine: HFEngine) -> None:
    asked = behaviours(2)
    won = FSour(candidates=2, restarts=3, log_tau=-70.0, max_new_tokens=2).search(engine, asked, AlwaysJudge("correct"))
    lost = FSour(candidates=2, restarts=3, log_tau=-70.0, max_new_tokens=2).search(engine, asked, AlwaysJudge("wrong"))
    assert [len(r.searches) for r in won] == [1, 1]
    assert [len(r.searches) for r in lost] == [3, 3]
    assert all(r.base.verdict.success for r in won)  # base success is told apart from the route's
    assert lost[0].best.after == max(s.after for s in lost[0].searches)
    routes = [s.route() for s in lost[0].searches]
    assert len(set(routes)) == 3


def test_a_group_searches_like_one_alone(engine: HFEngine) -> None:
    asked = behaviours(3)
    options: dict[str, Any] = dict(candidates=2, restarts=2, log_tau=-75.0, max_new_tokens=2)
    alone = FSour(**options).search(engine, asked, AlwaysJudge("wrong"))
    grouped = FSour(**options, together=3).search(engine, asked, AlwaysJudge("wrong"))
    for a, b in zip(alone, grouped, strict=True):
        assert [s.route() for s in a.searches] == [s.route() for s in b.searches]
        assert [s.attempt.response for s in a.searches] == [s.attempt.response for s in b.searches]
        assert [s.cost["rows"] for s in a.searches] == [s.cost["rows"] for s in b.searches]


def test_min_gain_makes_routes_sparser(engine: HFEngine) -> None:
    asked = behaviours(1)
    every = FSour(candidates=4, restarts=1).find_routes(engine, asked, 0)[0][1]
    strict = FSour(candidates=4, restarts=1, min_gain=1.0).find_routes(engine, asked, 0)[0][1]
    assert 0 < len(strict) < len(every)
    gains = np.diff([s.log_prob for s in strict])
    assert (gains > 1.0).all()


def test_units_are_remembered_and_not_done_again(engine: HFEngine) -> None:
    memory: dict[str, Any] = {}
    done: list[int] = []

    def remember(key: str, compute: Any) -> Any:
        if key not in memory:
            memory[key] = compute()
        return memory[key]

    asked, method = behaviours(2), RoSais(samples=2)
    first = method.rank(engine, asked, steps=Steps(remember, done.append))
    before = engine.cost.copy()
    steps = Steps(remember, done.append)
    again = method.rank(engine, asked, steps=steps)
    assert (engine.cost - before).forwards == 0
    assert again.scores.tolist() == first.scores.tolist()
    assert steps.cost()["forwards"] > 0  # the cost is that of the units, also when they were recalled
    assert done == [2, 2]


def test_masking_keeps_the_mask_of_highest_probability(engine: HFEngine) -> None:
    asked, method = behaviours(2), Masking(samples=6, max_new_tokens=3)
    result = method.search(engine, asked, AlwaysJudge("wrong"), [2, 0])
    assert result.layers == (0, 2)
    for n, behaviour in enumerate(asked):
        masks = method.masks(engine, behaviour, (0, 2))
        prompt, target = engine.encode(behaviour.turns), engine.encode_target(behaviour.target)[:1]
        scores = [engine.score([prompt], [target], routing=mask)[0].first for mask in masks]
        assert result.chosen[n] == int(np.argmax(scores))
        expected = engine.generate([prompt], routing=masks[result.chosen[n]], max_new_tokens=3)[0]
        assert result.attempts[n].response == expected.text


def test_masks_cover_only_the_layers_and_the_phase(engine: HFEngine) -> None:
    mask = Masking(samples=1, phase="prefill").masks(engine, behaviours(1)[0], (1,))[0]
    (rule,) = mask.rules
    assert (rule.layers, rule.where.phase) == ((1,), "prefill")


def test_no_layers_is_the_model_as_it_is(engine: HFEngine) -> None:
    asked = behaviours(2)
    masked = Masking(max_new_tokens=3).search(engine, asked, AlwaysJudge("wrong"), [])
    plain = ask(engine, asked, AlwaysJudge("wrong"), max_new_tokens=3)
    assert list(masked.attempts) == plain


def test_asking_in_steps_is_asking(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.methods.steps.CHUNK", 2)
    asked = behaviours(5)
    steps = Steps()
    stepwise = ask_in_steps(engine, asked, AlwaysJudge("wrong"), key="x", steps=steps, max_new_tokens=3)
    assert stepwise == ask(engine, asked, AlwaysJudge("wrong"), max_new_tokens=3)
    assert list(steps.spent) == ["x/0", "x/2", "x/4"]


def test_scores_of_target_and_scales(engine: HFEngine) -> None:
    asked = behaviours(2)
    logs = RoSais(samples=2, score="target", scale="log_probability").rank(engine, asked)
    prompt, target = engine.encode(asked[0].turns), engine.encode_target(asked[0].target)
    assert logs.base[0] == pytest.approx(engine.score([prompt], [target])[0].total, abs=1e-9)
    probabilities = RoSais(samples=2).rank(engine, asked)
    assert (probabilities.base > 0).all()
    assert probabilities.scores.shape == (2, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FSour(candidates=0),
        lambda: FSour(restarts=0),
        lambda: FSour(log_tau=0.1),
        lambda: FSour(min_gain=-1.0),
        lambda: FSour(together=0),
        lambda: RoSais(samples=0),
        lambda: Masking(samples=0),
        lambda: RoSais().rank(small_engine(), []),
    ],
)
def test_parameters_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(UsageError):
        make()
