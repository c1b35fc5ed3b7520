"""The audit as a whole, on a small untrained engine: what it writes, and that a killed one resumes to the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import small_engine
from pointsman.data.types import Behaviour, Suite
from pointsman.errors import DataError, PromptTooLong, UsageError
from pointsman.jobs.audit.findings import attempt_rates, headline
from pointsman.jobs.audit.perform import _Stages
from pointsman.jobs.audit.perform import perform as perform_audit
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.parameters import plain
from pointsman.judges.types import Verdict
from pointsman.methods.attempts import Attempt
from pointsman.methods.dataset_mask import DatasetMask
from pointsman.methods.rosais import RoSais
from pointsman.runs.run import Run
from pointsman.testbed.plugin import TestbedJudge, load_suite
from works import stop

SMALL = Audit(
    limit=3,
    samples=2,
    routers=2,
    random_draws=2,
    candidates=2,
    restarts=2,
    max_new_tokens=4,
    together=2,
    phases=("prefill",),
)


def perform(
    folder: Path,
    audit: Audit = SMALL,
    suite: Suite | None = None,
    stop_after: int | None = None,
    noted: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    engine = small_engine(dtype=torch.float32)
    with Run.create(folder, "audit", {"model": "tiny", **plain(audit)}) as run:
        if stop_after is not None:
            stop(run, stop_after)
        return perform_audit(audit, engine, suite or load_suite(), TestbedJudge(), run, noted=noted)


def comparable(folder: Path) -> dict[str, Any]:
    """Results without clocks and dates."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "created")}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "results.json").read_text()))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "run"
    perform(folder)
    return folder


