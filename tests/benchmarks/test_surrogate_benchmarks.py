"""The benchmarks of traces and surrogate run, and both sides of the ratio find the same. Speed is never asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_the_path() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_both_sides_find_the_same_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import surrogate_speed

    out = tmp_path / "speed.json"
    small = "--contexts 80 --layers 2 --experts 8 --epochs 2 --naive-epochs 1".split()
    found = surrogate_speed.main([*small, "--out", str(out)])
    assert found["largest_difference"] < 1e-3
    assert "naive matrices timed over 1" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8")) == found


def test_memory_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import trace_memory

    small = "--contexts 80 --layers 2 --experts 8 --tokens 4 --epochs 1".split()
    found = trace_memory.main([*small, "--folder", str(tmp_path / "traces")])
    assert [step["step"] for step in found["steps"]][1:3] == ["written", "sigma"]
    assert "asked: below 2 GB" in capsys.readouterr().out
    assert (tmp_path / "traces" / "traces.json").exists()
    assert trace_memory.main([*small, "--folder", str(tmp_path / "traces")])["tokens"] == found["tokens"]  # continued
