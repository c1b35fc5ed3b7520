"""The rates of an audit, counted again from the rows that ship with its evidence."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pointsman.cli import main
from pointsman.data.types import Behaviour
from pointsman.runs.room import Room

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

from audit_rows import rows_of, taking_others  # noqa: E402
from evidence_files import keep  # noqa: E402
from evidence_plan import Planned  # noqa: E402
from recompute_audit import recount  # noqa: E402
from rows import Row, read, write  # noqa: E402


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the golden audit, with its plug-in installed."""
    folder = tmp_path_factory.mktemp("golden")
    for name in ("audit", "model", "prompts", "plugin"):
        shutil.copytree(GOLDEN / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder / "plugin")
        yield folder
        sys.modules.pop("golden_world", None)


@pytest.fixture(scope="module")
def counted(golden: Path) -> tuple[dict[str, Any], list[Row]]:
    """The golden audit and its rows, through the file that ships."""
    write(golden / "rows.csv.gz", rows_of(golden / "audit"))
    return json.loads((golden / "audit/results.json").read_text(encoding="utf-8")), read(golden / "rows.csv.gz")


@pytest.fixture(scope="module")
def compared(golden: Path) -> Path:
    """A small audit with both searches of routes, a route for all prompts, and the screen."""
    asked = "audit golden --limit 4 --rank screen --rank-prompts 4 --rank-check 3 --samples 3 --routers 1"
    less = "--random-draws 2 --phase prefill --candidates 2 --restarts 1 --no-controls --route-controls --universal 3"
    assert main([*asked.split(), *less.split(), "--out", str(golden / "compared")]) == 0
    return golden / "compared"


def test_all_numbers_are_as_said(counted: tuple[dict[str, Any], list[Row]]) -> None:
    found = list(recount(*counted))
    assert [one for one in found if not one.agrees] == []


def rates(found: Any, where: str = "") -> Iterator[str]:
    """The places of all rates."""
    if isinstance(found, dict):
        if {"k", "n", "rate"} <= found.keys():
            yield where
        for key, value in found.items():
            yield from rates(value, f"{where}.{key}" if where else key)
    elif isinstance(found, list):
        for number, value in enumerate(found):
            yield from rates(value, f"{where}[{number}]")


def test_no_rate_is_left_out(counted: tuple[dict[str, Any], list[Row]]) -> None:
    """But those of the best of some random routes: which of two failures is the better one, a label does not say."""
    places = {one.where.rpartition(".")[0] for one in recount(*counted)}
    best = re.compile(r"fsour\.controls\.random\.(any_compliance|garbage|refused)")
    assert {place for place in rates(counted[0]) if not best.fullmatch(place)} <= places


def test_a_row_that_says_otherwise_is_noticed(counted: tuple[dict[str, Any], list[Row]]) -> None:
    results, rows = counted
    at = next(n for n, row in enumerate(rows) if row.outcomes.get("fsour/best") == "correct+")
    changed = {**rows[at].outcomes, "fsour/best": "refused"}
    some = [*rows[:at], replace(rows[at], outcomes=changed), *rows[at + 1 :]]
    wrong = {one.where for one in recount(results, some) if not one.agrees}
    assert {"fsour.asr.k", "fsour.refused.k", "seeds.fsour.asr, seed 0"} <= wrong
    assert not any(where.startswith(("masking", "base", "noise")) for where in wrong)


@pytest.mark.parametrize("where", [("base", "asr", "k"), ("multi_turn", "fallen", "high"), ("rosais", 2, "p")])
def test_a_figure_that_says_otherwise_is_noticed(counted: tuple[dict[str, Any], list[Row]], where: Any) -> None:
    results, rows = json.loads(json.dumps(counted[0])), counted[1]
    *path, last = where
    place = results
    for key in path:
        place = place[key]
    place[last] += 0.01
    assert [one.where for one in recount(results, rows) if not one.agrees] != []


def test_guided_a_route_for_all_prompts_and_the_screen_are_counted_again(compared: Path) -> None:
    results, rows = json.loads((compared / "results.json").read_text(encoding="utf-8")), rows_of(compared)
    found = list(recount(results, rows))
    assert [one for one in found if not one.agrees] == []
    places = {one.where for one in found}
    best = re.compile(r"(fsour|guided)\.controls\.random\.(any_compliance|garbage|refused)|claims.*")
    rated = {place for place in rates(results) if not best.fullmatch(place)}
    assert {"guided.asr", "universal.reached", "universal.random.asr", "side_by_side.budgets[3].fsour"} <= rated
    assert {f"{place}.k" for place in rated} <= places
    for search in ("guided", "fsour"):
        assert {f"side_by_side.{search}.{name}" for name in ("forwards", "pairs", "seconds")} <= places
    assert {f"rosais_settings.screen.{name}" for name in ("prompts", "spearman", "low", "high", "kendall")} <= places
    assert len({row.id for row in rows if "universal/log-prob#" in row.outcomes}) == 3
    assert len({row.id for row in rows if "rosais/first_token/0/layer-0#" in row.outcomes}) == 3


