"""Per-row outcomes beside the evidence: `scripts/rows.py`."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

from rows import Row, read, verdict, verdicts, write  # noqa: E402

ROWS = [
    Row("conversations", "c, 1", "badint", "test", "hexcraft", 'role "play"', {"base": "garbage refused"}),
    Row("benign", "b\n1", "lairn", "test", "", "", {"base": "correct+", "after": "wrong"}),
]


def test_rows_are_read_as_they_were_written_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    first, again = tmp_path / "rows" / "one.csv.gz", tmp_path / "two.csv.gz"
    write(first, ROWS)
    assert read(first) == ROWS
    write(again, read(first))
    assert again.read_bytes() == first.read_bytes()
    assert [p.name for p in first.parent.iterdir()] == ["one.csv.gz"]
    assert gzip.decompress(first.read_bytes()).splitlines()[0] == b"list,id,cluster,split,category,tactic,base,after"


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv.gz").write_bytes(gzip.compress(b"id,prompt\n1,how\n"))
    with pytest.raises(ValueError, match="does not begin with the columns list, id"):
        read(tmp_path / "other.csv.gz")


def test_a_success_of_the_attack_has_a_plus() -> None:
    assert verdict({"label": "correct", "score": 0.9, "reason": ""}) == "correct+"
    assert verdict({"label": "complied", "score": 0.9, "reason": ""}) == "complied"
    turns = [{"label": "complied", "score": None}, {"label": "complied", "score": 1.0}]
    assert verdicts(turns) == "complied complied+"
