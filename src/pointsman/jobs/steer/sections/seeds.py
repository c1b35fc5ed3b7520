"""Other seeds of the method: a spread of its own, never pooled into n."""

from __future__ import annotations

from pointsman.jobs.steer.results import SteerResults
from pointsman.jobs.steer.sections.rates import RateColumns
from pointsman.jobs.steer.wording import wording_for
from pointsman.report import text
from pointsman.report.blocks import Block, Column, Finding, Row, Section, Table


def section(results: SteerResults) -> Section | None:
    """None where there was one seed."""
    if not results.seeds:
        return None
    rates = RateColumns.of(results.seeds, wording_for(results))
    columns = [Column("seed"), Column("alpha"), *rates.columns, Column("entries")]
    rows = [Row([seed.seed, text.show(seed.alpha), *rates.cells(seed), seed.entries]) for seed in results.seeds]
    blocks: list[Block] = []
    if shares := [seed.gain.rate for seed in results.seeds if seed.gain.rate is not None]:
        low, high = text.percent(min(shares)), text.percent(max(shares))
        said = f"Over {text.many(len(rows), 'seed')} of the method the gain lies between {low} and {high}."
        blocks.append(Finding(said))
    caption = "One row per seed, each with the mask it chose on validation."
    blocks.append(Table(columns, rows, caption, "compact dense split"))
    aside = "The same prompts, other random draws: a spread of its own, never pooled into n."
    return Section("seeds", "Other seeds of the method", [aside], blocks)
