"""The tables of the evidence: old figures beside new ones, controls in the row, and what a hostile reader says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

import audit_tables  # noqa: E402
import evidence_files  # noqa: E402
import hostile  # noqa: E402
import rows  # noqa: E402
from evidence_plan import Planned, read_plan  # noqa: E402

PLAN = read_plan(ROOT / "evidence/plan.yaml")
OLD = {file.stem: file for file in (ROOT / "evidence/old").glob("*.json")}
NAMES = ["olmoe", "qwen2_moe", "olmoe-seed1"]


class Kept:
    """A folder of evidence, in which the old files may stand as new ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "old").mkdir()

    def old(self, *names: str) -> None:
        for name in names:
            (self.folder / "old" / f"{name}.json").write_bytes(OLD[name].read_bytes())

    def new(self, name: str, old: str, **changed: Any) -> None:
        found = json.loads(OLD[old].read_text(encoding="utf-8"))
        found["provenance"]["commit"] = "c" * 40
        (self.folder / f"{name}.json").write_text(json.dumps({**found, "name": name, **changed}), encoding="utf-8")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    for module in (evidence_files, hostile):
        monkeypatch.setattr(module, "EVIDENCE", tmp_path)
    return Kept(tmp_path)


def lines(kept: Kept, start: str) -> list[list[str]]:
    """The cells of the rows of all tables in docs/evidence.md that begin so."""
    text = "\n".join(audit_tables.in_docs(NAMES, ["n100-olmoe"]))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(start)]


def test_what_is_old_is_called_so_until_it_is_measured_anew(kept: Kept) -> None:
    kept.old("olmoe", "qwen2_moe")
    assert len(lines(kept, "| olmoe (old) |")) > 10
    assert "they stand here until" in "\n".join(audit_tables.in_docs(NAMES, []))
    kept.new("olmoe", "olmoe", confirms=False)
    assert lines(kept, "| olmoe (old) |") == []
    assert lines(kept, "| olmoe |") != []
    assert lines(kept, "| qwen2_moe (old) |") != []


def test_the_old_figure_stands_below_the_new_one_where_they_differ(kept: Kept) -> None:
    kept.old("olmoe")
    kept.new("olmoe", "qwen2_moe", checkpoint="olmoe", confirms=True)
    (masked,) = [cells for cells in lines(kept, "| olmoe | 2 |") if "of 10" in "".join(cells)]
    assert masked[3] == "0.0 % [0, 4]", "the same then as now"
    assert masked[4] == "100.0 % [96, 100]<br>*81.0 % [75, 87]*"
    assert masked[7] == "0 of 10"
    model = lines(kept, "| olmoe | yes |")[0]
    assert model[7] == "35.5 % [28, 43]<br>*43.5 % [37, 50]*"


def test_the_control_that_contradicts_stands_in_the_row(kept: Kept) -> None:
    kept.old("olmoe")
    rows = {cells[1]: cells for cells in lines(kept, "| olmoe (old) |") if "of 10" in "".join(cells)}
    assert [[*rows[n][6:8], rows[n][9]] for n in "123"] == [
        ["48 %", "1 of 10", "in doubt"], ["63 %", "0 of 10", "holds"], ["89 %", "1 of 10", "in doubt"],
    ]  # fmt: skip
    (readme,) = audit_tables.in_readme(["olmoe"])
    assert "| 63 % (0 of 10) | in doubt, holds, in doubt |" in readme


def test_every_rank_says_what_it_means(kept: Kept) -> None:
    kept.old("olmoe-seed1")
    text = "\n".join(audit_tables.in_docs(["olmoe-seed1"], []))
    assert "| olmoe-seed1 (old) | 1 of 12 (routers 9) |" in text
    assert "| 0 | 1 | 0.76 [0.69, 0.84] | 0.0001 | 0.68 [0.61, 0.75] |" in text
    assert "| means nothing: as large on benign prompts |" in text


