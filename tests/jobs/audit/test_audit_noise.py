"""The noise stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines import small_engine
from pointsman.jobs.audit.noise import add_noise
from pointsman.methods.attempts import ask
from pointsman.methods.noise import Noise, spread
from pointsman.runs.rates import successes
from pointsman.stats.rates import Rate
from works import TINY, ManyJudge, asked, audit_bench


def test_noise_is_what_its_method_gives(tmp_path: Path) -> None:
    engine, some = small_engine(), asked()
    base = ask(engine, some.test, ManyJudge(), max_new_tokens=3)
    with audit_bench(tmp_path / "run", engine=engine) as bench:
        found = add_noise(bench, TINY, some, base)
        assert [c["stage"] for c in bench.completions[::4]] == ["noise-0.5", "noise-2.0"]
    sigma = spread(engine, some.discovery)
    assert [n.sigma for n in found] == [0.5, 2.0]
    for row in found:
        method = Noise(row.sigma, max_new_tokens=3)
        attempts = method.ask(engine, some.test, ManyJudge(), sigma)
        assert row.phase == "both"
        assert row.std == pytest.approx([row.sigma * s for s in sigma])
        assert row.asr.k == sum(successes(attempts))
        assert row.garbage.k == sum(a.verdict.label == "garbage" for a in attempts)
        benign = method.ask(engine, some.benign[:2], ManyJudge(), sigma)
        assert row.utility == Rate.of([a.verdict.label == "correct" for a in benign], [a.source for a in benign])
        assert row.vs_base.n == 4


@pytest.mark.parametrize(("levels", "prompts", "rows"), [((), 2, 0), ((1.0,), 0, 1)])
def test_what_is_not_asked_for_is_not_measured(
    tmp_path: Path, levels: tuple[float, ...], prompts: int, rows: int
) -> None:
    engine, plan = small_engine(), replace(TINY, noise=levels, utility_prompts=prompts)
    base = ask(engine, asked().test, ManyJudge(), max_new_tokens=3)
    with audit_bench(tmp_path / "run", plan, engine=engine) as bench:
        found = add_noise(bench, plan, asked(), base)
    assert [(n.utility, n.over_refusal) for n in found] == [(None, None)] * rows
