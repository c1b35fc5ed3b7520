"""The lock files hold what pyproject.toml asks for, and the script that tests several versions tells what happened."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

import lock  # noqa: E402
import versions  # noqa: E402

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def held(file: Path) -> dict[str, str]:
    """Package -> version, of a lock file, on this Python and machine."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    requirements = [Requirement(line) for line in lines]
    assert all(not r.extras for r in requirements)  # pip takes no extras in constraints
    return {
        r.name: str(r.specifier).removeprefix("==")
        for r in requirements
        if r.marker is None or r.marker.evaluate({"extra": ""})
    }


@pytest.mark.parametrize("file", [lock.LOCKED, lock.OLDEST], ids=lambda file: file.stem)
def test_all_that_is_required_is_locked_within_its_bounds(file: Path) -> None:
    versions_ = held(file)
    project = PROJECT["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"], *PROJECT["build-system"]["requires"]]
    for requirement in map(Requirement, [*asked, "editables"]):
        name = requirement.name.lower()
        assert requirement.specifier.contains(versions_[name]), f"{requirement}: run `make lock`"


def test_the_oldest_is_the_lower_bound_and_torch_is_one() -> None:
    oldest, locked = held(lock.OLDEST), held(lock.LOCKED)
    assert Version(oldest["transformers"]) == Version(lock.floor("transformers"))
    assert Version(oldest["transformers"]) < Version(locked["transformers"])
    assert oldest["torch"] == locked["torch"]


def test_what_pyproject_says_is_read() -> None:
    assert lock.requirement("transformers").startswith("transformers>=")
    assert lock.floor("torch") in lock.requirement("torch")
    with pytest.raises(LookupError):
        lock.requirement("hub")  # not huggingface-hub
    with pytest.raises(LookupError):
        lock.locked("nowhere")


@pytest.mark.parametrize("area", versions.AREAS)
def test_every_area_has_tests_with_the_marker(area: str) -> None:
    begin = versions.AREAS[area]
    folder = ROOT / begin.rstrip(".").replace(".", "/")
    files = sorted(folder.glob("test_*.py")) if begin.endswith(".") else [folder.with_suffix(".py")]
    assert files
    for file in files:
        assert re.search(r"mark\.versions\b", file.read_text(encoding="utf-8")), file


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.engine.test_resume" name="test_one[a]" time="1.5" />
<testcase classname="tests.engine.test_resume" name="test_two" time="2.0"><failure message="no">why</failure></testcase>
<testcase classname="tests.families.test_walk" name="test_three" time="0.2"><skipped type="pytest.skip" /></testcase>
<testcase classname="tests.families.test_walk" name="test_four" time="0.2"><error message="setup" /></testcase>
<testcase classname="" name="tests.engine.test_hf" time="0.0"><error message="collection failure" /></testcase>
<testcase classname="tests.engine.test_hf_more" name="test_five" time="0.0" />
</testsuite></testsuites>"""


def test_what_pytest_says_is_counted_by_area() -> None:
    result = versions.Result("oldest", {"transformers": "5.20.0", "torch": "2.13.0+cpu"})
    versions.read(JUNIT, result)
    assert {area: dict(count) for area, count in result.counts.items()} == {
        "resume": {"passed": 1, "failed": 1},
        "families": {"skipped": 1, "failed": 1},
        "generation": {"failed": 1},
        "other": {"passed": 1},
    }
    assert result.failed[0] == "tests/engine/test_resume.py::test_two"
    assert len(result.failed) == 3
    assert not result.good
    head, _, line = versions.table([result]).splitlines()
    cells = dict(zip(*([c.strip() for c in row.strip("|").split("|")] for row in (head, line)), strict=True))
    assert cells["transformers"] == "5.20.0"
    assert cells["tokenizers"] == "-"
    assert cells["resume"] == "1/1/0 4 s"
    assert cells["audit"] == "-"
    assert cells["other"] == "1/0/0 0 s"


@pytest.mark.parametrize(
    ("code", "junit", "wrong"),
    [
        (0, '<testcase classname="tests.engine.test_hf" name="test" time="1" />', ""),
        (5, "", "pytest ended with 5"),
        (0, "", "no test has the marker"),
        (3, '<testcase classname="tests.engine.test_hf" name="test" time="1" />', "pytest ended with 3"),
        (1, '<testcase classname="tests.engine.test_hf" name="test"><failure /></testcase>', ""),
    ],
)
def test_a_run_that_measured_nothing_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, junit: str, wrong: str
) -> None:
    """A stand-in for pytest writes this XML and ends with this code."""
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "HOME", tmp_path)
    monkeypatch.setattr(versions, "versions", lambda python: {})
    fake = tmp_path / "python"
    fake.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "(given,) = [a for a in sys.argv if a.startswith('--junitxml=')]\n"
        f"pathlib.Path(given.partition('=')[2]).write_text('''<testsuite>{junit}</testsuite>''')\nsys.exit({code})\n",
        encoding="utf-8",
    )
    fake.chmod(0o755)
    result = versions.run("oldest", fake, 1)
    assert result.wrong == wrong
    assert result.good == (code == 0 and not wrong)
