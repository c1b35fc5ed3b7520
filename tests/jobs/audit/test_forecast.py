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
from pointsman.data.types import Conversation, Suite
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Completion, Cost
from pointsman.jobs.audit import forecast as forecasting
from pointsman.jobs.audit.forecast import (
    FORECAST,
    WORST,
    Assumed,
    Effort,
    Lengths,
    Pace,
    Shape,
    Sizes,
    against,
    forecast,
    fsour,
    generated,
    gpus,
    in_words,
    masked,
    measure,
    pilot,
    predict,
    ranked,
    scored,
    searched,
)
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.work import Asked, Work
from pointsman.methods.fsour import FSour
from pointsman.methods.masking import Masking
from pointsman.methods.rosais import RoSais
from pointsman.runs.progress import NullProgress
from pointsman.runs.run import Run
from pointsman.testbed.plugin import TestbedJudge

DEEP = Shape(5, (1, 3, 4), 10_000)  # a first dense layer, another between


@lru_cache
def engine() -> HFEngine:
    return small_engine(dtype=torch.float32)


def spent(run: Any) -> Cost:
    before = engine().cost.copy()
    run()
    return engine().cost - before


def test_scored_and_generated() -> None:
    assert scored(DEEP, 3, 20, 2) == Effort(1, 60, 180, 3)
    assert scored(replace(DEEP, from_layer=False), 3, 20, 2) == Effort(1, 60, 300, 5)
    assert scored(replace(DEEP, batch=45), 5, 20).forwards == 3  # two rows at a time
    assert scored(DEEP, 0, 20) == Effort()
    assert generated(DEEP, [7, 4], 3) == Effort(3, 2 * (7 + 2), 2 * 9 * 5, decoded=3)
    assert generated(replace(DEEP, batch=10), [7, 4], 3) == Effort(6, 9 + 6, 15 * 5, decoded=6)  # one row at a time
    assert generated(DEEP, [4] * 129, 3).forwards == 6  # two units
    assert generated(DEEP, [], 3) == Effort()
    assert generated(replace(DEEP, context=9), [7, 4], 300) == generated(DEEP, [7, 4], 2)
    assert generated(replace(DEEP, context=9), [9], 300) == generated(DEEP, [9], 1)


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
    effort = searched(shape, asked, 10, together, 1.0)
    assert (effort.tokens, effort.token_layers, effort.forwards) == (tokens, token_layers, forwards)


def test_a_share_of_a_search_is_less_and_a_group_waits_for_its_longest() -> None:
    asked = Lengths((6,) * 4, (3,) * 4)
    whole, half = (searched(DEEP, asked, 10, 1, share) for share in (1.0, 0.5))
    assert 0.5 < half.token_layers / whole.token_layers < 0.7  # early tokens cost more
    assert half.forwards < searched(DEEP, asked, 10, 4, 0.5).forwards * 4 < whole.forwards
    assert searched(DEEP, asked, 10, 4, 0.5).token_layers == pytest.approx(half.token_layers)


def test_restarts_and_answers_of_fsour() -> None:
    asked = Lengths((6,), (3,))
    once = searched(DEEP, asked, 10, 1, 1.0)
    answer = generated(DEEP, asked.prompts, 7)
    most = fsour(DEEP, asked, 10, 1, 5, 7, WORST)
    assert most.tokens == pytest.approx(5 * once.tokens + 6 * answer.tokens)
    single = fsour(DEEP, asked, 10, 1, 1, 7, Assumed(searched=1.0))
    assert single.tokens == pytest.approx(once.tokens + 2 * answer.tokens)  # no more restarts than allowed


def test_what_an_engine_counts() -> None:
    """Exact where nothing is left to chance: full searches, RoSais, masking from a layer on."""
    shape, asked = Shape.of(engine()), behaviours(3)
    assert shape.depth == 3
    lengths = Lengths.of(engine(), asked)
    method = RoSais(samples=4)
    for whole in (False, True):
        cost = spent(lambda w=whole: replace(method, score="target" if w else "first_token").rank(engine(), asked))
        effort = ranked(shape, lengths, 4, whole=whole)
        assert effort.tokens == pytest.approx(cost.tokens, rel=0.1)  # prompts of several lengths: some padding
        assert effort.token_layers == pytest.approx(cost.token_layers, rel=0.1)
        assert effort.forwards == cost.forwards
    cost = spent(lambda: Masking(samples=4, max_new_tokens=3).search(engine(), asked, TestbedJudge(), [1, 2]))
    assert masked(shape, lengths, 4, 1, 3).token_layers == pytest.approx(cost.token_layers, rel=0.1)
    for together in (1, 3):
        found = FSour(candidates=3, together=together)
        cost = spent(lambda f=found, g=together: [f.find_routes(engine(), asked[n : n + g], 0) for n in range(0, 3, g)])
        effort = searched(shape, lengths, 3, together, 1.0)
        assert (effort.forwards, effort.tokens, effort.token_layers) == (cost.forwards, cost.tokens, cost.token_layers)


