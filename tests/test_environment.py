"""What stands beside Pointsman: refused in one line where it cannot work, noted where it was never tested."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import requires_backends

import pointsman
from families.tiny import tiny
from pointsman import environment
from pointsman.cli import main
from pointsman.errors import UnsupportedEnvironment
from pointsman.report.text import show
from pointsman.routing.control import control, prove
from pointsman.runs.run import Run

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {
    "pointsman": ["torch>=2.11", "transformers<6,>=5.20", "typer>=0.16", "pytest>=8; extra == 'dev'"],
    "transformers": ["huggingface-hub<3.0,>=1.31.0", "tokenizers<0.24.0,>=0.23.1", "safetensors>=0.8.0", "tqdm>=4"],
    "torch": ["sympy>=1.13"],
}
GOOD = {
    "pointsman": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.24.0", "huggingface-hub": "2.4.0",
    "tokenizers": "0.23.3", "safetensors": "0.8.0",
}  # fmt: skip


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What the metadata say is installed: change it. All is in order at first."""
    versions = dict(GOOD)

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: NEEDS[name] if name in versions else version(name))
    environment.check.cache_clear()
    yield versions
    environment.check.cache_clear()


WRONG = [
    ("transformers", "5.18.0", "Pointsman needs transformers>=5.20,<6, and 5.18.0 is installed.",
     "pip install 'transformers>=5.20,<6'."),
    ("transformers", "6.0.0", "Pointsman needs transformers>=5.20,<6, and 6.0.0 is installed.",
     "pip install 'transformers>=5.20,<6'."),
    ("transformers", None, "Pointsman needs transformers, which is not installed.",
     "pip install 'transformers>=5.20,<6'."),
    ("torch", "2.10.0+cu130", "Pointsman needs torch>=2.11, and 2.10.0+cu130 is installed.",
     "pip install 'torch>=2.11'."),
    ("torch", None, "Pointsman needs torch, which is not installed.", "pip install 'torch>=2.11'."),
    ("huggingface-hub", "1.30.0", "transformers 5.24.0 needs huggingface-hub>=1.31.0,<3.0, and 1.30.0 is installed.",
     "pip install 'huggingface-hub>=1.31.0,<3.0'."),
    ("tokenizers", None, "transformers 5.24.0 needs tokenizers, which is not installed.",
     "pip install 'tokenizers>=0.23.1,<0.24.0'."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "version", "problem", "remedy"), WRONG)
