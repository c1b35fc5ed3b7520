"""What docs/trust.md promises is held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "trust.md"


def named() -> list[tuple[str, str]]:
    """Every (file, test) that the tables name; ``::name`` alone is of the file named before, in the same table."""
    found: list[tuple[str, str]] = []
    file = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            file = ""
            continue
        for place in re.findall(r"`([\w/]*\.py)?(?:::(\w+))?`", line.rpartition(" | ")[2]):
            file = place[0] or file
            if place != ("", ""):
                found.append((file, place[1]))
    return found


def test_every_test_that_is_named_exists() -> None:
    places = named()
    assert len(places) > 30
    for file, test in places:
        assert file, test
        text = (TESTS / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE), f"{file}::{test}"


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| promise")]
    assert len(promises) >= 20
    assert all(".py" in row.rpartition(" | ")[2] or "::" in row.rpartition(" | ")[2] for row in promises)
