"""The ranking stage: what stands beside every router's score, and that it is what the methods give."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from engines import small_engine
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Completion, Cost
from pointsman.jobs.audit.ranking import AFFIRMATIVE, rank, refusal_tokens, routers_masked, with_targets
from pointsman.methods.rosais import RoSais
from pointsman.methods.steps import Steps
from pointsman.stats.permutation import permutation_p
from pointsman.stats.rank_agreement import stability
from pointsman.stats.rates import Mean
from works import OneJudge, asked, work


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def test_every_column_is_what_its_method_gives(engine: HFEngine, tmp_path: Path) -> None:
    some = asked()
    with work(tmp_path / "run", judge=OneJudge("refused"), engine=engine, seed=5) as one:
        ranked, sections = rank(one, some)
        refusals = refusal_tokens(one, some.discovery, Steps())
    method = RoSais(samples=3, seed=5)
    first = method.rank(engine, some.discovery)
    target = replace(method, score="target", scale="log_probability").rank(engine, some.discovery)
    placebo = replace(method, affirmative=refusals.ids).rank(engine, some.benign_discovery)
    assert ranked.ranking == first.ranking
    p = permutation_p(first.scores, first.sources, seed=5)
    for layer, row in enumerate(sections["rosais"]):
        assert (row["layer"], row["p"]) == (layer, p[layer])
        for cell, result in ((row, first), (row["target"], target), (row["placebo"], placebo)):
            mean = Mean.of(result.scores[:, layer].tolist(), result.sources)
            assert (cell["mean"], cell["low"], cell["high"]) == pytest.approx((mean.mean, mean.low, mean.high))
        assert row["rank"] == first.ranking.index(layer) + 1
        assert row["target"]["rank"] == target.ranking.index(layer) + 1
        assert 0 < row["target"]["p"] <= 1
    settings = sections["rosais_settings"]
    assert settings["stability"] == asdict(stability(first.scores, first.sources, top_n=2, seed=5))
    assert settings["agreement"] == pytest.approx(stats.spearmanr(first.mean, target.mean).statistic)
    assert settings["target_base"] == pytest.approx(target.base.mean())
    assert settings["placebo"] == {
        "prompts": 3, "tokens": list(refusals.tokens), "refused": 4, "base": pytest.approx(placebo.base.mean()),
        "why_not": None,
    }  # fmt: skip
    assert "seeds" not in sections


@pytest.mark.parametrize(
    ("label", "changes", "benign", "why"),
    [
        ("wrong", {}, 3, "the model refused none of the 4 discovery prompts"),
        ("refused", {"placebo": False}, 3, "not asked for"),
        ("refused", {}, 0, "there are no benign prompts of the discovery split"),
    ],
)
def test_without_a_placebo_it_says_why(
    engine: HFEngine, tmp_path: Path, label: str, changes: dict[str, Any], benign: int, why: str
) -> None:
    with work(tmp_path / "run", judge=OneJudge(label), engine=engine, **changes) as one:
        _, sections = rank(one, asked(benign=benign))
    assert sections["rosais_settings"]["placebo"]["why_not"] == why
    assert all(row["placebo"] is None for row in sections["rosais"])


class Scripted:
    """Generates what it is told to, and remembers how much was asked."""

    def __init__(self, engine: HFEngine, first: list[int]) -> None:
        self.encode, self.cost = engine.encode, Cost()
        self._first = dict(zip([engine.encode(b.turns).ids for b in asked(10).discovery], first, strict=True))

    def generate(self, prompts: Any, *, routing: Any = None, max_new_tokens: int = 512) -> list[Completion]:
        ids = [(self._first[p.ids], 99)[:max_new_tokens] for p in prompts]
        return [Completion(" ".join(f"t{i}" for i in row), row, True) for row in ids]


@pytest.mark.parametrize(
    ("first", "tokens"),
    [
        ([7] * 10, [7]),
        ([7] * 9 + [8], [7]),  # 90 % are enough
        ([7] * 6 + [8] * 3 + [9], [7, 8]),
        ([9, 8, 7, 9, 8, 7, 9, 8, 7, 6], [7, 8, 9]),
    ],
)
def test_refusal_tokens_begin_nine_in_ten_refusals(
    engine: HFEngine, tmp_path: Path, first: list[int], tokens: list[int]
) -> None:
    with work(tmp_path / "run", judge=OneJudge("refused"), engine=Scripted(engine, first)) as one:  # type: ignore[arg-type]
        found = refusal_tokens(one, asked(10).discovery, Steps())
    assert found.ids == tuple(tokens)
    assert found.tokens == tuple(f"t{t}" for t in tokens)
    assert (found.refused, found.asked) == (10, 10)


def test_other_seeds_are_told_apart(engine: HFEngine, tmp_path: Path) -> None:
    some = asked()
    with work(tmp_path / "run", engine=engine, seed=3, method_seeds=3, placebo=False) as one:
        ranked, sections = rank(one, some)
    each = [RoSais(samples=3, seed=s).rank(engine, some.discovery) for s in (3, 4, 5)]
    seeds = sections["seeds"]["rosais"]
    assert seeds["seeds"] == [3, 4, 5]
    assert seeds["rankings"] == [list(r.ranking) for r in each]
    assert seeds["top1"] == [r.ranking[0] for r in each]
    pairs = [stats.spearmanr(each[a].mean, each[b].mean).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert seeds["spearman"] == pytest.approx({"mean": sum(pairs) / 3, "min": min(pairs), "max": max(pairs)})
    assert ranked.prompts == each[0].prompts  # not three times as many
    assert sections["rosais_settings"]["prompts"] == 4


def test_stopped_anywhere_it_resumes_to_the_same(engine: HFEngine, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(judge=OneJudge("refused"), engine=engine, method_seeds=2)
    with work(tmp_path / "whole", **options) as one:
        _, whole = rank(one, asked())
        keys = list(one.run.keys())
    assert len(set(keys)) == len(keys) >= 6  # first token, target, two of the refusal, placebo, another seed
    for stop_after in range(len(keys)):
        folder = tmp_path / f"run-{stop_after}"
        with pytest.raises(KeyboardInterrupt), work(folder, stop_after=stop_after, **options) as one:
            rank(one, asked())
        with work(folder, **options) as one:
            _, resumed = rank(one, asked())
            assert list(one.run.keys()) == keys
        assert resumed == whole


def test_how_many_routers_are_masked(engine: HFEngine, tmp_path: Path) -> None:
    with work(tmp_path / "a", engine=engine, routers=9) as one:
        assert routers_masked(one) == 3
    with work(tmp_path / "b", engine=engine, routers=None) as one:
        assert routers_masked(one) == 1


def test_requests_without_a_target_get_one() -> None:
    bare = [replace(b, target="") for b in asked().benign]
    assert {b.target for b in with_targets(bare)} == {AFFIRMATIVE}
    assert with_targets(asked().benign) == list(asked().benign)