def test_measuring_tells_from_where_the_engine_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = behaviours(3)
    shape, pace = measure(engine(), asked)
    assert (shape.from_layer, shape.from_token) == (True, True)
    assert pace.decoded > 0
    assert min(pace.call, pace.tried, pace.token_layer) >= 0
    assert pace.seconds(generated(shape, [10] * 8, 4)) > 0
    monkeypatch.setattr(engine()._resume, "tokens", False)
    assert measure(engine(), asked)[0].from_token is False
    monkeypatch.setattr(engine(), "_resume", None)
    shape, _ = measure(engine(), asked)
    assert (shape.from_layer, shape.from_token) == (False, False)


def test_seconds_are_a_sum() -> None:
    pace = Pace(call=1.0, tried=2.0, decoded=3.0, token_layer=0.5)
    assert pace.seconds(Effort(forwards=9, tokens=9, token_layers=8, calls=1, tried=2, decoded=4)) == 1 + 4 + 12 + 4


def sizes() -> Sizes:
    some = Lengths((6, 5, 4), (3, 3, 3))
    return Sizes(some, some, some, some, some, ((4, 9), (4,)), (some.part(0, 2),))


def test_stages_follow_the_settings() -> None:
    every = predict(Audit(method_seeds=2), DEEP, sizes(), 10, Assumed())
    assert set(every) == {
        "base", "benign", "borderline", "multi_turn", "rosais", "rosais_target", "placebo", "rosais_seeds", "masking",
        "dataset_mask", "utility", "noise", "masking_seeds", "fsour", "route_controls", "targets", "min_gain",
        "transfer", "fsour_seeds",
    }  # fmt: skip
    bare = Audit(
        placebo=False, utility_prompts=0, noise=(), route_controls=False, other_targets=0, transfer=0, random_draws=0
    )
    few = predict(bare, DEEP, sizes(), 10, Assumed())
    assert set(few) == {
        "base", "benign", "borderline", "multi_turn", "rosais", "rosais_target", "masking", "dataset_mask", "fsour",
    }  # fmt: skip
    empty = replace(sizes(), benign=Lengths((), ()), borderline=Lengths((), ()), benign_discovery=Lengths((), ()))
    assert not {"benign", "borderline", "utility", "placebo"} & set(predict(Audit(), DEEP, empty, 10, Assumed()))


def test_nothing_costs_more_than_the_upper_bound() -> None:
    audit = Audit(method_seeds=2)
    likely, most = (predict(audit, DEEP, sizes(), 10, assumed) for assumed in (Assumed(), WORST))
    assert set(likely) == set(most)
    for stage, effort in likely.items():
        assert effort.tokens <= most[stage].tokens
        assert effort.token_layers <= most[stage].token_layers
        assert effort.forwards <= most[stage].forwards
    assert all(math.isfinite(e.token_layers) for e in most.values())


def test_a_turn_has_the_answers_before_it_in_its_prompt() -> None:
    likely = predict(Audit(), DEEP, sizes(), 10, Assumed(answered=0.5))["multi_turn"]
    first, second = generated(DEEP, [4, 4], 5), generated(DEEP, [9 + 5], 5)
    assert likely == first + second


def test_a_run_remembers_its_forecast(tmp_path: Path) -> None:
    test = tuple(replace(b, targets=("first",)) for b in behaviours(2))
    talk = Conversation("c", ("how do i mend the red tairn ?", "please ."), "g", "Sure")
    made = []
    for _ in range(2):
        with Run.create(tmp_path / "run", "audit", {}) as run:
            work = Work(
                engine(), Suite("s", test, max_new_tokens=5), TestbedJudge(), run, NullProgress(), audit=Audit()
            )
            made.append(forecast(work, Asked(test, test, test, (), test, {}), [talk]))
            assert FORECAST in run
            assert work.costs == []
    first, again = made
    assert first == again
    parts = {"forwards", "tokens", "token_layers", "seconds", "upper", "stages", "assumed", "pace", "pilot"}
    assert set(first) == parts
    assert first["tokens"] == pytest.approx(sum(s["tokens"] for s in first["stages"]), abs=20)
    assert first["seconds"] < first["upper"]["seconds"]


