"""A manifest of an earlier version means what was done then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pointsman.cli.manifest import plan_of
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.parameters import plain

GOLDEN = Path(__file__).parents[1] / "golden/audit/manifest.json"


class Began:
    """A run, as far as its plan is concerned."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config


def test_a_run_that_began_before_splits_were_balanced_goes_on_with_the_lot() -> None:
    config = json.loads(GOLDEN.read_text())["config"]
    assert "splits" not in config
    plan = plan_of(Began(config), Audit)  # type: ignore[arg-type]
    assert plan.splits == "drawn"
    assert {p: v for p, v in plain(plan).items() if p in config} == {p: config[p] for p in plain(plan) if p in config}
    assert plan_of(Began(plain(Audit())), Audit) == Audit()  # type: ignore[arg-type]
    assert Audit().splits == "balanced"


def test_no_other_parameter_may_be_missing() -> None:
    config = plain(Audit())
    del config["samples"]
    with pytest.raises(KeyError, match="samples"):
        plan_of(Began(config), Audit)  # type: ignore[arg-type]
