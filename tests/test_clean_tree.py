"""Evidence is made from a clean tree, on one commit: `scripts/clean.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

from clean import refuse_changes, require_clean_tree, require_same_commit  # noqa: E402


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with a file of code and one of evidence, both committed."""
    root = tmp_path / "checkout"
    (root / "evidence").mkdir(parents=True)
    (root / "evidence/checkpoints").mkdir()
    for name in ("code.py", "evidence/olmoe.json", "evidence/checkpoints/hashes.json"):
        (root / name).write_text("old\n", encoding="utf-8")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "begin")
    return root


def test_a_clean_tree_gives_its_commit(tree: Path) -> None:
    assert require_clean_tree(tree) == git(tree, "rev-parse", "HEAD")


def test_what_the_scripts_write_may_differ(tree: Path) -> None:
    (tree / "evidence/olmoe.json").write_text("new\n", encoding="utf-8")
    (tree / "evidence/rows").mkdir()
    (tree / "evidence/rows/new.csv.gz").write_bytes(b"new")
    assert require_clean_tree(tree) == git(tree, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    "name",
    ["code.py", "a file not known to git.py", "evidence/checkpoints/hashes.json", "evidence/checkpoints/new.json"],
)
def test_a_changed_file_is_named_in_one_line(tree: Path, name: str) -> None:
    (tree / name).write_text("new\n", encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        require_clean_tree(tree)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("hidden", ["--assume-unchanged", "--skip-worktree"])
def test_a_file_that_git_is_told_not_to_look_at_is_refused(tree: Path, hidden: str) -> None:
    git(tree, "update-index", hidden, "code.py")
    (tree / "code.py").write_text("new\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"not to look at code\.py"):
        require_clean_tree(tree)


def test_a_renamed_file_counts_once_and_a_second_file_is_counted(tree: Path) -> None:
    git(tree, "mv", "code.py", "moved.py")
    with pytest.raises(SystemExit, match=r"and moved\.py differs"):
        require_clean_tree(tree)
    (tree / "more.py").write_text("new\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"moved\.py and 1 more differs"):
        require_clean_tree(tree)


def test_without_a_commit_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Evidence names its commit"):
        require_clean_tree(tmp_path)


def test_a_run_is_resumed_on_its_own_commit_only(tmp_path: Path) -> None:
    run = tmp_path / "work" / "olmoe"
    require_same_commit(run, "a" * 40)
    require_same_commit(run, "b" * 40)  # it never began: nothing was measured on the first
    run.mkdir()
    require_same_commit(run, "b" * 40)
    with pytest.raises(SystemExit, match="begun on commit bbbbbbbbbbbb, and this is cccccccccccc"):
        require_same_commit(run, "c" * 40)
    (tmp_path / "work" / "olmoe.commit").unlink()
    with pytest.raises(SystemExit, match="begun on commit unknown"):
        require_same_commit(run, "b" * 40)


def test_no_table_is_made_of_a_tree_with_changes() -> None:
    refuse_changes({"provenance": {"commit": "a" * 40}}, "olmoe")
    for commit, said in (("a" * 40 + "+changes", "changes"), (None, "no commit")):
        with pytest.raises(SystemExit, match=said):
            refuse_changes({"provenance": {"commit": commit}}, "olmoe")