def test_words() -> None:
    predicted = {"seconds": 700, "upper": {"seconds": 8000}, "forwards": 8123, "tokens": 2_140_000}
    assert in_words(predicted) == "About 12 minutes (at most 2.2 hours): 8,123 forwards of 2.1 million tokens"
    predicted |= {"gpu_hours": 0.19, "seconds": 0.2, "tokens": 900}
    assert in_words(predicted) == ("About a second (at most 2.2 hours): 8,123 forwards of 900 tokens, 0.19 GPU-hours")
    cost = {"seconds": 61.0, "forwards": 10, "tokens": 1000, "predicted": predicted}
    assert against(cost) == (
        "It took about 61 seconds of computing, 10 forwards and 1,000 tokens, 0.017 GPU-hours; foretold: about a "
        "second, 8,123 forwards and 900 tokens, 0.19 GPU-hours"
    )
    predicted["gpus"] = 2
    assert "1,000 tokens, 0.034 GPU-hours; " in against(cost)
    del predicted["gpu_hours"]
    assert "GPU" not in against(cost)
    assert in_words(predicted, resumed=True).startswith("The whole run: about a second (at most 2.2 hours): ")


@pytest.mark.parametrize(
    ("lengths", "longest", "expected"),
    [
        ((5, 9, 64, 3), 512, 64),
        ((5, 9), 512, 10),  # with the end token
        ((64,) * 4, 512, None),  # all are cut off
        ((64,) * 4, 64, 64),  # as long as they may be
        ((20,) * 4, 512, 20),  # the context is full
    ],
)
def test_the_pilot(lengths: tuple[int, ...], longest: int, expected: int | None) -> None:
    asked, given = behaviours(len(lengths)), []

    def generate(prompts: Any, *, max_new_tokens: int) -> list[Completion]:
        given.append((len(prompts), max_new_tokens))
        return [Completion("", (1,) * n, finished=n < 20) for n in lengths]

    answering = SimpleNamespace(encode=lambda turns: turns, generate=generate)
    assert pilot(answering, [*asked, *asked], longest) == {"answers": len(lengths), "tokens": expected}  # type: ignore[arg-type]
    assert given == [(4, 64)]


def test_the_forecast_expects_answers_as_long_as_the_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    test = tuple(behaviours(2))
    run = SimpleNamespace(remember=lambda key, compute: compute())
    made = []
    for tokens in (None, 10):
        monkeypatch.setattr(forecasting, "pilot", lambda *_, t=tokens: {"answers": 2, "tokens": t})
        work = Work(engine(), Suite("s", test, max_new_tokens=100), TestbedJudge(), run, NullProgress(), audit=Audit())  # type: ignore[arg-type]
        made.append(forecast(work, Asked(test, test, (), (), (), {}), []))
    assert [m["assumed"]["answered"] for m in made] == [0.6, 0.1]
    assert made[1]["tokens"] < made[0]["tokens"]
    assert made[1]["upper"]["tokens"] == made[0]["upper"]["tokens"]


def test_every_gpu_that_holds_the_model_counts() -> None:
    def on(device: str, *devices: str) -> Any:
        held = [SimpleNamespace(device=torch.device(d)) for d in devices]
        return SimpleNamespace(
            info=SimpleNamespace(device=device), model=SimpleNamespace(parameters=lambda: iter(held))
        )

    assert gpus(engine()) == 0
    assert gpus(on("cuda:0", "cuda:0", "cuda:1", "cuda:1", "cpu")) == 2
    assert gpus(SimpleNamespace(info=SimpleNamespace(device="cuda"))) == 1  # type: ignore[arg-type]


def test_a_gpu_is_counted_in_hours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine(), "info", replace(engine().info, device="cuda:0"))
    test = tuple(behaviours(2))
    run = SimpleNamespace(remember=lambda key, compute: compute())
    work = Work(engine(), Suite("s", test), TestbedJudge(), run, NullProgress(), audit=Audit())  # type: ignore[arg-type]
    made = forecast(work, Asked(test, test, (), (), (), {}), [])
    assert made["gpu_hours"] == pytest.approx(made["seconds"] / 3600, abs=0.01)
