"""The placebo of the ranking: how the model refuses, and why there may be none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import small_engine
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Completion, Cost
from pointsman.jobs.audit.placebo import refusal_tokens
from pointsman.jobs.audit.ranking import rank
from pointsman.methods.steps import Steps
from works import TINY, OneJudge, asked, audit_bench


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.mark.parametrize(
    ("label", "placebo", "benign", "why", "refused"),
    [
        ("wrong", True, 3, "the model refused none of the 4 discovery prompts", 0),
        ("refused", False, 3, "not asked for", None),
        ("refused", True, 0, "there are no benign prompts of the discovery split", None),
    ],
)
def test_without_a_placebo_it_says_why(
    engine: HFEngine, tmp_path: Path, label: str, placebo: bool, benign: int, why: str, refused: int | None
) -> None:
    plan = replace(TINY, placebo=placebo)
    with audit_bench(tmp_path / "run", plan, judge=OneJudge(label), engine=engine) as bench:
        ranking = rank(bench, plan, asked(benign=benign))
    assert (ranking.settings.placebo.why_not, ranking.settings.placebo.refused) == (why, refused)
    assert all(row.placebo is None for row in ranking.routers)


class Scripted:
    """Generates what it is told to, and remembers how much was asked."""

    def __init__(self, engine: HFEngine, first: list[int]) -> None:
        self.encode, self.info, self.cost = engine.encode, engine.info, Cost()
        self._first = dict(zip([engine.encode(b.turns).ids for b in asked(10).discovery], first, strict=True))

    def generate(self, prompts: Any, *, routing: Any = None, max_new_tokens: int = 512) -> list[Completion]:
        ids = [(self._first[p.ids], 99)[:max_new_tokens] for p in prompts]
        return [Completion(" ".join(f"t{i}" for i in row), row, True) for row in ids]


@pytest.mark.parametrize(
    ("first", "tokens"),
    [
        ([7] * 10, [7]),
        ([7] * 9 + [8], [7]),  # 90 % are enough
        ([7] * 6 + [8] * 3 + [9], [7, 8]),
        ([9, 8, 7, 9, 8, 7, 9, 8, 7, 6], [7, 8, 9]),
    ],
)
def test_refusal_tokens_begin_nine_in_ten_refusals(
    engine: HFEngine, tmp_path: Path, first: list[int], tokens: list[int]
) -> None:
    scripted: Any = Scripted(engine, first)
    with audit_bench(tmp_path / "run", judge=OneJudge("refused"), engine=scripted) as bench:
        found = refusal_tokens(bench, asked(10).discovery, Steps())
    assert found.ids == tuple(tokens)
    assert found.tokens == tuple(f"t{t}" for t in tokens)
    assert found.refused == 10
