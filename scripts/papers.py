"""Make the models of the two papers as tiny checkpoints, do everything with each, and write down what was seen.

    python scripts/papers.py            write the table of docs/models.md
    python scripts/papers.py --check    fail if the table is not what is seen now

What is made and done is in tests/families/papers.py, and what is seen there is what the table says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "families"))

from papers import PAPERS, Walked, code_kept_in, walk  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- begin: scripts/papers.py -->", "<!-- end: scripts/papers.py -->"
_HEAD = (
    "model", "of", "transformers class", "routers, experts, top-k", "system prompt", "thinking", "loads", "converses",
    "judged on", "steered", "attacked", "learns", "fold",
)  # fmt: skip


def row(seen: Walked) -> str:
    """Its line of the table."""
    papers = next(paper.papers for paper in PAPERS if paper.name == seen.name)
    cells = (
        seen.name, ", ".join(papers), seen.kind, ", ".join(map(str, seen.shape)), seen.system, seen.thinking,
        seen.loads, seen.converses, seen.judged, seen.steered, seen.attacked, seen.learns, seen.fold,
    )  # fmt: skip
    return f"| {' | '.join(cell.replace('|', '/').replace('<', '&lt;') for cell in cells)} |"


def table(rows: Sequence[Walked]) -> str:
    """The generated part of docs/models.md."""
    rule = "|".join("---" for _ in _HEAD)
    return "\n".join(
        [f"transformers {transformers.__version__}:", "", f"| {' | '.join(_HEAD)} |", f"|{rule}|", *map(row, rows)]
    )


def written() -> str:
    """The generated part that docs/models.md holds now."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def version() -> str:
    """The transformers version that it is of."""
    return written().removeprefix("transformers ").partition(":")[0]


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if docs/models.md is stale")
    options = parser.parse_args()
    if options.check and version() != transformers.__version__:
        print(f"{PAGE.name} is of transformers {version()}, and {transformers.__version__} is installed: no check")
        return 0
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder, code_kept_in(Path(folder) / "code"):
        for paper in PAPERS:
            rows.append(walk(paper, Path(folder) / paper.name))
            print(row(rows[-1]), file=sys.stderr, flush=True)
    if options.check:
        if table(rows) == written():
            return 0
        print("docs/models.md is stale: run `python scripts/papers.py`", file=sys.stderr)
        return 1
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
