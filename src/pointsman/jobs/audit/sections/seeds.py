"""The methods under other seeds: a spread of its own, never part of n."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pointsman.jobs.audit.results import AuditResults, MethodSeeds
from pointsman.report import text
from pointsman.report.blocks import Cell, Column, Finding, Reading, Row, Section, Table


def section(results: AuditResults, seeds: MethodSeeds) -> Section:
    """Ranking, masking and search, seed by seed."""
    rows: list[Row] = []
    names: Sequence[int] = ()
    said: list[str] = []
    if (ranking := seeds.rosais) is not None:
        names = ranking.seeds
        tops = list(map(str, ranking.top1))
        rows.append(_row("Router of highest RoSais", tops, text.show(sorted(set(ranking.top1)))))
    for masked in seeds.masking:
        names = masked.seeds
        which = "top router" if masked.routers == 1 else f"top {masked.routers} routers"
        asked = text.rows(results.base.asr.n)
        rows.append(_shares(f"ASR, {which} masked, {masked.phase} ({asked})", masked.asr))
        layers = [", ".join(map(str, chosen)) for chosen in masked.layers]
        rows.append(_row("masked layers" if masked.routers > 1 else "masked layer", layers, ""))
    if (search := seeds.fsour) is not None and results.fsour is not None:
        names = search.seeds
        asked = text.rows(results.fsour.asr.n)
        rows.append(_shares(f"F-SOUR ASR, best of all restarts ({asked})", search.asr))
        rows.append(_shares(f"F-SOUR ASR, first search ({asked})", search.asr_at_1))
        rows.append(_row("F-SOUR, median forced pairs", map(text.show, search.pairs), _between(search.pairs, 1)))
        low, high = (text.percent(edge) for edge in (search.min, search.max))
        where = f"is {low} under every one of" if low == high else f"lies between {low} and {high} over"
        said.append(f"F-SOUR’s ASR {where} {len(names)} seeds.")
    else:
        said.append(f"The method was repeated with {len(names)} seeds.")
    if ranking is not None and (alike := ranking.spearman) is not None:
        mean, least, most = (text.plain(number, 2) for number in (alike.mean, alike.min, alike.max))
        said.append(f"Rankings under two seeds correlate at ρ = {mean} (from {least} to {most}).")
    columns = [Column("Quantity"), *Column.numbers(*(f"seed {name}" for name in names), "Spread")]
    caption = "One column per seed, all on the same prompts. For intervals over prompts see the sections above."
    return Section(
        "seeds",
        "Other seeds of the method",
        ["The same prompts, other random draws: a spread of its own, never pooled into n."],
        [
            Finding(" ".join(said)),
            Table(columns, rows, caption, "compact"),
            Reading(
                "Columns that agree: the finding is not the luck of one seed.",
                "the top router changes with the seed, or the spread between seeds is as wide as the gap to the "
                "controls.",
            ),
        ],
    )


def _row(name: str, values: Iterable[str], spread: str) -> Row:
    return Row([name, *values, Cell(spread, classes="muted")])


def _shares(name: str, shares: Sequence[float]) -> Row:
    spread = _between([100 * share for share in shares], 0)
    return _row(name, map(text.percent, shares), f"{spread}{text.NARROW}%" if spread else text.MISSING)


def _between(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    low, high = (text.plain(edge, digits) for edge in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
