"""Results files of every version are read, or refused in one line that says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pointsman.errors import RunError
from pointsman.jobs.finished import ANEW, read_results
from pointsman.runs.results import dump

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(run: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((GOLDEN / run / "results.json").read_text())
    return results


@pytest.mark.parametrize("run", ["audit", "steer", "evaluate"])
def test_a_file_of_an_earlier_version_is_of_the_job_that_made_it(run: str) -> None:
    job, results = read_results(golden(run))
    assert job.name == results.job == run
    assert isinstance(results, job.work.results)
    assert read_results(dump(results)) == (job, results)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "names no schema"), ({"schema": "x/1"}, "has schema 'x/1'"), ({"schema": 3}, "has schema '3'"),
        ({"schema": "pointsman.results/1"}, "is of the job 'None', which nobody registered"),
        ({"schema": "pointsman.results/1", "job": "audit"}, "results.json cannot be read"),
        ({"schema": "pointsman.steer/1"}, "results.json is not what pointsman.steer/1 was (KeyError"),
        ({"schema": "pointsman.audit/2", "masking": 3}, "results.json "),
    ],
)  # fmt: skip
def test_what_is_no_results_file_is_refused_in_one_line(data: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError) as refused:
        read_results(data)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_conclusions_that_do_not_follow_are_made_anew_and_it_is_said() -> None:
    _, honest = read_results(golden("audit"))
    forged = dump(honest)
    for claim in forged["claims"]:
        claim["verdict"] = "holds"
    forged["headline"] = "All is well."
    _, results = read_results(forged)
    assert (results.headline, results.claims) == (honest.headline, honest.claims)
    assert results.notes == (*honest.notes, ANEW)
    assert read_results(dump(honest))[1].notes == honest.notes