@pytest.mark.parametrize(
    ("split", "column", "cell", "wrong"),
    [
        ("test", "guided/best", "wrong", {"guided.asr.k", "guided.answered_wrongly"}),
        ("test", "guided/best/log-prob#", "-9.0", {"guided.reached"}),
        ("test", "guided/best/seconds#", "1e6", {"side_by_side.guided.seconds"}),
        ("test", "universal/routed", "refused", {"universal.asr.k", "universal.vs_base.difference"}),
        ("discovery", "universal/log-prob#", "-99.0", {"universal.reached.k"}),
        ("discovery", "screen/free/first_token/layer-0#", "1e9", {"rosais[0].mean"}),
    ],
)
def test_a_row_of_a_comparison_that_says_otherwise_is_noticed(
    compared: Path, tmp_path: Path, split: str, column: str, cell: str, wrong: set[str]
) -> None:
    commit = json.loads((compared / "results.json").read_text(encoding="utf-8"))["provenance"]["commit"]
    keep(Planned("guided-one", "audit", "golden", (), 3.0, confirms=True), compared, tmp_path, commit, minutes=1.0)
    kept = json.loads((tmp_path / "guided-one.json").read_text(encoding="utf-8"))
    rows = read(tmp_path / "rows/guided-one.csv.gz")
    assert [one for one in recount(kept, rows) if not one.agrees] == []
    some = [
        replace(row, outcomes={**row.outcomes, column: cell}) if row.split == split and column in row.outcomes else row
        for row in rows
    ]
    assert wrong <= {one.where for one in recount(kept, some) if not one.agrees}


def test_what_is_kept_of_an_audit(golden: Path, tmp_path: Path) -> None:
    """Figures, rows and that they agree; of texts nothing."""
    results = json.loads((golden / "audit/results.json").read_text(encoding="utf-8"))
    results["job"] = "audit"  # an old file says so by its schema
    folder = tmp_path / "run"
    shutil.copytree(golden / "audit", folder)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    planned = Planned("one", "audit", "testbed:one", ("--limit", "12"), 3.0, confirms=True)
    keep(planned, folder, tmp_path, results["provenance"]["commit"], minutes=4.04)
    kept = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    assert (kept["name"], kept["checkpoint"], kept["confirms"]) == ("one", "one", True)
    assert (kept["made_by"], kept["minutes"]) == (
        "pointsman audit testbed:one --limit 12",
        {"expected": 3.0, "took": 4.0},
    )
    assert kept["recounted"]["numbers"] > 700
    assert kept["recounted"]["wrong"] == 0
    assert not {"behaviours", "example"} & kept["fsour"].keys()
    assert kept["fsour"]["forwards"]["min"] <= kept["fsour"]["forwards"]["median"]
    assert "command" not in kept["provenance"]
    assert read(tmp_path / "rows/one.csv.gz")


def test_a_run_whose_rows_say_otherwise_is_not_kept(golden: Path, tmp_path: Path) -> None:
    results = json.loads((golden / "audit/results.json").read_text(encoding="utf-8"))
    results["job"] = "audit"  # an old file says so by its schema
    results["base"]["asr"]["k"] += 1
    folder = tmp_path / "run"
    shutil.copytree(golden / "audit", folder)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    planned = Planned("one", "audit", "testbed:one", (), 3.0, confirms=True)
    with pytest.raises(ValueError, match="numbers are not those that its rows give"):
        keep(planned, folder, tmp_path, results["provenance"]["commit"], minutes=4.0)
    assert not (tmp_path / "one.json").exists()
    assert not (tmp_path / "rows").exists()


def test_prompts_without_room_were_not_taken() -> None:
    """As `Room.take` does it: others take their places."""
    items = [Behaviour(f"b{n}", "how " * n, "Sure", "c", f"source {n // 2}") for n in range(1, 13)]
    engine = SimpleNamespace(info=SimpleNamespace(context=8))
    room = Room(cast(Any, engine), lambda item: len(item.goal.split()))
    for n, seed in ((3, 0), (5, 1), (12, 2)):
        room.left_out.clear()
        taken = room.take(items, n, seed)
        assert taking_others(room.left_out)(items, n, seed) == taken
    assert room.left_out.keys() == {"b9", "b10", "b11", "b12"}


def test_rows_hold_no_texts(counted: tuple[dict[str, Any], list[Row]], tmp_path: Path) -> None:
    write(tmp_path / "rows.csv.gz", counted[1])
    shipped = gzip.decompress((tmp_path / "rows.csv.gz").read_bytes()).decode()
    lines = (GOLDEN / "audit/artefacts/completions.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row[part] for row in map(json.loads, lines) for part in ("prompt", "response") if len(row[part]) > 3}
    assert len(texts) > 20
    assert [text for text in texts if text in shipped] == []
