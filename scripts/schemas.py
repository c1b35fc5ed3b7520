"""Write the JSON schema of every job's results to docs/schemas/: `make schemas`. A test holds them to the classes."""

from __future__ import annotations

import json
from pathlib import Path

from pointsman.jobs.job import job_of
from pointsman.registry import jobs
from pointsman.runs.results import schema_of

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"


def schemas() -> dict[str, str]:
    """The text of each file, by its name."""
    return {f"{name}.json": json.dumps(schema_of(job_of(name).work.results), indent=2) + "\n" for name in jobs.names()}


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
