"""The forecast: its formulas against literal loops and against what an engine really counts."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines import behaviours, small_engine
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.engine.hf import HFEngine
from pointsman.engine.pace import Effort, Shape, generation_effort
from pointsman.engine.types import Cost
from pointsman.jobs.audit import forecast as forecasting
from pointsman.jobs.audit.forecast import (
    WORST,
    Assumed,
    Lengths,
    Sizes,
    forecast,
    fsour_effort,
    guided_effort,
    masking_effort,
    predict,
    rosais_effort,
    screen_effort,
    search_effort,
)
from pointsman.jobs.audit.perform import perform
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.route_attacks import RouteAttacks
from pointsman.methods.fsour import FSour
from pointsman.methods.guided import Guided
from pointsman.methods.masking import Masking
from pointsman.methods.rosais import RoSais
from pointsman.methods.screen import Screen
from pointsman.runs.bench import Bench
from pointsman.runs.forecast import answers_effort
from pointsman.runs.results import Forecast
from pointsman.runs.run import FORECAST, Run
from pointsman.testbed.plugin import TestbedJudge, load_suite
from works import OneJudge

BOTH = RouteAttacks(True, 9.5)
DEEP = Shape(5, (1, 3, 4), 10_000)  # a first dense layer, another between


@lru_cache
def engine() -> HFEngine:
    return small_engine(dtype=torch.float32)


def spent(run: Any) -> Cost:
    before = engine().cost.copy()
    run()
    return engine().cost - before


def test_many_prompts_are_answered_in_units() -> None:
    assert answers_effort(DEEP, [7, 4], 3) == generation_effort(DEEP, [7, 4], 3)
    assert answers_effort(DEEP, [4] * 129, 3).forwards == 6  # two units
    assert answers_effort(DEEP, [], 3) == Effort()


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("from_token", [True, False])
def test_a_whole_search_against_a_loop(together: int, from_token: bool) -> None:
    shape = replace(DEEP, from_token=from_token)
    asked = Lengths((6, 4, 5), (3, 3, 1))
    tokens = token_layers = forwards = 0
    for start in range(0, 3, together):
        group = range(start, min(start + together, 3))
        ends = {b: asked.prompts[b] + asked.targets[b] - 1 for b in group}
        tokens += len(group) * max(ends.values())  # rows are padded
        token_layers += len(group) * max(ends.values()) * 5
        forwards += 1
        for t in range(max(asked.prompts[b] for b in group)):
            for layer in (1, 3, 4):
                tried = [b for b in group if t < asked.prompts[b]]
                if from_token and layer == 4:
                    tried = [b for b in tried if t == asked.prompts[b] - 1]
                forwards += bool(tried)
                for _ in range(10 * len(tried)):
                    length = max(ends[b] for b in tried) - (t if from_token else 0)
                    tokens += length
                    token_layers += length * (5 - layer)
    effort = search_effort(shape, asked, 10, together, 1.0)
    assert (effort.tokens, effort.token_layers, effort.forwards) == (tokens, token_layers, forwards)


def test_a_share_of_a_search_is_less_and_a_group_waits_for_its_longest() -> None:
    asked = Lengths((6,) * 4, (3,) * 4)
    whole, half = (search_effort(DEEP, asked, 10, 1, share) for share in (1.0, 0.5))
    assert 0.5 < half.token_layers / whole.token_layers < 0.7  # early tokens cost more
    assert half.forwards < search_effort(DEEP, asked, 10, 4, 0.5).forwards * 4 < whole.forwards
    assert search_effort(DEEP, asked, 10, 4, 0.5).token_layers == pytest.approx(half.token_layers)


def test_restarts_and_answers_of_fsour() -> None:
    asked = Lengths((6,), (3,))
    once = search_effort(DEEP, asked, 10, 1, 1.0)
    answer = generation_effort(DEEP, asked.prompts, 7)
    most = fsour_effort(DEEP, asked, 10, 1, 5, 7, WORST)
    assert most.tokens == pytest.approx(5 * once.tokens + 6 * answer.tokens)
    single = fsour_effort(DEEP, asked, 10, 1, 1, 7, Assumed(searched=1.0, answered=3 / 7))
    plain = generation_effort(DEEP, asked.prompts, 3)  # under the route it takes all 7
    assert single.tokens == pytest.approx(once.tokens + plain.tokens + answer.tokens)  # no more restarts than allowed


def test_a_guided_search_against_a_loop() -> None:
    """A score; an iteration of a gradient and five joint tries; three halvings; a row for every pair to leave out."""
    shape, asked, method = replace(DEEP, batch=1000), Lengths((6, 4, 5), (3, 3, 1)), Guided(joint=16, together=2)
    tokens = token_layers = forwards = 0.0
    for group in ((0, 1), (2,)):
        end = max(asked.prompts[b] + asked.targets[b] - 1 for b in group)
        rows = [len(group) * end] * (1 + 1 + 1 + 5 + 3 + 4)  # score, gradient, without a route, tries, halvings, pairs
        tokens, forwards = tokens + sum(rows), forwards + len(rows)
        token_layers += 5 * rows[0] * (1 + 9.5 + 1 + 3 + 4)
        for number in (1, 2, 4, 8, 16):  # from the first layer of so many on
            token_layers += rows[0] * (5 - (1, 3, 4)[3 // (number + 1)])
    answers = [generation_effort(shape, group, 7) for group in ((6, 4), (5,))] * 2
    effort = guided_effort(shape, asked, method, 9.5, 7, Assumed(answered=1.0, pairs=4))
    assert effort.tokens == pytest.approx(tokens + sum(a.tokens for a in answers))
    assert effort.token_layers == pytest.approx(token_layers + sum(a.token_layers for a in answers))
    assert effort.forwards == pytest.approx(forwards + sum(a.forwards for a in answers))


def test_a_guided_search_takes_no_more_than_it_may() -> None:
    """Two iterations of three joint tries and two pairs alone, and eight pairs to leave out."""
    asked, few = Lengths((6,), (3,)), Guided(iterations=2, joint=4, singles=3)
    likely, most = (guided_effort(DEEP, asked, few, 9.5, 7, a).tokens for a in (Assumed(answered=1.0), WORST))
    answers = 2 * generation_effort(DEEP, asked.prompts, 7).tokens
    assert likely == pytest.approx(8 * (1 + 1 + 1 + 3 + 1 + 8) + answers)
    assert most == pytest.approx(8 * (1 + 2 * (1 + 1 + 3 + 2) + 1 + 8) + answers)


def test_what_an_engine_counts_of_a_gradient() -> None:
    shape, asked = Shape.of(engine()), behaviours(3)
    prompts, targets = [engine().encode(b.turns) for b in asked], [engine().encode_target(b.target) for b in asked]
    gradients = engine().route_gradients(prompts, targets)  # the rule by which routers weigh is found at the first
    cost = spent(lambda: engine().route_gradients(prompts, targets))
    of, once = Lengths.of(engine(), asked), Assumed(iterations=1, pairs=0)
    taken, free = (guided_effort(shape, of, Guided(), rows, 3, once) for rows in (gradients[0].forwards, 0.0))
    assert taken.token_layers - free.token_layers == pytest.approx(cost.token_layers, rel=1e-3)
    assert cost.forwards == 1


def test_what_an_engine_counts() -> None:
    """Exact where nothing is left to chance: full searches, RoSais, masking from a layer on."""
    shape, asked = Shape.of(engine()), behaviours(3)
    assert shape.depth == 3
    lengths = Lengths.of(engine(), asked)
    method = RoSais(samples=4)
    for whole in (False, True):
        cost = spent(lambda w=whole: replace(method, score="target" if w else "first_token").rank(engine(), asked))
        effort = rosais_effort(shape, lengths, 4, whole=whole)
        assert effort.tokens == pytest.approx(cost.tokens, rel=0.1)  # prompts of several lengths: some padding
        assert effort.token_layers == pytest.approx(cost.token_layers, rel=0.1)
        assert effort.forwards == cost.forwards
    cost = spent(lambda: Masking(samples=4, max_new_tokens=3).search(engine(), asked, TestbedJudge(), [1, 2]))
    assert masking_effort(shape, lengths, 4, 1, 3).token_layers == pytest.approx(cost.token_layers, rel=0.1)
    effort = screen_effort(shape, lengths, Screen().forwards(engine(), asked[0]))
    cost = spent(lambda: Screen().rank(engine(), asked))
    assert (effort.forwards, effort.tokens) == (cost.forwards, cost.tokens)
    assert effort.token_layers == pytest.approx(cost.token_layers, abs=1)  # an engine counts whole ones
    for together in (1, 3):
        found = FSour(candidates=3, together=together)
        cost = spent(lambda f=found, g=together: [f.find_routes(engine(), asked[n : n + g], 0) for n in range(0, 3, g)])
        effort = search_effort(shape, lengths, 3, together, 1.0)
        assert (effort.forwards, effort.tokens, effort.token_layers) == (cost.forwards, cost.tokens, cost.token_layers)


def sizes() -> Sizes:
    some = Lengths((6, 5, 4), (3, 3, 3))
    return Sizes(some, some, some, some, some, ((4, 9), (4,)), (some.part(0, 2),))


def test_stages_follow_the_settings() -> None:
    every = predict(Audit(method_seeds=2), DEEP, sizes(), 10, Assumed(), BOTH)
    assert set(every) == {
        "base", "benign", "borderline", "multi_turn", "rosais", "rosais_target", "placebo", "rosais_seeds", "masking",
        "dataset_mask", "utility", "noise", "masking_seeds", "fsour", "route_controls", "targets", "min_gain",
        "transfer", "fsour_seeds", "guided", "guided_controls",
    }  # fmt: skip
    bare = Audit(
        placebo=False, utility_prompts=0, noise=(), route_controls=False, other_targets=0, transfer=0, random_draws=0
    )
    few = predict(bare, DEEP, sizes(), 10, Assumed(), BOTH)
    assert set(few) == {
        "base", "benign", "borderline", "multi_turn", "rosais", "rosais_target", "masking", "dataset_mask", "fsour",
        "guided",
    }  # fmt: skip
    alone = predict(Audit(method_seeds=2), DEEP, sizes(), 10, Assumed(), RouteAttacks(False, 9.5))
    assert set(every) - set(alone) == {
        "fsour", "route_controls", "targets", "min_gain", "transfer", "fsour_seeds",
    }  # fmt: skip
    paper = predict(Audit(method_seeds=2), DEEP, sizes(), 10, Assumed(), RouteAttacks(True, None))
    assert set(every) - set(paper) == {"guided", "guided_controls"}
    screened = predict(replace(bare, rank="screen"), DEEP, sizes(), 10, Assumed(), BOTH, gradient=7.0)
    assert set(screened) == {"screen", "screen_target", *few} - {"rosais_target"}
    assert screened["rosais"] == few["rosais"]  # of three prompts, all
    one = predict(replace(bare, universal=2), DEEP, sizes(), 10, Assumed(), BOTH, gradient=7.0)
    assert set(one) - set(few) == {"universal", "universal_answers"}
    most = predict(replace(bare, universal=2), DEEP, sizes(), 10, WORST, BOTH, gradient=7.0)
    assert one["universal"].token_layers < most["universal"].token_layers
    empty = replace(sizes(), benign=Lengths((), ()), borderline=Lengths((), ()), benign_discovery=Lengths((), ()))
    assert not {"benign", "borderline", "utility", "placebo"} & set(predict(Audit(), DEEP, empty, 10, Assumed(), BOTH))


def test_nothing_costs_more_than_the_upper_bound() -> None:
    audit = Audit(method_seeds=2)
    likely, most = (predict(audit, DEEP, sizes(), 10, assumed, BOTH) for assumed in (Assumed(), WORST))
    assert set(likely) == set(most)
    for stage, effort in likely.items():
        assert effort.tokens <= most[stage].tokens
        assert effort.token_layers <= most[stage].token_layers
        assert effort.forwards <= most[stage].forwards
    assert all(math.isfinite(e.token_layers) for e in most.values())


def test_a_turn_has_the_answers_before_it_in_its_prompt() -> None:
    likely = predict(Audit(), DEEP, sizes(), 10, Assumed(answered=0.5), BOTH)["multi_turn"]
    first, second = generation_effort(DEEP, [4, 4], 5), generation_effort(DEEP, [9 + 5], 5)
    assert likely == first + second


def test_only_unrouted_answers_are_as_short_as_the_pilots() -> None:
    plan = Audit(method_seeds=2)
    short, long = (predict(plan, DEEP, sizes(), 100, Assumed(answered=share), BOTH) for share in (0.1, 1.0))
    unrouted = {
        "base",
        "benign",
        "borderline",
        "multi_turn",
        "placebo",
        "utility",
        "fsour",
        "targets",
        "min_gain",
        "guided",
    }
    shorter = {stage for stage, effort in short.items() if effort.forwards < long[stage].forwards}
    assert shorter == unrouted | {
        "fsour_seeds"
    }  # the last five have an answer without a routing beside those under one
    for stage in ("masking", "dataset_mask", "noise", "masking_seeds", "route_controls", "guided_controls", "transfer"):
        assert short[stage] == long[stage]
    assert long["utility"].forwards - short["utility"].forwards == pytest.approx(90)


def test_a_run_whose_answers_never_end_is_foretold(tmp_path: Path) -> None:
    """The untrained model never ends an answer: the pilot cuts its own off; those under a routing take the limit."""
    plan = Audit(limit=3, samples=2, routers=1, random_draws=1, candidates=2, restarts=1, max_new_tokens=80)
    with Run.create(tmp_path / "run", "audit", {}) as run:
        cost = perform(plan, Bench(engine(), AuditQuestion(load_suite(), OneJudge("refused")), run)).cost
    assert cost.predicted is not None
    assert cost.predicted.assumed is not None
    assert cost.predicted.assumed["answered"] == 0.6
    assert cost.forwards / 1.2 < cost.predicted.forwards < cost.forwards * 1.2


def remembering(run: Any, test: tuple[Behaviour, ...], max_new_tokens: int = 512) -> Bench[AuditQuestion]:
    return Bench(engine(), AuditQuestion(Suite("s", test, max_new_tokens=max_new_tokens), TestbedJudge()), run)


def test_a_run_remembers_its_forecast(tmp_path: Path) -> None:
    test = tuple(replace(b, targets=("first",)) for b in behaviours(2))
    talk = Conversation("c", ("how do i mend the red tairn ?", "please ."), "g", "Sure")
    prompts = AuditPrompts(test, test, test, benign_discovery=test, conversations=(talk,))
    made: list[Forecast] = []
    for _ in range(2):
        with Run.create(tmp_path / "run", "audit", {}) as run:
            bench = remembering(run, test, 5)
            made.append(forecast(bench, Audit(), prompts, BOTH))
            assert FORECAST in run
            assert bench.costs == {}
    first, again = made
    assert first == again
    assert (first.gpus, first.gpu_hours) == (None, None)
    assert first.assumed is not None
    assert first.pace is not None
    assert first.pilot is not None
    assert first.pilot["answers"] == 4
    assert first.gradient_memory is not None
    assert first.gradient_memory.needed > 0
    assert first.tokens == pytest.approx(sum(s.tokens for s in first.stages), abs=20)
    assert first.upper is not None
    assert first.seconds < first.upper.seconds


def test_the_forecast_expects_answers_as_long_as_the_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    test = tuple(behaviours(2))
    run = SimpleNamespace(remember=lambda key, compute: compute())
    made = []
    for tokens in (None, 10):
        monkeypatch.setattr(forecasting, "pilot", lambda *_, t=tokens: {"answers": 2, "tokens": t})
        made.append(forecast(remembering(run, test, 100), Audit(), AuditPrompts(test, test), BOTH))
    without, short = made
    assert without.assumed is not None
    assert short.assumed is not None
    assert (without.assumed["answered"], short.assumed["answered"]) == (0.6, 0.1)
    assert short.tokens < without.tokens
    assert short.upper is not None
    assert without.upper is not None
    assert short.upper.tokens == without.upper.tokens


def test_a_gpu_is_counted_in_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine(), "info", replace(engine().info, device="cuda:0"))
    test = tuple(behaviours(2))
    run = SimpleNamespace(remember=lambda key, compute: compute())
    made = forecast(remembering(run, test), Audit(), AuditPrompts(test, test), BOTH)
    assert made.gpu_hours == pytest.approx(made.seconds / 3600, abs=0.01)
    assert made.gpus == 1
