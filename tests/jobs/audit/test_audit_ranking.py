"""The ranking stage: what stands beside every router's score, and that it is what the methods give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from engines import small_engine
from pointsman.engine.hf import HFEngine
from pointsman.jobs.audit.placebo import refusal_tokens
from pointsman.jobs.audit.ranking import checked_prompts, measure_reach, rank
from pointsman.jobs.audit.results import Reach, ScreenAgreement, Spread
from pointsman.methods.rosais import RoSais, RoSaisResult
from pointsman.methods.screen import Screen
from pointsman.methods.steps import Steps
from pointsman.stats.permutation import permutation_p
from pointsman.stats.rank_agreement import spearman_interval, stability
from pointsman.stats.rates import Mean
from works import TINY, OneJudge, asked, audit_bench


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def test_every_column_is_what_its_method_gives(engine: HFEngine, tmp_path: Path) -> None:
    some, plan = asked(), replace(TINY, seed=5)
    with audit_bench(tmp_path / "run", plan, judge=OneJudge("refused"), engine=engine) as bench:
        ranking = rank(bench, plan, some)
        refusals = refusal_tokens(bench, some.discovery, Steps())
    method = RoSais(samples=3, seed=5)
    first = method.rank(engine, some.discovery)
    target = replace(method, score="target", scale="log_probability").rank(engine, some.discovery)
    placebo = replace(method, affirmative=refusals.ids).rank(engine, some.benign_discovery)
    assert ranking.order == first.ranking
    p = permutation_p(first.scores, first.sources, seed=5)
    for layer, row in enumerate(ranking.routers):
        assert (row.layer, row.p) == (layer, p[layer])
        assert row.target is not None
        assert row.placebo is not None
        for cell, result in ((row, first), (row.target, target), (row.placebo, placebo)):
            mean = Mean.of(result.scores[:, layer].tolist(), result.sources)
            assert (cell.mean, cell.low, cell.high) == pytest.approx((mean.mean, mean.low, mean.high))
        assert row.rank == first.ranking.index(layer) + 1
        assert row.target.rank == target.ranking.index(layer) + 1
        assert row.target.p is not None
        assert 0 < row.target.p <= 1
    settings = ranking.settings
    assert settings.stability == stability(first.scores, first.sources, top_n=2, seed=5)
    assert settings.agreement == pytest.approx(stats.spearmanr(first.mean, target.mean).statistic)
    assert settings.target_base == pytest.approx(target.base.mean())
    assert settings.placebo.base == pytest.approx(placebo.base.mean())
    assert (settings.placebo.prompts, settings.placebo.tokens) == (3, refusals.tokens)
    assert (settings.placebo.refused, settings.placebo.why_not) == (4, None)
    assert ranking.seeds is None


def test_other_seeds_are_told_apart(engine: HFEngine, tmp_path: Path) -> None:
    some, plan = asked(), replace(TINY, seed=3, method_seeds=3, placebo=False)
    with audit_bench(tmp_path / "run", plan, engine=engine) as bench:
        ranking = rank(bench, plan, some)
    each = [RoSais(samples=3, seed=s).rank(engine, some.discovery) for s in (3, 4, 5)]
    seeds = ranking.seeds
    assert seeds is not None
    assert seeds.seeds == (3, 4, 5)
    assert seeds.rankings == tuple(r.ranking for r in each)
    assert seeds.top1 == tuple(r.ranking[0] for r in each)
    pairs = [stats.spearmanr(each[a].mean, each[b].mean).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert isinstance(seeds.spearman, Spread)
    found = (seeds.spearman.mean, seeds.spearman.min, seeds.spearman.max)
    assert found == pytest.approx((sum(pairs) / 3, min(pairs), max(pairs)))
    assert ranking.settings.prompts == 4  # not three times as many


def test_stopped_anywhere_it_resumes_to_the_same(engine: HFEngine, tmp_path: Path) -> None:
    plan, judge = replace(TINY, method_seeds=2), OneJudge("refused")
    with audit_bench(tmp_path / "whole", plan, judge=judge, engine=engine) as bench:
        whole = rank(bench, plan, asked())
        keys = list(bench.run.keys())
    assert len(set(keys)) == len(keys) >= 6  # first token, target, two of the refusal, placebo, another seed
    for stop_after in range(len(keys)):
        folder = tmp_path / f"run-{stop_after}"
        stopped = audit_bench(folder, plan, judge=judge, engine=engine, stop_after=stop_after)
        with pytest.raises(KeyboardInterrupt), stopped as bench:
            rank(bench, plan, asked())
        with audit_bench(folder, plan, judge=judge, engine=engine) as bench:
            resumed = rank(bench, plan, asked())
            assert list(bench.run.keys()) == keys
        assert resumed == whole


def test_a_router_is_reached_where_a_mask_moves_more_than_rounding(engine: HFEngine) -> None:
    scores = np.array([[0.0, 1e-7, 0.0], [0.0, 0.0, -0.02]])
    ranked = RoSaisResult(("a", "b"), ("a", "b"), np.array([0.1, 0.1]), scores, ("", "", ""))
    assert measure_reach(engine, ranked) == Reach(3, 3, 1)
    assert measure_reach(engine, ranked).any
    assert not Reach(3, 3, 0).any
    assert not Reach(3, 0, 3).any


def test_the_screen_ranks_with_its_agreement_with_rosais_beside_it(engine: HFEngine, tmp_path: Path) -> None:
    some, plan = asked(6), replace(TINY, seed=5, rank="screen", method_seeds=2)
    with audit_bench(tmp_path / "run", plan, judge=OneJudge("refused"), engine=engine) as bench:
        ranking = rank(bench, plan, some)
        keys = list(bench.run.keys())
        assert rank(bench, plan, some) == ranking
        assert list(bench.run.keys()) == keys
    first = Screen().rank(engine, some.discovery)
    target = Screen(score="target").rank(engine, some.discovery)
    assert ranking.order == first.ranking
    for layer, row in enumerate(ranking.routers):
        assert row.mean == pytest.approx(first.scores[:, layer].mean())
        assert row.rank == first.ranking.index(layer) + 1
        assert row.target is not None
        assert row.target.mean == pytest.approx(target.scores[:, layer].mean())
        assert row.placebo is None
    few = [0, 1, 3, 4]
    masks = RoSais(samples=3, seed=5).rank(engine, [some.discovery[n] for n in few])
    mean = first.scores[few].mean(0)
    low, high = spearman_interval(first.scores[few], masks.scores, masks.sources, 5) or (None, None)
    assert low is not None
    assert ranking.settings.screen == ScreenAgreement(
        prompts=4, samples=3, spearman=pytest.approx(stats.spearmanr(mean, masks.mean).statistic), low=low, high=high,
        kendall=pytest.approx(stats.kendalltau(mean, masks.mean).statistic), top_n=2,
        same_top=len({*np.argsort(-mean)[:2]} & {*masks.ranking[:2]}),
    )  # fmt: skip
    assert (ranking.settings.samples, ranking.settings.scale) == (0, "log_probability")
    assert ranking.settings.base == pytest.approx(first.base.mean())
    assert "--rank rosais" in (ranking.settings.placebo.why_not or "")
    assert ranking.reach == measure_reach(engine, masks)  # only masks say whether routing reaches the answer
    assert ranking.seeds is not None
    assert (ranking.seeds.seeds, ranking.seeds.rankings) == ((5, 6), (first.ranking,) * 2)


def test_rosais_is_measured_on_prompts_from_everywhere() -> None:
    assert checked_prompts(TINY, 2) == [0, 1]
    assert checked_prompts(TINY, 4) == [0, 1, 2, 3]
    assert checked_prompts(TINY, 20) == [0, 5, 10, 15]
    assert checked_prompts(replace(TINY, rank_check=20), 20) == list(range(20))
