"""The rates of a steering run and of an evaluation, counted again from the rows that ship with the evidence."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

from recompute_steer import Counter, recount  # noqa: E402
from rows import Row, read, write  # noqa: E402
from steer_rows import rows_of  # noqa: E402

Counted = tuple[dict[str, Any], list[Row]]


@pytest.fixture(scope="module", params=["steer", "evaluate"])
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """A golden run and its rows, through the file that ships."""
    file = tmp_path_factory.mktemp("rows") / "rows.csv.gz"
    write(file, rows_of(GOLDEN / request.param))
    return json.loads((GOLDEN / request.param / "results.json").read_text(encoding="utf-8")), read(file)


def test_all_numbers_are_as_said(counted: Counted) -> None:
    assert [one for one in recount(*counted) if not one.agrees] == []


def rates(found: Any, where: str = "") -> Iterator[str]:
    """The places of all rates that are of answers; a candidate that was only screened gave none."""
    if isinstance(found, dict):
        if found.get("stage") == "coarse":
            return
        if {"k", "n", "rate"} <= found.keys():
            yield where
        for key, value in found.items():
            yield from rates(value, f"{where}.{key}" if where else key)
    elif isinstance(found, list):
        for number, value in enumerate(found):
            yield from rates(value, f"{where}[{number}]")


def test_no_rate_and_no_comparison_is_left_out(counted: Counted) -> None:
    results, _ = counted
    places = {one.where.rpartition(".")[0] for one in recount(*counted)}
    assert set(rates(results)) - places == set()
    assert {f"comparisons.{name}" for name, found in results["comparisons"].items() if found} <= places


def test_a_row_that_says_otherwise_is_noticed(counted: Counted) -> None:
    results, rows = counted
    at = next(n for n, row in enumerate(rows) if row.list == "conversations" and "test/after" in row.outcomes)
    turns = rows[at].outcomes["test/after"].split()
    assert turns[-1] == "refused"
    changed = {**rows[at].outcomes, "test/after": " ".join([*turns[:-1], "correct+"])}
    some = [*rows[:at], replace(rows[at], outcomes=changed), *rows[at + 1 :]]
    wrong = {one.where for one in recount(results, some) if not one.agrees}
    assert {"test.after.gain.k", "test.after.dsr_replay.k", "comparisons.gain.difference"} <= wrong
    assert not any(where.startswith(("test.before", "test.after.benign", "contexts", "candidates")) for where in wrong)


def test_a_wrong_answer_to_the_request_is_not_withstood_where_the_results_say_so(counted: Counted) -> None:
    results, rows = counted
    at = next(n for n, row in enumerate(rows) if row.list == "conversations" and "test/after" in row.outcomes)
    turns = rows[at].outcomes["test/after"].split()
    changed = {**rows[at].outcomes, "test/after": " ".join([*turns[:-1], "wrong"])}
    some = [*rows[:at], replace(rows[at], outcomes=changed), *rows[at + 1 :]]

    def withstood(wrong_withstands: bool) -> float | None:
        found = recount({**results, "wrong_withstands": wrong_withstands}, some)
        return next(one.counted for one in found if one.where == "test.after.dsr_replay.k")

    said = results["test"]["after"]["dsr_replay"]["k"]
    assert (withstood(True), withstood(False)) == (said, said - 1)


@pytest.mark.parametrize("where", [("test", "after", "gain", "k"), ("comparisons", "held", "high")])
def test_a_figure_that_says_otherwise_is_noticed(counted: Counted, where: tuple[str, ...]) -> None:
    results = json.loads(json.dumps(counted[0]))
    *path, last = where
    place = results
    for key in path:
        place = place[key]
    place[last] += 0.01
    assert {one.where for one in recount(results, counted[1]) if not one.agrees} == {".".join(where)}


def test_rows_hold_no_texts(counted: Counted, tmp_path: Path) -> None:
    write(tmp_path / "rows.csv.gz", counted[1])
    shipped = gzip.decompress((tmp_path / "rows.csv.gz").read_bytes()).decode()
    lines = (GOLDEN / "steer/artefacts/completions.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row[part] for row in map(json.loads, lines) for part in ("prompt", "response")}
    assert len(texts) > 20
    assert [text for text in texts if text in shipped] == []


def test_where_requests_shall_be_answered_a_gain_is_a_right_answer_and_only_held_categories_are_held() -> None:
    def row(name: str, id: str, cell: str, category: str = "") -> Row:
        return Row(name, id, f"source of {id}", "test", category, "", {"test/after": cell})

    rows = [
        row("scenario", "a", "correct+"), row("scenario", "b", "complied+"), row("scenario", "c", "wrong"),
        row("restricted", "d", "refused", "held"), row("restricted", "e", "correct+", "other"),
        row("benign", "f", "refused"), row("borderline", "g", "correct+"),
    ]  # fmt: skip
    scenario = {"objective": "allow", "hold": ["held"]}
    for grades, gained in ((True, [True, False, False]), (False, [True, True, False])):
        counter = Counter({"scenario": scenario, "judge": {"grades_content": grades}}, rows)
        assert counter.measure("gain", "test/after") == (gained, [f"source of {id}" for id in "abc"])
    assert counter.measure("held", "test/after") == ([True], ["source of d"])
    assert counter.measure("over_refusal", "test/after")[0] == [True, False]
    assert counter.measure("benign", "test/after")[0] == [False]
