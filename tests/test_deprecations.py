"""What transformers and torch say of things that will go fails a test, however it is said."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import warnings
import pytest
from transformers.utils import logging
from transformers.utils.deprecation import deprecate_kwarg

logger = logging.get_logger("transformers.models.some")

@pytest.mark.parametrize("n", [1, 2])
def test_said_once_and_heard_in_every_test(n):
    logger.warning_once("`old` is deprecated. Use `new` instead.")

def test_will_be_removed():
    logger.warning("This will be removed in v6.")

@pytest.fixture(scope="module")
def made():
    logger.warning_once("`made` is deprecated.")

def test_of_a_fixture(made):
    pass

@deprecate_kwarg("old", version="99.0.0", new_name="new")
def takes(new=None):
    pass

def test_warned():
    takes(old=1)

@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_kinds(kind):
    warnings.warn("this goes", kind)

def test_quiet_others():
    logger.warning("Something else is worth a word.")
    warnings.warn("and this")

@pytest.mark.outdated("`old` is deprecated")
@pytest.mark.parametrize("what", ["old", "other"])
def test_on_purpose(what):
    logger.warning_once(f"`{what}` is deprecated.")
"""


def test_deprecations_fail_tests(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_inner.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-rA"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", tmp_path / "test_inner.py"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    wrong = set(re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", said, re.MULTILINE))
    assert wrong == {
        *(f"test_said_once_and_heard_in_every_test[{n}]" for n in (1, 2)),
        "test_will_be_removed",
        "test_of_a_fixture",
        "test_warned",
        *(f"test_kinds[{k}]" for k in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")),
        "test_on_purpose[other]",
    }, said