def test_what_cannot_work_is_one_line_with_the_command_that_mends_it(
    installed: dict[str, str], name: str, version: str | None, problem: str, remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    environment.check()
    environment.check.cache_clear()
    del installed[name]
    if version is not None:
        installed[name] = version
    with pytest.raises(UnsupportedEnvironment) as caught:
        environment.check()
    assert str(caught.value) == f"{problem} {remedy}"
    for arguments in (["scenario", "init"], ["doctor", "testbed"], ["report", "nowhere"]):
        assert main(arguments) == 2
        done = capsys.readouterr()
        assert (done.out, done.err) == ("", f"pointsman: {problem} {remedy}\n")
    for arguments in (["--version"], ["audit", "--help"]):
        assert main(arguments) == 0
        assert capsys.readouterr().err == ""


def test_as_a_library_it_is_refused_too(installed: dict[str, str]) -> None:
    model = tiny("olmoe")
    installed["transformers"] = "5.18.0"
    with pytest.raises(UnsupportedEnvironment, match=r"5\.18\.0 is installed"):
        pointsman.load("testbed")
    with pytest.raises(UnsupportedEnvironment, match=r"5\.18\.0 is installed"):
        prove(model)
    with pytest.raises(UnsupportedEnvironment, match=r"5\.18\.0 is installed"), control(model):
        pass


@pytest.mark.parametrize("version", ["5.20.0", "5.24.0", "5.25.0", "5.25.0.dev0", "5.24.0+local", "our-build"])
def test_what_is_within_the_bounds_is_not_refused(installed: dict[str, str], version: str) -> None:
    installed["transformers"] = version
    environment.check()


def test_what_was_looked_at_once_is_not_looked_at_again(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.check()
    asked: list[str] = []
    monkeypatch.setattr(metadata, "version", asked.append)
    environment.check()
    assert asked == []


def test_without_metadata_of_pointsman_there_are_no_bounds(installed: dict[str, str]) -> None:
    del installed["pointsman"]
    installed["transformers"] = "5.1.0"
    environment.check()
    environment.check.cache_clear()
    del installed["torch"]
    with pytest.raises(UnsupportedEnvironment, match=r"pip install 'torch'\."):
        environment.check()


def test_the_check_imports_nothing_heavy() -> None:
    code = "import sys; from pointsman.environment import check; check(); print({'torch', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


BROKEN = "raise ImportError('cannot import name wanted from\\n  unwanted')"


@pytest.mark.parametrize("name", ["transformers", "torch"])
@pytest.mark.parametrize("how", ["library", "command"])
def test_a_package_that_cannot_be_imported_is_one_line(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / f"{name}.py").write_text(BROKEN, encoding="utf-8")
    library = (
        "import pointsman\ntry:\n pointsman.load\n"
        "except pointsman.PointsmanError as e:\n sys.exit(f'pointsman: {e}\\n' * (type(e).exit_code == 2))"
    )
    command = "from pointsman.cli import main; code = main(['doctor', 'testbed']); assert code == 2, code"
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", start + (library if how == "library" else command)], capture_output=True, text=True
    )
    line = done.stderr.strip()
    assert line.startswith(f"pointsman: {name} cannot be imported (cannot import name wanted from unwanted). ")
    assert f"pip install --force-reinstall '{name}>=" in line
    assert "\n" not in line


def test_an_import_error_of_somebody_else_stays_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"), environment.importing():
        import nowhere_to_be_found  # noqa: F401
    with pytest.raises(ImportError) as caught:  # an optional package that a function of transformers asks for
        requires_backends(object(), "natten")
    assert environment.broken(caught.value) is None


def test_transformers_is_told_for_what_really_happened() -> None:
    """It wraps what went wrong in a module into a sentence that does not say what."""
    error = ModuleNotFoundError(
        "Could not import module 'X'. Are this object's requirements defined?", name="transformers"
    )
    error.__cause__ = AttributeError("module 'torch' has no attribute 'newest'")
    said = environment.broken(error)
    assert said is not None
    assert "transformers cannot be imported (module 'torch' has no attribute 'newest')" in str(said)


def test_what_is_broken_for_what_stands_beside_it_is_told_so(installed: dict[str, str]) -> None:
    error = ModuleNotFoundError("No module named 'httpx'", name="httpx")
    with pytest.raises(UnsupportedEnvironment, match=r"No module named 'httpx'"), environment.importing():
        raise ImportError("wrapped", name="transformers") from error
    environment.check.cache_clear()
    installed["huggingface-hub"] = "1.30.0"
    with pytest.raises(UnsupportedEnvironment, match=r"needs huggingface-hub.* 1\.30\.0 is"), environment.importing():
        raise ImportError("wrapped", name="transformers") from error


def test_an_operation_that_torch_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("Could not run 'aten::_grouped_mm'\nwith arguments from the 'Other' backend.")

    model = tiny("olmoe", dtype=torch.float32)
    model.set_experts_implementation("grouped_mm")
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", lacks)
    with pytest.raises(UnsupportedEnvironment) as caught:
        prove(model)
    assert "cannot compute a forward of OlmoeForCausalLM (Could not run 'aten::_grouped_mm' with" in str(caught.value)
    model.set_experts_implementation("eager")  # what the message advises
    assert prove(model).identical


# ---------------------------------------------------------------------- newer than tested

NEWER = "transformers 5.25.0 is newer than 5.24.0, the newest that this version of Pointsman was tested with"
NEWER_TORCH = NEWER.replace("transformers 5.25.0", "torch 2.13.1+cu130").replace("5.24.0", "2.13.0")


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformers that this Pointsman was never tested with."""
    real = metadata.version
    monkeypatch.setitem(environment.NEWEST_TESTED, "transformers", "5.24.0")
    monkeypatch.setattr(metadata, "version", lambda name: "5.25.0" if name == "transformers" else real(name))


def test_newest_tested_is_what_is_locked() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {f"{name}=={version}" for name, version in environment.NEWEST_TESTED.items()} <= {*lines}


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"torch": "2.13.0+cpu", "transformers": "5.24.0"}, []),
        ({"torch": "2.11.0", "transformers": "5.20.0"}, []),
        ({"torch": "our-build"}, []),
        ({"transformers": "5.25.0"}, [NEWER]),
        ({"torch": "2.13.1+cu130"}, [NEWER_TORCH]),
    ],
)  # fmt: skip
def test_what_is_newer_than_tested_is_said(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], said: list[str]
) -> None:
    monkeypatch.setattr(environment, "NEWEST_TESTED", {"torch": "2.13.0", "transformers": "5.24.0"})
    installed.update(versions)
    assert environment.notices() == said


@pytest.mark.usefixtures("newer")
def test_a_run_and_its_results_hold_the_notice(tmp_path: Path) -> None:
    from pointsman.runs.provenance import provenance

    with Run.create(tmp_path / "run", "audit", {"model": "m"}) as run:
        assert run.manifest["notices"] == [NEWER]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["notices"] == [NEWER]
    assert provenance()["notices"] == [NEWER]


def test_no_notice_is_shown_as_nothing() -> None:
    assert show([]) == show(None)