def test_the_number_of_candidates_of_the_paper(kept: Kept) -> None:
    old = json.loads(OLD["olmoe"].read_text(encoding="utf-8"))["fsour"]
    fsour = {**old, "settings": {**old["settings"], "candidates": 100, "restarts": 1}}
    kept.new("n100-olmoe", "olmoe", fsour={**fsour, "forwards": {"median": 4901, "min": 1, "max": 9999}})
    kept.new("olmoe", "olmoe")
    hundred, ten = [cells for cells in lines(kept, "| olmoe | 10") if cells[1] in ("100", "10")]
    assert (hundred[1], hundred[8], ten[1], ten[8]) == ("100", "4,901", "10", "-")
    assert (hundred[5], ten[5]) == ("holds", "-"), "the control of five searches says nothing of one"
    assert "up to five searches" in ten[9]


def test_a_file_from_a_tree_with_changes_is_no_evidence(kept: Kept) -> None:
    kept.new("olmoe", "olmoe", provenance={"commit": "c" * 40 + "+changes", "cpu": "x"})
    with pytest.raises(SystemExit, match="no table is made of it"):
        list(audit_tables.in_docs(NAMES, []))


# ---------------------------------------------------------------------- the hostile reader


def said(plan: Any = PLAN) -> dict[str, str]:
    return {text[3]: text for text in hostile.in_docs(plan)}


def test_without_new_evidence_every_point_names_what_is_missing(kept: Kept) -> None:
    kept.old("olmoe", "steering-defence-olmoe")
    found = said()
    assert list(found) == list("abcdefghijkl")
    assert all("No number yet: missing" in text for letter, text in found.items() if letter != "i")
    without = [run for run in PLAN if "paper" not in run.options]
    assert "no run of evidence/plan.yaml answers it" in said(without)["i"]
    assert "`n100-olmoe`, `n100-qwen2_moe`, `n100-deepseek_v3`.*" in found["l"]


def test_every_point_is_answered_by_a_number(kept: Kept) -> None:
    some = ("olmoe", "n100-olmoe", "steering-defence-olmoe")
    plan = [replace(run, options=("--init", "paper")) if "steering" in run.name else run for run in PLAN]
    plan = [run for run in plan if run.name in some]
    plan += [Planned("olmoe-seed1", "audit", "testbed:olmoe-seed1", (), 1.0, confirms=True)]
    old = json.loads(OLD["olmoe"].read_text(encoding="utf-8"))["fsour"]
    forwards = {"median": 4901, "min": 1, "max": 9999}
    kept.new("olmoe", "olmoe", recounted={"numbers": 815, "wrong": 0})
    kept.new("olmoe-seed1", "olmoe-seed1", recounted={"numbers": 100, "wrong": 1})
    kept.new("n100-olmoe", "olmoe", fsour={**old, "forwards": forwards})
    kept.new("steering-defence-olmoe", "steering-defence-olmoe")
    talk = [("a", "refused wrong"), ("b", "refused refused"), ("c", "wrong refused")]
    outcomes = [rows.Row("conversations", id, id, "test", outcomes={"test/after": cell}) for id, cell in talk]
    rows.write(kept.folder / "rows/steering-defence-olmoe.csv.gz", outcomes)
    found = said(plan)
    assert not any("No number yet" in text for text in found.values())
    defence = json.loads(OLD["steering-defence-olmoe"].read_text(encoding="utf-8"))["test"]
    gain = 100 * (defence["after"]["gain"]["rate"] - defence["before"]["gain"]["rate"])
    assert (
        f"The mask chosen on validation gains {gain:+.0f} points; it was learnt through the model in 1 of 1"
        in found["a"]
    )
    assert "points (1 runs)" in found["g"]
    assert "gains" in found["i"]
    assert "two masked routers open 98 % (random pairs 16 %)" in found["b"]
    assert "All 4 files name one commit, cccccccccccc" in found["c"]
    assert "at 2 of 5 rows" in found["d"]
    assert "the claim holds at 3." in found["d"]
    assert "of 1 chosen masks break a limit" in found["e"]
    assert "1 of 3 test conversations end in a wrong answer" in found["h"]
    assert "Of 24 ranks in 2 audits 5 mean something; 1 stand above the other routers and are as large" in found["j"]
    assert "counted 915 numbers of 2 runs again from the rows that ship; 1 differ" in found["k"]
    assert "4,901 forwards a prompt" in found["l"]


def test_a_part_of_the_answer_says_how_much_is_there(kept: Kept) -> None:
    kept.new("olmoe", "olmoe")
    assert "(Of 9 planned runs 1 are there.)" in said()["d"]
