"""The README's Python runs as printed, and its tables are what the evidence says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_python_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, layers, opened, experts = done.stdout.strip().split("\n", 3)
    refusal, answer = plain.removeprefix("as it is: "), opened.removeprefix("two routers masked: ")
    assert refusal != answer, "the snippet opens the model"
    assert refusal.startswith("Sorry")
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
