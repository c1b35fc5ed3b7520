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
from pointsman.errors import DataError, PromptTooLong
from pointsman.jobs.audit.perform import perform as perform_audit
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import AuditResults
from pointsman.jobs.parameters import plain
from pointsman.methods.dataset_mask import DatasetMask
from pointsman.methods.rosais import RoSais
from pointsman.runs.bench import Bench
from pointsman.runs.results import dump, read
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
    say: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
) -> AuditResults:
    engine = small_engine(dtype=torch.float32)
    with Run.create(folder, "audit", {"model": "tiny", **plain(audit)}) as run:
        if stop_after is not None:
            stop(run, stop_after)
        question = AuditQuestion(suite or load_suite(), TestbedJudge())
        return perform_audit(audit, Bench(engine, question, run, say=say, note=note))


def comparable(folder: Path) -> dict[str, Any]:
    """Results without clocks, dates, and the memory that happened to be free."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "free", "created")}
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


def test_results_are_the_same_on_disk_and_in_memory(tmp_path: Path, finished: Path) -> None:
    results = perform(finished)
    data = json.loads((finished / "results.json").read_text())
    assert dump(results) == data
    assert read(data, AuditResults) == results
    assert [claim.id for claim in results.claims] == [
        "guided_routes_beat_random_ones", "guided_experts_matter_not_the_forcing",
        "found_routes_beat_random_ones", "experts_matter_not_the_forcing", "guided_opens_more",
        "guided_opens_more_at_equal_forwards", "top_routers_beat_random_ones",
        "model_works_under_masks_prefill", "top_router_beats_chance", "top_router_steers_safety",
            "masked_ranks_mean_something",
    ]  # fmt: skip


def test_what_is_about_to_be_done_is_said_once_the_forecast_is_known(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path / "run", stop_after=0, say=said.append)
    assert said == [], "what the model is able to and the forecast are the first steps"
    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path / "run", stop_after=3, say=said.append)
    announced, foretold = said
    name = load_suite().name
    assert announced.startswith("Auditing ")
    assert announced.endswith(f"with 3 behaviours of {name}, judge testbed, seed 0; writing to {tmp_path / 'run'}")
    assert foretold.startswith("About ")
    perform(tmp_path / "run", say=said.append)
    assert said[2] == announced
    assert said[3] == f"The whole run: {foretold.replace('About', 'about', 1)}"


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
    asked = {sources[b.id] for b in results.fsour.behaviours}
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
    assert (results.utility, results.over_refusal, results.multi_turn) == (None, None, None)
    assert results.splits["discovery"] + results.splits["test"] <= 12


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
        note=said.append,
    )  # fmt: skip
    left_out = results.left_out
    assert left_out
    assert all(name.startswith("long-") for name in left_out)
    assert len(set(left_out)) == len(left_out)
    assert results.base.asr.n == 3, "others take their places"
    assert results.splits["discovery_used"] == 3
    (note,) = said
    assert note in results.notes
    assert f"{len(left_out)} prompts do not fit" in note
    assert left_out[0] in note
    assert "please" not in note


def test_a_run_without_long_prompts_says_nothing_of_them(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["left_out"] == []
    assert not [note for note in results["notes"] if "left out" in note]
