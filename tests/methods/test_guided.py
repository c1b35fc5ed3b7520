"""Guided search: the literal loop, grouping, pruning, targets, memory, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from engines import behaviours, small_engine
from judging import OneByOne
from oracle import loops
from plain_engine import PlainEngine
from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.hf import HFEngine
from pointsman.errors import UsageError
from pointsman.judges.types import Answer, Verdict
from pointsman.methods.fsour import FSour
from pointsman.methods.guided import Guided
from pointsman.methods.steps import Steps

FAR = -1e-9  # no untrained model gets there
NEAR = -75.0  # one gets there with a few pairs
ANSWER = 2


class Never(OneByOne):
    """Calls nothing a success."""

    name, version, grades_content = "never", "1", True

    def one(self, asked: Behaviour | Conversation, answer: Answer) -> Verdict:
        return Verdict("wrong", 0.0)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def before(engine: HFEngine, behaviour: Behaviour) -> float:
    (score,) = engine.score([engine.encode(behaviour.turns)], [engine.encode_target(behaviour.target)])
    return score.total


def literal(engine: HFEngine, behaviour: Behaviour, method: Guided) -> tuple[loops.Route, float]:
    """The same by the literal loop: scores from the untouched model, sets by trying all of them."""
    prompt, target = engine.encode(behaviour.turns), engine.encode_target(behaviour.target)

    def promising(route: loops.Route) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
        from pointsman.routing.intervention import Intervention

        forced = Intervention.force(dict(route), phase="prefill") if route else None
        (gradient,) = engine.route_gradients([prompt], [target], routing=[forced])
        found = []
        for router, layer in zip(engine.routers, gradient.layers, strict=True):
            sets = list(combinations(range(router.experts), router.top_k))
            gains = np.stack([layer.gain(each) for each in sets])  # shape: [sets, T]
            for token in range(len(prompt)):
                best = sets[int(gains[:, token].argmax())]
                gain = float(gains[:, token].max())
                if gain > 0 and tuple(route.get((router.layer, token), ())) != best:
                    found.append((-gain, (router.layer, token), best))
        return [(pair, experts) for _, pair, experts in sorted(found)]

    return loops.guided(
        lambda route: loops.log_prob(engine.model, prompt.ids, target, route),
        promising,
        log_tau=method.log_tau, iterations=method.iterations, joint=method.joint, singles=method.singles,
        min_gain=method.min_gain,
    )  # fmt: skip


@pytest.mark.parametrize("gain", [1.0, 4.0, math.inf])
def test_a_route_is_that_of_the_literal_loop(engine: HFEngine, gain: float) -> None:
    """To an aim that a pair or two reach, to one that takes more, and to one that is out of reach."""
    for behaviour in behaviours(2):
        aim = min(before(engine, behaviour) + gain, FAR)
        method = Guided(log_tau=aim, iterations=3, joint=8, singles=4)
        ((start, steps, _),) = method.find_routes(engine, [behaviour], 0)
        route, total = literal(engine, behaviour, method)
        assert {(s.layer, s.position): s.experts for s in steps} == route
        assert steps[-1].log_prob == pytest.approx(total, abs=1e-8)
        assert total > start
        assert (total >= aim) == (gain < math.inf)


def test_what_is_said_of_a_route_is_exact_and_every_pair_is_needed(engine: HFEngine) -> None:
    asked = behaviours(3)
    aims = [before(engine, b) + 3 for b in asked]
    for behaviour, aim in zip(asked, aims, strict=True):
        prompt, target = engine.encode(behaviour.turns), engine.encode_target(behaviour.target)
        ((_, steps, _),) = Guided(log_tau=aim).find_routes(engine, [behaviour], 0)
        ((_, whole, _),) = Guided(log_tau=aim, prune=False).find_routes(engine, [behaviour], 0)
        route = {(s.layer, s.position): s.experts for s in steps}
        assert route.items() <= {(s.layer, s.position): s.experts for s in whole}.items()
        exact = loops.log_prob(engine.model, prompt.ids, target, route)
        assert steps[-1].log_prob == pytest.approx(exact, abs=1e-9)
        assert exact >= aim
        for without in route if len(route) > 1 else ():
            less = {pair: experts for pair, experts in route.items() if pair != without}
            assert loops.log_prob(engine.model, prompt.ids, target, less) < aim


def test_fewer_forwards_find_more_than_blind_draws(engine: HFEngine) -> None:
    asked = behaviours(4)
    guided = Guided(log_tau=FAR, iterations=4).find_routes(engine, asked, 0)
    blind = FSour(candidates=10, restarts=1, log_tau=FAR).find_routes(engine, asked, 0)
    assert sum(f.rows for f in guided) < sum(f.rows for f in blind)
    assert np.mean([f.steps[-1].log_prob for f in guided]) > np.mean([f.steps[-1].log_prob for f in blind])


@pytest.mark.parametrize(("rows", "together"), [(None, 4), (1, 1), (7, 2)])
def test_neither_batches_nor_groups_change_a_route(rows: int | None, together: int) -> None:
    asked = behaviours(4)
    usual = Guided(restarts=1, log_tau=NEAR, max_new_tokens=ANSWER)
    known = usual.search(small_engine(), asked, Never())
    found = replace(usual, together=together).search(small_engine(batch_size=rows), asked, Never())
    for one, other in zip(known, found, strict=True):
        assert one.best.route() == other.best.route()
        assert one.best.attempt.response == other.best.attempt.response
        assert one.best.after == pytest.approx(other.best.after, abs=1e-8)
        assert one.best.cost["rows"] == pytest.approx(other.best.cost["rows"])


def test_the_end_of_the_search_is_where_it_is_aimed(engine: HFEngine) -> None:
    (behaviour,) = behaviours(1)
    start = before(engine, behaviour)
    ((_, steps, rows),) = Guided(log_tau=min(start - 1, 0)).find_routes(engine, [behaviour], 0)
    assert (steps, rows) == ((), 1), "it is there without a route"
    ((_, steps, _),) = Guided(min_gain=1e3, log_tau=FAR).find_routes(engine, [behaviour], 0)
    assert steps == (), "nothing gains so much"
    lengths = [len(Guided(log_tau=start + more).find_routes(engine, [behaviour], 0)[0].steps) for more in (0.5, 3.0)]
    assert 0 < lengths[0] <= lengths[1]


def test_restarts_aim_at_the_targets_in_turn_and_end_with_them(engine: HFEngine) -> None:
    first, second = behaviours(2)
    more = replace(first, targets=("take the",))
    method = Guided(restarts=5, iterations=1, max_new_tokens=ANSWER)
    assert [method.aimed(more, r) for r in range(3)] == [first.target, "take the", first.target]
    both, one = method.search(engine, [more, second], Never())
    assert [s.restart for s in both.searches] == [0, 1]
    prompt = engine.encode(first.turns)
    wanted = [engine.score([prompt], [engine.encode_target(t)])[0].total for t in (first.target, "take the")]
    assert [s.before for s in both.searches] == pytest.approx(wanted, abs=1e-9)
    assert len(one.searches) == 1, "nothing is drawn: the same target would give the same route"


def test_every_restart_of_a_group_is_remembered(engine: HFEngine) -> None:
    memory: dict[str, Any] = {}

    def remember(key: str, compute: Callable[[], Any]) -> Any:
        if key not in memory:
            memory[key] = compute()
        return memory[key]

    asked = behaviours(3)
    method = Guided(together=2, iterations=1, max_new_tokens=ANSWER)
    done: list[int] = []
    first = method.search(engine, asked, Never(), steps=Steps(remember, done.append))
    assert set(memory) == {"guided/0/base", "guided/0/0", "guided/2/base", "guided/2/0"}
    assert sum(done) == 3
    spent = engine.cost.copy()
    again = method.search(engine, asked, Never(), steps=Steps(remember, done.append))
    assert (engine.cost - spent).forwards == 0
    assert again == first
    del memory["guided/2/0"]
    assert [r.best.route() for r in method.search(engine, asked, Never(), steps=Steps(remember, done.append))] == [
        r.best.route() for r in first
    ]


@pytest.mark.parametrize(
    "wrong", [{"iterations": 0}, {"joint": 0}, {"restarts": 0}, {"together": 0}, {"log_tau": 0.1}, {"min_gain": -1.0},
              {"singles": -1}, {"phase": "decode"}]
)  # fmt: skip
def test_parameters_that_search_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Guided(**wrong)


def test_an_engine_without_gradients_is_refused_by_name() -> None:
    engine = PlainEngine()
    with pytest.raises(UsageError, match=r"cannot be searched by its gradient: its engine \(PlainEngine\) has none"):
        Guided().search(engine, behaviours(1), Never())
