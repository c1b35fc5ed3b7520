"""Results of the golden audit, to be varied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pointsman.jobs.audit.results import AuditResults
from pointsman.jobs.finished import read_results

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture(scope="session")
def results() -> AuditResults:
    data = json.loads((GOLDEN / "audit" / "results.json").read_text(encoding="utf-8"))
    found = read_results(data)[1]
    assert isinstance(found, AuditResults)
    return found
