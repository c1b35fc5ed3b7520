"""An attack of another package is tried by an audit, beside its control: two files there, and no edit here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest_cli import Cli, behaviors, cli, here, model
from pointsman.jobs.finished import read_results
from pointsman.methods.attack import make_attack, written_attack

__all__ = ["behaviors", "cli", "here", "model"]

PLUGIN = '''
"""All of a package that brings an attack."""

from dataclasses import dataclass

from pointsman.methods.attempts import ask_in_steps
from pointsman.methods.steps import stream
from pointsman.routing.intervention import Intervention


@dataclass(frozen=True)
class Shove:
    """Force random experts at the last prompt token of every layer from `first` on."""

    first: int = 0
    alone: bool = False
    name = "shove"

    def attack(self, engine, behaviours, judge, *, max_new_tokens, seed, steps):
        routings = []
        for behaviour in behaviours:
            rng, last = stream(seed, "shove", behaviour.id), len(engine.encode(behaviour.turns)) - 1
            sets = {(r.layer, last): r.draw(rng, 1)[0].tolist() for r in engine.routers if r.layer >= self.first}
            routings.append(Intervention.force(sets, phase="prefill"))
        return ask_in_steps(
            engine, behaviours, judge, key="shove", steps=steps, routing=routings, max_new_tokens=max_new_tokens
        )

    def control(self):
        return None if self.alone else Idle()


@dataclass(frozen=True)
class Idle:
    name = "idle"

    def attack(self, engine, behaviours, judge, *, max_new_tokens, seed, steps):
        return ask_in_steps(engine, behaviours, judge, key="idle", steps=steps, max_new_tokens=max_new_tokens)

    def control(self):
        return None


class Nothing:
    name = "nothing"
'''
ENTRY = """[pointsman.attacks]
shove = pointsman_shove:Shove
idle = pointsman_shove:Idle
nothing = pointsman_shove:Nothing
"""
QUICK = ("--no-controls", "--samples", 2, "--routers", 1, "--random-draws", 1, "--candidates", 2, "--restarts", 1)


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "site"
    metadata = site / "pointsman_shove-1.dist-info"
    metadata.mkdir(parents=True)
    (site / "pointsman_shove.py").write_text(PLUGIN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pointsman-shove\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(ENTRY)
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("pointsman_shove", None)


def test_an_audit_tries_it_beside_its_control(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    asked = ("audit", model, "--behaviors", behaviors, "--limit", 4, "--max-new-tokens", 4, *QUICK, "--out", "run")
    done = cli(*asked, "--attack", "shove:first=1", "--attack", "shove:alone=true")
    assert done.code == 0, done.err
    _, results = read_results(json.loads((here / "run/results.json").read_text()))
    beside, alone = results.attacks  # type: ignore[attr-defined]
    assert (beside.name, beside.control_name, beside.asr.n) == ("shove:first=1", "idle", 4)
    base = results.base  # type: ignore[attr-defined]
    assert beside.control.refused == base.refused, "the control does nothing"
    assert beside.vs_base == beside.difference_control
    assert (alone.name, alone.control, alone.difference_control) == ("shove:alone=true", None, None)
    claims = {claim.id: claim for claim in results.claims}
    assert claims["attack_shove:first=1_beats_control"].verdict in ("in doubt", "holds", "fails")
    assert claims["attack_shove:alone=true_beats_control"].because == "the attack brings no control"
    page = (here / "run/report.html").read_text()
    for said in ("Other attacks", "control: idle", "shove:first=1 does more than its control"):
        assert said in page
    answers = [json.loads(line) for line in (here / "run/artefacts/completions.jsonl").read_text().splitlines()]
    assert {a["stage"] for a in answers} >= {"attack-shove:first=1", "attack-idle", "attack-shove:alone=true"}

    results_then = (here / "run/results.json").read_text()
    (here / "run/results.json").unlink()
    again = cli("resume", "run")
    assert again.code == 0, again.err
    then, now = json.loads(results_then), json.loads((here / "run/results.json").read_text())
    assert now["attacks"] == then["attacks"]


def test_what_is_no_attack_is_refused_before_anything_is_loaded(cli: Cli, model: Path, behaviors: Path) -> None:
    asked = ("audit", model, "--behaviors", behaviors)
    assert "Unknown attack 'shov'. Did you mean shove?" in cli(*asked, "--attack", "shov").refusal()
    assert "There is no parameter 'last' of the attack shove" in cli(*asked, "--attack", "shove:last=1").refusal()
    assert "registered as the attack nothing is none" in cli(*asked, "--attack", "nothing").refusal()


def test_it_is_written_as_it_was_named() -> None:
    assert written_attack(make_attack("shove:first=2")) == "shove:first=2"
    assert written_attack(make_attack("shove")) == "shove"
