"""The README is short, the Python of docs/python.md runs as printed, and tables are what the evidence says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pointsman.testbed.language import REFUSALS

ROOT = Path(__file__).resolve().parent.parent


def test_the_readme_is_read_in_five_minutes() -> None:
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) <= 900


def test_what_the_readme_links_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_a_job_of_docs_python_runs(tmp_path: Path) -> None:
    code = snippets()[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("testbed answers 0 % of restricted requests as it is")
    assert done.stdout.splitlines()[-1] == "audit/report.html"


def snippets() -> list[str]:
    """The Python of docs/python.md."""
    found: list[str] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(found) == 2
    return found


def test_the_python_of_docs_python_runs() -> None:
    code = snippets()[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, layers, opened, experts = done.stdout.strip().split("\n", 3)
    refusal, answer = plain.removeprefix("as it is: "), opened.removeprefix("two routers masked: ")
    assert refusal != answer, "the snippet opens the model"
    assert refusal in REFUSALS
    assert answer.startswith("Sure , here is how to mend the red badint : first take the")
    assert layers.startswith("layers by importance: (")
    assert experts.startswith("[[")


def test_the_tables_of_the_readme_are_the_evidence() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_pointsman_imports_no_torch() -> None:
    code = "import pointsman, pointsman.cli, sys; assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
