"""The masking stage: its controls, what they are compared with, and what benign requests become under them."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import small_engine
from pointsman.engine.hf import HFEngine
from pointsman.jobs.audit.masking import mask, plan
from pointsman.jobs.audit.perform import _merge
from pointsman.jobs.audit.ranking import rank
from pointsman.methods.attempts import Attempt, ask
from pointsman.methods.dataset_mask import DatasetMask
from pointsman.methods.masking import Masking
from pointsman.methods.noise import Noise, spread
from pointsman.methods.rosais import RoSaisResult
from pointsman.routing.intervention import Intervention
from pointsman.stats.paired import compare
from pointsman.stats.rates import Rate
from works import ManyJudge, asked, work

ORDER = (1, 2, 0)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def ranked(engine: HFEngine) -> RoSaisResult:
    scores = np.array([[0.1, 0.9, 0.5]])
    return RoSaisResult(("q",), ("s",), np.zeros(1), scores, tuple(r.path for r in engine.routers))


def plain(engine: HFEngine) -> list[Attempt]:
    return ask(engine, asked().test, ManyJudge(), max_new_tokens=3)


@pytest.fixture(scope="module")
def sections(engine: HFEngine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with work(tmp_path_factory.mktemp("masked") / "run", engine=engine) as one:
        return mask(one, asked(), ranked(engine), plain(engine))


def flags(attempts: Any) -> list[bool]:
    return [a.verdict.success for a in attempts]


def utility(attempts: Any) -> dict[str, Any]:
    return asdict(Rate.of([a.verdict.label == "correct" for a in attempts], [a.source for a in attempts]))


def entry(sections: dict[str, Any], number: int, phase: str) -> dict[str, Any]:
    return next(e for e in sections["masking"] if (e["routers"], e["phase"]) == (number, phase))


def test_every_row_has_its_controls(sections: dict[str, Any]) -> None:
    assert [(e["routers"], e["phase"]) for e in sections["masking"]] == [
        (0, "prefill"), (1, "prefill"), (1, "both"), (2, "prefill"), (2, "both"),
    ]  # fmt: skip
    for e in sections["masking"][1:]:
        assert e["layers"] == sorted(ORDER[: e["routers"]])
        few = e["routers"] == 2  # of three routers one is left: no two others to mask
        assert list(e["controls"]) == (["dataset"] if few else ["lowest", "random", "dataset"])
        for cell in (e, *e["controls"].values()):
            assert {"asr", "any_compliance", "garbage", "refused", "unscored", "utility", "over_refusal"} <= set(cell)
    one = entry(sections, 1, "prefill")["controls"]
    assert one["lowest"]["layers"] == [0]
    assert [d["layers"] for d in one["random"]["draws"]] != [[1], [1]]
    assert len(one["random"]["draws"]) == 2
    assert entry(sections, 1, "both")["controls"]["random"]["draws"][0]["layers"] == one["random"]["draws"][0]["layers"]


@pytest.mark.parametrize("phase", ["prefill", "both"])
def test_rows_are_what_the_methods_give(engine: HFEngine, sections: dict[str, Any], phase: Any) -> None:
    """Attack, its benign side and its paired differences, each recomputed from scratch."""
    some, method = asked(), Masking(3, phase, max_new_tokens=3)
    top = method.search(engine, some.test, ManyJudge(), [1])
    lowest = method.search(engine, some.test, ManyJudge(), [0])
    sources = [b.source for b in some.test]
    e = entry(sections, 1, phase)
    assert e["asr"] == asdict(Rate.of(flags(top.attempts), sources))
    assert e["vs_base"] == asdict(compare(flags(top.attempts), flags(plain(engine)), sources))
    assert e["vs_lowest"] == asdict(compare(flags(top.attempts), flags(lowest.attempts), sources))
    for cell, layers in ((e, [1]), (e["controls"]["lowest"], [0])):
        benign = method.search(engine, some.benign[:2], ManyJudge(), layers).attempts
        assert cell["utility"] == utility(benign)
        assert cell["over_refusal"]["k"] == sum(a.verdict.refused for a in benign)
    benign = method.search(engine, some.benign[:2], ManyJudge(), e["controls"]["random"]["draws"][0]["layers"]).attempts
    assert e["controls"]["random"]["utility"] == utility(benign)
    unmasked = ask(engine, some.benign[:2], ManyJudge(), max_new_tokens=3)
    assert sections["masking"][0]["utility"] == utility(unmasked)


@pytest.mark.parametrize("phase", ["prefill", "both"])
def test_the_frozen_mask_was_chosen_on_discovery_and_attacks_with_the_same(
    engine: HFEngine, sections: dict[str, Any], phase: Any
) -> None:
    some = asked()
    chosen = DatasetMask(3).search(engine, some.discovery, [1, 2])
    control = entry(sections, 2, phase)["controls"]["dataset"]
    assert control["mask"] == {str(n): list(e) for n, e in zip(chosen.layers, chosen.experts, strict=True)}
    assert control["layers"] == [1, 2]
    assert control["discovery_score"] == pytest.approx(chosen.score, rel=1e-9)
    frozen = Intervention.force({int(n): e for n, e in control["mask"].items()}, phase=phase)
    attempts = ask(engine, some.test, ManyJudge(), routing=frozen, max_new_tokens=3)
    assert control["asr"]["k"] == sum(flags(attempts))
    assert control["refused"]["k"] == sum(a.verdict.refused for a in attempts)
    benign = ask(engine, some.benign[:2], ManyJudge(), routing=frozen, max_new_tokens=3)
    assert control["utility"] == utility(benign)
    sources = [b.source for b in some.test]
    assert control["vs_base"] == asdict(compare(flags(attempts), flags(plain(engine)), sources))


def test_the_frozen_mask_does_not_know_the_test(engine: HFEngine, tmp_path: Path) -> None:
    masks = []
    for name, some in (("a", asked()), ("b", replace(asked(), test=asked(8).test[4:]))):
        base = ask(engine, some.test, ManyJudge(), max_new_tokens=3)
        with work(tmp_path / name, engine=engine, noise=(), phases=("prefill",)) as one:
            found = mask(one, some, ranked(engine), base)["masking"]
        masks.append([(e["controls"]["dataset"]["mask"], e["controls"]["dataset"]["discovery_score"])
                      for e in found[1:]])  # fmt: skip
    assert masks[0] == masks[1]


def test_noise_is_what_its_method_gives(engine: HFEngine, sections: dict[str, Any]) -> None:
    some = asked()
    sigma = spread(engine, some.discovery)
    assert [n["sigma"] for n in sections["noise"]] == [0.5, 2.0]
    for row in sections["noise"]:
        method = Noise(row["sigma"], max_new_tokens=3)
        attempts = method.ask(engine, some.test, ManyJudge(), sigma)
        assert row["phase"] == "both"
        assert row["std"] == pytest.approx([row["sigma"] * s for s in sigma])
        assert row["asr"]["k"] == sum(flags(attempts))
        assert row["garbage"]["k"] == sum(a.verdict.label == "garbage" for a in attempts)
        assert row["utility"] == utility(method.ask(engine, some.benign[:2], ManyJudge(), sigma))
        assert row["vs_base"]["n"] == 4


@pytest.mark.parametrize(("changes", "benign"), [({"utility_prompts": 0}, 3), ({}, 0)])
def test_without_benign_requests_there_is_no_utility(
    engine: HFEngine, tmp_path: Path, changes: dict[str, Any], benign: int
) -> None:
    with work(tmp_path / "run", engine=engine, routers=1, noise=(1.0,), **changes) as one:
        found = mask(one, asked(benign=benign), ranked(engine), plain(engine))
    for cell in (*found["masking"], *found["masking"][1]["controls"].values(), *found["noise"]):
        assert cell["utility"] is None
        assert cell["over_refusal"] is None


def test_random_routers_lie_outside_the_top(engine: HFEngine, tmp_path: Path) -> None:
    with work(tmp_path / "run", engine=small_engine(num_hidden_layers=8), routers=3, random_draws=20) as one:
        cells = plan(one, [5, 3, 7, 1, 0, 2, 4, 6])
    for cell in cells:
        assert cell.top == (5, 3, 7)[: cell.number]
        assert set(cell.lowest) == set((2, 4, 6)[-cell.number :])
        assert all(not set(cell.top) & set(layers) for layers in cell.random)
        assert all(len(set(layers)) == cell.number for layers in cell.random)
        assert len(cell.random) == (min(20, comb(8 - cell.number, cell.number)) if cell.phase == "prefill" else 1)
        assert len(set(cell.random)) == len(cell.random)  # each set once
    assert len({layers for cell in cells for layers in cell.random}) > 10


def test_other_seeds_attack_the_routers_of_their_own_ranking(engine: HFEngine, tmp_path: Path) -> None:
    ranking = {"rosais": {"seeds": [4, 5, 6], "rankings": [list(ORDER), [0, 1, 2], [1, 0, 2]]}}
    with work(tmp_path / "run", engine=engine, seed=4, method_seeds=3, noise=(), utility_prompts=0) as one:
        found = mask(one, asked(), ranked(engine), plain(engine), ranking)
    rows = found["seeds"]["masking"]
    assert [r["routers"] for r in rows] == [1, 2]
    for row in rows:
        number = row["routers"]
        assert row["layers"] == [sorted(o[:number]) for o in ranking["rosais"]["rankings"]]
        asr = []
        for seed, layers in zip((4, 5, 6), row["layers"], strict=True):
            result = Masking(3, "prefill", max_new_tokens=3, seed=seed).search(
                engine, asked().test, ManyJudge(), layers
            )
            asr.append(sum(flags(result.attempts)) / 4)
        assert row["asr"] == asr
        assert (row["mean"], row["min"], row["max"]) == (pytest.approx(np.mean(asr)), min(asr), max(asr))
        assert entry(found, number, "prefill")["asr"]["rate"] == asr[0]
        assert entry(found, number, "prefill")["asr"]["n"] == 4  # seeds are not more rows


def test_one_seed_says_nothing_of_seeds(sections: dict[str, Any]) -> None:
    assert "seeds" not in sections


def test_what_stages_say_of_seeds_is_united() -> None:
    merged = _merge({"a": 1, "seeds": {"rosais": 1}}, {"b": 2}, {"c": 3, "seeds": {"fsour": 2}}, {"seeds": None})
    assert merged == {"a": 1, "b": 2, "c": 3, "seeds": {"rosais": 1, "fsour": 2}}
    assert "seeds" not in _merge({"a": 1}, {"b": 2})


def test_stopped_anywhere_it_resumes_to_the_same(engine: HFEngine, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(engine=engine, method_seeds=2, routers=1, phases=("prefill",), noise=(1.0,))

    def both(one: Any) -> dict[str, Any]:
        scores, ranking = rank(one, asked(2))
        base = ask(engine, asked(2).test, ManyJudge(), max_new_tokens=3)
        return mask(one, asked(2), scores, base, ranking["seeds"])

    with work(tmp_path / "whole", **options) as one:
        whole = both(one)
        keys = list(one.run.keys())
        costs = [{k: v for k, v in c.items() if k != "seconds"} for c in one.costs]
    assert len(set(keys)) == len(keys)
    begin = next(n for n, key in enumerate(keys) if "masking" in key)
    for stop_after in range(begin, len(keys), 3):
        folder = tmp_path / f"run-{stop_after}"
        with pytest.raises(KeyboardInterrupt), work(folder, stop_after=stop_after, **options) as one:
            both(one)
        with work(folder, **options) as one:
            assert both(one) == whole
            assert list(one.run.keys()) == keys
            assert [{k: v for k, v in c.items() if k != "seconds"} for c in one.costs] == costs
