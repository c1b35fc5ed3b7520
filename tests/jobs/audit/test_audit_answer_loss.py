"""An audit says what masks and noise take from the model's own answers, where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

from cli.conftest_cli import Cli, cli, here
from pointsman.jobs.finished import read_results

__all__ = ["cli", "here"]


def test_own_answers_lose_little_under_little_noise_and_a_run_resumes(cli: Cli, here: Path) -> None:
    quick = (
        "--no-controls", "--noise", 0.1, "--noise", 3, "--limit", 4, "--samples", 2, "--routers", 1, "--random-draws",
        1, "--candidates", 2, "--restarts", 1, "--phase", "both",
    )  # fmt: skip
    done = cli("audit", "testbed", *quick, "--answer-loss", "--out", "run")
    assert done.code == 0, done.err
    _, results = read_results(json.loads((here / "run/results.json").read_text()))
    mask, little, much = results.answers  # type: ignore[attr-defined]
    assert (mask.name, little.name) == ("top 1 masked, frozen, both", "noise of 0.1 sigma")
    assert abs(little.own.mean.mean) < 0.01 < 0.1 < much.own.mean.mean
    assert much.own.lost.n == much.right.lost.n == 4
    assert "What its answers lose" in (here / "run/report.html").read_text()
    then = (here / "run/results.json").read_text()
    (here / "run/results.json").unlink()
    assert cli("resume", "run").code == 0
    assert json.loads((here / "run/results.json").read_text())["answers"] == json.loads(then)["answers"]