@pytest.mark.versions
def test_results_hold_what_other_tools_rely_on(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    rates = [
        results["base"]["asr"], results["fsour"]["asr"], results["fsour"]["any_compliance"], results["utility"],
        results["over_refusal"], results["multi_turn"]["fallen"], *(m["asr"] for m in results["masking"]),
        *(results["masking"][1]["controls"][c]["asr"] for c in ("random", "lowest")),
    ]  # fmt: skip
    for rate in rates:
        assert {"k", "n", "rate", "low", "high"} <= set(rate)
        assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
    assert [r["layer"] for r in results["rosais"]] == [0, 1, 2]
    assert all({"router", "layer", "mean", "low", "high"} <= set(r) for r in results["rosais"])
    assert sorted(r["rank"] for r in results["rosais"]) == [1, 2, 3]
    assert [m["routers"] for m in results["masking"]] == [0, 1, 2]
    assert {"schema", "cost", "provenance"} <= set(results)
    assert results["small_n"] is True
    assert results["masking"][1]["controls"]["random"]["asr"]["n"] == 3
    top = [r["layer"] for r in results["rosais"] if r["rank"] == 1]
    assert results["masking"][1]["layers"] == top
    assert all(top[0] not in d["layers"] for d in results["masking"][1]["controls"]["random"]["draws"])


def test_no_prompt_is_in_the_results(finished: Path) -> None:
    text = (finished / "results.json").read_text()
    completions = [json.loads(line) for line in (finished / "artefacts/completions.jsonl").read_text().splitlines()]
    assert len(completions) > 10
    for completion in completions:
        assert completion["prompt"] not in text


@pytest.mark.versions
def test_ranking_and_testing_share_no_source(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a ranking or a frozen mask was chosen on, seen while the run is recalled from its journal."""
    suite, chosen_on = load_suite(), set()
    sources = {b.id: (b.source, b.split) for b in (*suite.restricted, *suite.benign)}

    def see(original: Any) -> Any:
        def seen(method: Any, engine: Any, behaviours: Any, *arguments: Any, **more: Any) -> Any:
            chosen_on.update(sources[b.id] for b in behaviours)
            return original(method, engine, behaviours, *arguments, **more)

        return seen

    monkeypatch.setattr(RoSais, "rank", see(RoSais.rank))
    monkeypatch.setattr(DatasetMask, "search", see(DatasetMask.search))
    results = perform(finished)
    assert len(chosen_on) == 3
    assert {split for _, split in chosen_on} == {"discovery"}
    asked = {sources[b["id"]] for b in results["fsour"]["behaviours"]}
    assert {split for _, split in asked} == {"test"}
    assert not {s for s, _ in chosen_on} & {s for s, _ in asked}


@pytest.mark.parametrize("stop_after", [0, 3, pytest.param(9, marks=pytest.mark.versions), 14])
def test_an_interrupted_audit_resumes_to_the_same(finished: Path, tmp_path: Path, stop_after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path / "run", stop_after=stop_after)
    assert not (tmp_path / "run" / "results.json").exists()
    perform(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished)


def test_a_suite_from_a_file_is_split_and_needs_no_benign(tmp_path: Path) -> None:
    suite = load_suite()
    own = Suite(
        "file",
        tuple(Behaviour(f"b{n}", b.goal, b.target) for n, b in enumerate(suite.restricted[:12])),
        judge="testbed",
    )
    results = perform(tmp_path / "run", suite=own)
    assert results["utility"] is None
    assert results["over_refusal"] is None
    assert results["multi_turn"] is None
    assert results["splits"]["discovery"] + results["splits"]["test"] <= 12


@pytest.mark.parametrize(("number", "split"), [(20, True), (19, False)])
def test_benign_requests_without_splits_are_split_for_the_placebo(number: int, split: bool) -> None:
    suite = load_suite()
    own = Suite(
        "file",
        tuple(Behaviour(f"b{n}", b.goal, b.target) for n, b in enumerate(suite.restricted[:12])),
        benign=tuple(Behaviour(f"benign:{n}", b.goal, b.target) for n, b in enumerate(suite.benign[:number])),
    )
    asked = _Stages(None, own, None, None, None, audit=Audit())._choose()  # type: ignore[arg-type]
    tested, ranked_on = {b.id for b in asked.benign}, {b.id for b in asked.benign_discovery}
    assert not tested & ranked_on
    assert bool(ranked_on) == split
    assert len(tested) == number if not split else number > len(tested) > 0


def test_benign_requests_keep_splits_of_their_own() -> None:
    suite = load_suite()
    asked = _Stages(None, suite, None, None, None, audit=Audit(limit=None))._choose()  # type: ignore[arg-type]
    assert {b.id for b in asked.benign} == {b.id for b in suite.benign if b.split == "test"}
    assert {b.split for b in asked.benign_discovery} == {"discovery"}


def test_too_little_to_split_is_refused(tmp_path: Path) -> None:
    one = Suite("file", load_suite().restricted[:1])
    with pytest.raises(DataError):
        perform(tmp_path / "run", suite=one)


def test_a_prompt_beyond_the_context_is_found_before_anything_runs(tmp_path: Path) -> None:
    long = [Behaviour(f"b{n}", "where " * 300, "Sure") for n in range(9)]
    with pytest.raises(PromptTooLong, match=r"No behaviour to rank routers on fits: b\d needs 3"):
        perform(tmp_path / "run", suite=Suite("file", tuple(long)))
    with Run.open(tmp_path / "run", read_only=True) as run:
        assert run.keys() == ()


def test_prompts_beyond_the_context_are_left_out_and_named(tmp_path: Path) -> None:
    """The others are asked as if they had been alone."""
    plain = load_suite()

    def spoilt(rows: tuple[Behaviour, ...]) -> tuple[Behaviour, ...]:
        """With a long one beside every prompt."""
        more = [replace(b, id=f"long-{b.id}", goal=f"{b.goal} {'please ' * 300}") for b in rows]
        return (*rows, *more)

    said: list[str] = []
    results = perform(
        tmp_path / "run", suite=replace(plain, restricted=spoilt(plain.restricted), benign=spoilt(plain.benign)),
        noted=said.append,
    )  # fmt: skip
    left_out = results["left_out"]
    assert left_out
    assert all(name.startswith("long-") for name in left_out)
    assert len(set(left_out)) == len(left_out)
    assert results["base"]["asr"]["n"] == 3, "others take their places"
    assert results["splits"]["discovery_used"] == 3
    (note,) = said
    assert note in results["notes"]
    assert f"{len(left_out)} prompts do not fit" in note
    assert left_out[0] in note
    assert "please" not in note


def test_a_run_without_long_prompts_says_nothing_of_them(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert "left_out" not in results
    assert not [note for note in results["notes"] if "left out" in note]


def test_rates_tell_success_compliance_and_garbage_apart() -> None:
    labels = ["correct", "correct", "wrong", "garbage", "refused", "unscored"]
    attempts = [
        Attempt(str(n), "c", str(n), "", True, Verdict(label, 1.0 if label == "correct" else 0.0))  # type: ignore[arg-type]
        for n, label in enumerate(labels)
    ]
    rates = attempt_rates(attempts)
    assert [rates[r]["k"] for r in ("asr", "any_compliance", "garbage", "refused")] == [2, 3, 1, 1]
    assert rates["unscored"] == 1
    assert rates["asr"]["n"] == 6


def test_the_headline_takes_the_largest_number_not_the_best() -> None:
    def rate(value: float) -> dict[str, Any]:
        return {"rate": value, "n": 10}

    masking = [{"routers": n, "phase": "prefill", "asr": rate(r)} for n, r in ((0, 0.0), (1, 0.9), (2, 0.5))]
    results: dict[str, Any] = {
        "model": {"name": "m", "layers": 12}, "base": {"asr": rate(0.1)}, "fsour": {"asr": rate(0.7)},
        "masking": masking, "threat_model": "T1",
    }  # fmt: skip
    assert headline(results) == (
        "m answers 10 % of restricted requests as it is, 50 % when its 2 most important routers of 12 are masked, "
        "and 70 % under routes that F-SOUR finds (T1, n = 10)."
    )


@pytest.mark.parametrize("name", ["limit", "samples", "routers", "candidates", "restarts", "together"])
def test_options_out_of_range(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Audit(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value"), [("seed", -1), ("min_gain", float("inf")), ("min_gain", float("nan")), ("min_gain", -0.1)]
)
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        Audit(**{name: value})  # type: ignore[arg-type]
