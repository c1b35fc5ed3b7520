"""What follows from the figures of a steering run: headline, limits and claims, each by its rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pointsman.errors import RunError
from pointsman.jobs.finished import read_results
from pointsman.jobs.steer.claims import conclude
from pointsman.jobs.steer.job import from_steer_1
from pointsman.jobs.steer.results import SteerResults
from pointsman.runs.results import SCHEMA, Claim, read
from pointsman.stats.auroc import Auroc
from pointsman.stats.rates import Rate

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def golden(run: str) -> SteerResults:
    """A frozen run, read through its migration."""
    data = json.loads((GOLDEN / run / "results.json").read_text(encoding="utf-8"))
    return conclude(read({**from_steer_1(data), "schema": SCHEMA}, SteerResults))


@pytest.fixture(scope="module")
def steered() -> SteerResults:
    return golden("steer")


def claim(results: SteerResults, id: str) -> Claim:
    (found,) = [claim for claim in conclude(results).claims if claim.id == id]
    return found


def test_the_golden_run_claims_what_its_page_says(steered: SteerResults) -> None:
    assert [(c.sentence, c.verdict) for c in steered.claims] == [
        ("The mask does something", "holds"),
        ("Learnt, not just any mask", "in doubt"),
        ("Better than MASCing as published", "holds"),
        ("Better than SteerMoE on contexts", "holds"),
        ("Nothing else was lost", "in doubt"),
        ("It is no luck of the validation split", "holds"),
        ("The surrogate reads routing, not length", "in doubt"),
        ("Other seeds of the method do it too", "holds"),
    ]
    text = (GOLDEN / "steer.page.txt").read_text(encoding="utf-8")
    assert all(c.sentence in text and c.because for c in steered.claims)
    lost = steered.claims[4]
    assert lost.found is not None
    assert lost.control is not None
    assert f"{lost.found.name} against {lost.control.name}\n" in text
    assert steered.headline in text.replace("\n", " ")


def test_an_evaluation_claims_only_what_it_measured() -> None:
    found = golden("evaluate")
    assert found.job == "evaluate"
    assert [c.verdict for c in found.claims] == ["holds", *["not measured"] * 2, "in doubt", *["not measured"] * 2]
    text = (GOLDEN / "evaluate.page.txt").read_text(encoding="utf-8")
    assert all(f"{c.sentence} {c.verdict}\n" in text for c in found.claims)
    assert all(f"{c.because}\n" in text for c in found.claims if c.verdict == "not measured")


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (0.1, 0.4, 0.01, "holds"),
        (0.1, 0.4, 0.06, "in doubt"),
        (0.0, 0.4, 0.01, "in doubt"),
        (-0.4, -0.1, 0.01, "fails"),
    ],
)
def test_a_mask_is_held_against_each_rival(
    steered: SteerResults, low: float, high: float, p: float, verdict: str
) -> None:
    for id, key in (
        ("mask_does_something", "gain"), ("mask_beats_random_masks", "vs_random"),
        ("mask_beats_steermoe", "vs_steermoe"), ("mask_beats_surrogate_only", "vs_surrogate_only"),
    ):  # fmt: skip
        difference = replace(getattr(steered.comparisons, key), low=low, high=high, p_clustered=p)
        found = claim(replace(steered, comparisons=replace(steered.comparisons, **{key: difference})), id)
        assert (found.verdict, found.difference) == (verdict, difference)


@pytest.mark.parametrize(
    ("value", "high", "verdict"), [(0.0, 0.01, "holds"), (0.01, 0.2, "in doubt"), (0.11, 0.2, "fails")]
)
def test_nothing_was_lost_only_if_every_interval_is_within_its_limit(
    steered: SteerResults, value: float, high: float, verdict: str
) -> None:
    none = {"difference": 0.0, "low": -0.01, "high": 0.01}
    compared: dict[str, Any] = {
        key: replace(getattr(steered.comparisons, key), **none)
        for key in ("benign", "benign_conversations", "over_refusal", "held")
    }
    compared["over_refusal"] = replace(compared["over_refusal"], difference=value, low=value, high=high)
    kept = Rate(0, 24, 0.0, 0.0, 0.01, "made up")
    test = replace(steered.test, after=replace(steered.test.after, garbage=kept))
    results = replace(steered, test=test, comparisons=replace(steered.comparisons, **compared))
    found = claim(results, "nothing_else_lost")
    assert found.verdict == verdict
    assert ("over-refusal" in found.because) == (verdict == "fails")
    assert conclude(results).within_limits == (verdict != "fails")


def test_a_gain_on_test_below_that_on_validation_is_in_doubt(steered: SteerResults) -> None:
    assert steered.overfit is not None
    for high, verdict in ((0.7, "holds"), (0.69, "in doubt")):
        overfit = replace(
            steered.overfit,
            validation=Rate(7, 10, 0.7, 0.4, 0.9, "made up"),
            test=Rate(6, 10, 0.6, 0.5, high, "made up"),
        )
        assert claim(replace(steered, overfit=overfit), "gain_is_no_luck_of_validation").verdict == verdict


def test_the_surrogate_reads_routing_where_matched_pairs_are_told_apart(steered: SteerResults) -> None:
    surrogate = steered.surrogate
    assert surrogate is not None
    assert surrogate.matched is not None

    def verdict(auroc: Auroc | None) -> str:
        changed = replace(surrogate, matched=replace(surrogate.matched, auroc=auroc))  # type: ignore[type-var]
        return claim(replace(steered, surrogate=changed), "surrogate_reads_routing").verdict

    assert verdict(Auroc(0.8, 0.51, 0.9, 20)) == "holds"
    assert verdict(Auroc(0.8, 0.5, 0.9, 20)) == "in doubt"
    assert verdict(Auroc(0.2, 0.1, 0.49, 20)) == "fails"
    assert verdict(None) == verdict(Auroc(None, 0.0, 1.0, 0)) == "not measured"
    none = claim(replace(steered, surrogate=replace(surrogate, matched=None)), "surrogate_reads_routing")
    assert none.because == "there were no matched pairs"


def test_the_lowest_seed_decides(steered: SteerResults) -> None:
    assert steered.seeds is not None
    before = steered.test.before.gain.rate or 0.0
    first, *others = steered.seeds
    for low, high, verdict in ((before + 0.01, 1.0, "holds"), (before, 1.0, "in doubt"), (0.0, before - 0.01, "fails")):
        worse = replace(first, gain=Rate(1, 2, (low + high) / 2, low, high, "made up"))
        found = claim(replace(steered, seeds=(worse, *others)), "other_seeds_do_it")
        assert found.verdict == verdict
        assert found.found is not None
        assert (found.found.name, found.found.value) == ("lowest of 2 seeds", worse.gain)
    assert len(conclude(replace(steered, seeds=(first,))).claims) == 7


def test_the_headline_says_what_broke(steered: SteerResults) -> None:
    assert steered.headline.endswith("no limit is broken on the test split.")
    broken = conclude(replace(steered, broken_on_test=("over_refusal", "garbage")))
    assert broken.headline.endswith("beyond the limits: over refusal, garbage.")


def test_the_first_results_of_their_kind_are_read() -> None:
    """`evidence/` keeps such; they knew no `hold`."""
    data = json.loads((GOLDEN / "steer" / "results.json").read_text(encoding="utf-8"))
    for row in data["gap"]:
        del row["hold"]
    found = read_results(data)[1]
    assert isinstance(found, SteerResults)
    assert found.gap
    assert {row.hold for row in found.gap} == {None}


@pytest.mark.parametrize("broken", [{"test": None}, {"test": []}, {"gap": [1]}, {"broken_on_test": ...}])
def test_older_results_that_are_broken_are_refused_in_one_line(broken: dict[str, Any]) -> None:
    data = json.loads((GOLDEN / "steer" / "results.json").read_text(encoding="utf-8"))
    data = {key: value for key, value in {**data, **broken}.items() if value is not ...}
    with pytest.raises(RunError, match=r"results.json is not what pointsman.steer/1 was"):
        read_results(data)


def test_a_gain_that_was_bought_with_a_broken_limit_says_so_in_every_claim(steered: SteerResults) -> None:
    rival = replace(steered.test.steermoe, broken=("held",))
    over = replace(
        steered, broken_on_test=("benign_conversations", "garbage"), test=replace(steered.test, steermoe=rival)
    )
    for id, control in (
        ("mask_does_something", "no mask"),
        ("mask_beats_steermoe", "SteerMoE (contexts) (over its limit: held)"),
    ):
        found = claim(over, id)
        assert found.found is not None
        assert found.control is not None
        assert found.found.name == "with the mask (over its limit: benign conversations, garbage)"
        assert found.control.name == control
