"""Write the tables of README and docs/ from evidence/*.json; none is typed by hand.

    python scripts/tables.py [--check]

With --check nothing is written, and the exit code is 1 if a page is not what the evidence says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import audit_tables
import guided_tables
import hostile
import steering_tables
from evidence_files import EVIDENCE
from evidence_plan import read_plan

ROOT = Path(__file__).resolve().parent.parent
MARKS = {
    name: (f"<!-- {name}:begin (make evidence-tables) -->", f"<!-- {name}:end -->")
    for name in ("evidence", "guided", "steering", "hostile")
}


def parts() -> list[tuple[Path, str, Iterable[str]]]:
    """Every page, the marks between which something is made, and what."""
    plan = read_plan(EVIDENCE / "plan.yaml")
    audits = [run.name for run in plan if run.kind == "audit" and not run.compares_searches]
    hundred = [name for name in audits if name.startswith("n100-")]
    proper = [name for name in audits if name not in hundred]
    shipped = [name for name in proper if "-seed" not in name and name != "english"]
    steered = [run for run in plan if run.kind in ("steer", "evaluate")]
    docs = ROOT / "docs"
    return [
        (ROOT / "README.md", "evidence", audit_tables.in_readme(shipped)),
        (docs / "evidence.md", "evidence", audit_tables.in_docs(proper, hundred)),
        (docs / "evidence.md", "hostile", hostile.in_docs(plan)),
        (docs / "guided.md", "guided", guided_tables.in_docs([run.name for run in plan if run.compares_searches])),
        (docs / "steering.md", "steering", steering_tables.in_docs(steered)),
    ]


def pages() -> dict[Path, str]:
    """Every page with its tables as the evidence says."""
    made: dict[Path, str] = {}
    for page, name, texts in parts():
        begin, end = MARKS[name]
        text = made.get(page) or page.read_text(encoding="utf-8")
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            sys.exit(f"{page.name} lacks the lines {begin} and {end}.")
        made[page] = f"{before}{begin}\n\n" + "\n\n".join(texts) + f"\n\n{end}{after}"
    return made


def main() -> None:
    for page, text in pages().items():
        if "--check" not in sys.argv[1:]:
            page.write_text(text, encoding="utf-8")
        elif text != page.read_text(encoding="utf-8"):
            sys.exit(f"{page.name} is not what evidence/ says. Run `make evidence-tables`.")


if __name__ == "__main__":
    main()
