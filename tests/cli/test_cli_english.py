"""`testbed build english` and `testbed:english` on the command line, with no wheel and no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest_cli import Cli

from pointsman.data.types import Suite
from pointsman.jobs.audit.question import suite_of
from pointsman.registry import behaviors
from pointsman.testbed.english import build, dense


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pointsman" / "english"


def test_a_model_that_is_not_built_says_how_to_build_it(cli: Cli, cache: Path) -> None:
    for command in (["audit", "testbed:english"], ["doctor", "testbed:english"], ["chat", "testbed:english"]):
        assert "testbed:english is not built yet. Give `pointsman testbed build english`" in cli(*command).refusal()


def test_a_wheel_that_is_not_installed_is_named_in_one_line(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense.util, "find_spec", lambda name: None)
    done = cli("testbed", "build", "english")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(
        "pointsman: The package gguf is not installed. Give `pip install 'pointsman[english]'"
    )
    assert not cache.exists()


def test_build_prints_the_folder(cli: Cli, here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(folder: Path, source: Path) -> None:
        folder.mkdir(parents=True)

    monkeypatch.setattr(dense, "find", lambda: Path("dense.gguf"))
    monkeypatch.setattr(build, "_write", written)
    done = cli("testbed", "build", "english")
    assert (done.code, done.out) == (0, f"{cache}\n")
    assert cli("testbed", "build", "english", "--out", "mine").out == "mine\n"
    assert cli("testbed", "build", "french").code == 2


def test_a_checkpoint_may_bring_prompts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(behaviors), "__contains__", lambda self, name: name in ("testbed", "testbed:english"))
    assert suite_of("testbed:english") == "testbed:english"
    assert suite_of("testbed:olmoe") == suite_of("testbed") == "testbed"


def test_the_english_prompts_and_judge_are_registered() -> None:
    from pointsman.registry import judges

    suite: Suite = behaviors.get("testbed:english")()
    assert suite.name == "testbed:english"
    assert judges.get(suite.judge).name == suite.judge
