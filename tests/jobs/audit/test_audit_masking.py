"""The masking stage: its controls, what they are compared with, and what benign requests become under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import small_engine
from pointsman.engine.hf import HFEngine
from pointsman.jobs.audit.masking import mask, mask_under_other_seeds, router_sets
from pointsman.jobs.audit.ranking import rank
from pointsman.jobs.audit.results import Masked, MaskingSeeds, RankingSeeds
from pointsman.methods.attempts import Attempt, ask
from pointsman.methods.dataset_mask import DatasetMask
from pointsman.methods.masking import Masking
from pointsman.routing.intervention import Intervention
from pointsman.runs.rates import successes
from pointsman.stats.paired import compare
from pointsman.stats.rates import Rate
from works import TINY, ManyJudge, asked, audit_bench, costs

ORDER = (1, 2, 0)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def plain(engine: HFEngine) -> list[Attempt]:
    return ask(engine, asked().test, ManyJudge(), max_new_tokens=3)


@pytest.fixture(scope="module")
def table(engine: HFEngine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Masked, ...]:
    with audit_bench(tmp_path_factory.mktemp("masked") / "run", engine=engine) as bench:
        return mask(bench, TINY, asked(), ORDER, plain(engine))


def utility(attempts: Sequence[Attempt]) -> Rate:
    return Rate.of([a.verdict.label == "correct" for a in attempts], [a.source for a in attempts])


def row(table: Sequence[Masked], number: int, phase: str) -> Masked:
    return next(r for r in table if (r.routers, r.phase) == (number, phase))


def test_every_row_has_its_controls(table: tuple[Masked, ...]) -> None:
    assert [(r.routers, r.phase) for r in table] == [
        (0, "prefill"), (1, "prefill"), (1, "both"), (2, "prefill"), (2, "both"),
    ]  # fmt: skip
    assert table[0].controls == {}
    assert (table[0].vs_base, table[0].utility_vs_base) == (None, None)
    for r in table[1:]:
        assert r.layers == tuple(sorted(ORDER[: r.routers]))
        few = r.routers == 2  # of three routers one is left: no two others to mask
        assert list(r.controls) == (["dataset"] if few else ["lowest", "random", "dataset"])
        assert (r.vs_lowest is None, r.difference_random is None) == (few, few)
        for cell in (r, *r.controls.values()):
            assert cell.utility is not None
            assert cell.over_refusal is not None
    one = row(table, 1, "prefill").controls
    assert one["lowest"].layers == (0,)
    draws = one["random"].draws
    assert draws is not None
    assert [d.layers for d in draws] != [(1,), (1,)]
    assert len(draws) == 2
    again = row(table, 1, "both").controls["random"].draws
    assert again is not None
    assert again[0].layers == draws[0].layers


@pytest.mark.parametrize("phase", ["prefill", "both"])
def test_rows_are_what_the_methods_give(engine: HFEngine, table: tuple[Masked, ...], phase: Any) -> None:
    """Attack, its benign side and its paired differences, each recomputed from scratch."""
    some, method = asked(), Masking(3, phase, max_new_tokens=3)
    top = method.search(engine, some.test, ManyJudge(), [1])
    lowest = method.search(engine, some.test, ManyJudge(), [0])
    sources = [b.source for b in some.test]
    r = row(table, 1, phase)
    assert r.asr == Rate.of(successes(top.attempts), sources)
    assert r.vs_base == compare(successes(top.attempts), successes(plain(engine)), sources)
    assert r.vs_lowest == compare(successes(top.attempts), successes(lowest.attempts), sources)
    for cell, layers in ((r, [1]), (r.controls["lowest"], [0])):
        benign = method.search(engine, some.benign[:2], ManyJudge(), layers).attempts
        assert cell.utility == utility(benign)
        assert cell.over_refusal is not None
        assert cell.over_refusal.k == sum(a.verdict.refused for a in benign)
    draws = r.controls["random"].draws
    assert draws is not None
    benign = method.search(engine, some.benign[:2], ManyJudge(), draws[0].layers).attempts
    assert r.controls["random"].utility == utility(benign)
    unmasked = ask(engine, some.benign[:2], ManyJudge(), max_new_tokens=3)
    assert table[0].utility == utility(unmasked)


@pytest.mark.parametrize("phase", ["prefill", "both"])
def test_the_frozen_mask_was_chosen_on_discovery_and_attacks_with_the_same(
    engine: HFEngine, table: tuple[Masked, ...], phase: Any
) -> None:
    some = asked()
    chosen = DatasetMask(3).search(engine, some.discovery, [1, 2])
    control = row(table, 2, phase).controls["dataset"]
    assert control.mask == {str(n): e for n, e in zip(chosen.layers, chosen.experts, strict=True)}
    assert control.layers == (1, 2)
    assert control.discovery_score == pytest.approx(chosen.score, rel=1e-9)
    frozen = Intervention.force({int(n): list(e) for n, e in control.mask.items()}, phase=phase)
    attempts = ask(engine, some.test, ManyJudge(), routing=frozen, max_new_tokens=3)
    assert control.asr.k == sum(successes(attempts))
    assert control.refused.k == sum(a.verdict.refused for a in attempts)
    benign = ask(engine, some.benign[:2], ManyJudge(), routing=frozen, max_new_tokens=3)
    assert control.utility == utility(benign)
    sources = [b.source for b in some.test]
    assert control.vs_base == compare(successes(attempts), successes(plain(engine)), sources)


def test_the_frozen_mask_does_not_know_the_test(engine: HFEngine, tmp_path: Path) -> None:
    masks, one_phase = [], replace(TINY, phases=("prefill",))
    for name, some in (("a", asked()), ("b", replace(asked(), test=asked(8).test[4:]))):
        base = ask(engine, some.test, ManyJudge(), max_new_tokens=3)
        with audit_bench(tmp_path / name, one_phase, engine=engine) as bench:
            found = mask(bench, one_phase, some, ORDER, base)
        masks.append([(r.controls["dataset"].mask, r.controls["dataset"].discovery_score) for r in found[1:]])
    assert masks[0] == masks[1]


@pytest.mark.parametrize(("prompts", "benign"), [(0, 3), (2, 0)])
def test_without_benign_requests_there_is_no_utility(
    engine: HFEngine, tmp_path: Path, prompts: int, benign: int
) -> None:
    few = replace(TINY, routers=1, utility_prompts=prompts)
    with audit_bench(tmp_path / "run", few, engine=engine) as bench:
        found = mask(bench, few, asked(benign=benign), ORDER, plain(engine))
        assert "utility" not in bench.costs
    for cell in (*found, *found[1].controls.values()):
        assert (cell.utility, cell.over_refusal) == (None, None)
    assert found[1].utility_vs_base is None


def test_random_routers_lie_outside_the_top() -> None:
    rows = router_sets(replace(TINY, routers=3, random_draws=20), [5, 3, 7, 1, 0, 2, 4, 6])
    for r in rows:
        assert r.top == (5, 3, 7)[: r.number]
        assert set(r.lowest) == set((2, 4, 6)[-r.number :])
        assert all(not set(r.top) & set(layers) for layers in r.random)
        assert all(len(set(layers)) == r.number for layers in r.random)
        assert len(r.random) == (min(20, comb(8 - r.number, r.number)) if r.phase == "prefill" else 1)
        assert len(set(r.random)) == len(r.random)  # each set once
    assert len({layers for r in rows for layers in r.random}) > 10


def test_other_seeds_attack_the_routers_of_their_own_ranking(engine: HFEngine, tmp_path: Path) -> None:
    orders = (ORDER, (0, 1, 2), (1, 0, 2))
    ranking = RankingSeeds((4, 5, 6), orders, (1, 0, 1), None)
    plan = replace(TINY, seed=4, method_seeds=3, utility_prompts=0)
    with audit_bench(tmp_path / "run", plan, engine=engine) as bench:
        found = mask(bench, plan, asked(), ORDER, plain(engine))
        repeated = mask_under_other_seeds(bench, plan, asked().test, found, ranking)
    assert [r.routers for r in repeated] == [1, 2]
    for r in repeated:
        assert r.layers == tuple(tuple(sorted(o[: r.routers])) for o in orders)
        asr = []
        for seed, layers in zip((4, 5, 6), r.layers, strict=True):
            method = Masking(3, "prefill", max_new_tokens=3, seed=seed)
            result = method.search(engine, asked().test, ManyJudge(), layers)
            asr.append(sum(successes(result.attempts)) / 4)
        assert r.asr == tuple(asr)
        assert (r.mean, r.min, r.max) == (pytest.approx(np.mean(asr)), min(asr), max(asr))
        first = row(found, r.routers, "prefill").asr
        assert first.rate == asr[0]
        assert first.n == 4  # seeds are not more rows


def test_stopped_anywhere_it_resumes_to_the_same(engine: HFEngine, tmp_path: Path) -> None:
    plan = replace(TINY, method_seeds=2, routers=1, phases=("prefill",))
    base = ask(engine, asked(2).test, ManyJudge(), max_new_tokens=3)

    def perform(bench: Any) -> tuple[tuple[Masked, ...], tuple[MaskingSeeds, ...]]:
        ranking = rank(bench, plan, asked(2))
        assert ranking.seeds is not None
        found = mask(bench, plan, asked(2), ranking.order, base)
        return found, mask_under_other_seeds(bench, plan, asked(2).test, found, ranking.seeds)

    with audit_bench(tmp_path / "whole", plan, engine=engine) as bench:
        whole, keys, spent = perform(bench), list(bench.run.keys()), costs(bench)
    assert len(set(keys)) == len(keys)
    begin = next(n for n, key in enumerate(keys) if "masking" in key)
    for stop_after in range(begin, len(keys), 3):
        folder = tmp_path / f"run-{stop_after}"
        stopped = audit_bench(folder, plan, engine=engine, stop_after=stop_after)
        with pytest.raises(KeyboardInterrupt), stopped as bench:
            perform(bench)
        with audit_bench(folder, plan, engine=engine) as bench:
            assert perform(bench) == whole
            assert list(bench.run.keys()) == keys
            assert costs(bench) == spent
