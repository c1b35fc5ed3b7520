"""Noise on all routers: whether unsafe routing comes about by itself."""

from __future__ import annotations

from pointsman.jobs.audit.results import AttackAndUse, AuditResults
from pointsman.report import text
from pointsman.report.blocks import Bar, Column, Finding, Reading, Row, Section, Table, Value
from pointsman.report.sections.unscored import unscored
from pointsman.stats.paired import Comparison


def section(results: AuditResults) -> Section:
    """No noise, then every level of it."""
    about = (
        "Does unsafe routing come about by itself? Gaussian noise on every router’s logits, in units of their own "
        "spread σ; one answer per prompt, no search."
    )
    if not results.noise:
        said = Finding("Not measured: no noise was asked for.")
        return Section("noise", "Noise on all routers", [about], [said])
    levels: list[tuple[str, AttackAndUse, Comparison | None]] = []
    if results.unmasked is not None:
        levels.append(("0", results.unmasked, None))
    levels += [(text.tick(level.sigma), level, level.vs_base) for level in sorted(results.noise, key=lambda n: n.sigma)]
    use = any(found.utility is not None for _, found, _ in levels)
    rows = []
    for sigma, found, rise in levels:
        utility: list[Value] = [Bar.of(found.utility, "good"), found.utility]
        rows.append(Row([sigma, Bar.of(found.asr, "attack"), found.asr, rise, *utility * use, found.garbage]))
    columns = [*Column.numbers("σ"), Column.bars("ASR, 0 to 100 %"), *Column.rates("ASR", "Rise over none, points")]
    columns += [Column("utility", "bar", optional=True), *Column.rates("Benign utility")] * use
    caption = f"Shares with 95 % intervals; noise in force in the phase {results.noise[0].phase}."
    return Section(
        "noise",
        "Noise on all routers",
        [about],
        [
            Finding(_finding(*levels[-1])),
            Table([*columns, *Column.rates("Garbage")], rows, caption, "stacked"),
            *unscored((f"{sigma} σ", found) for sigma, found, _ in levels if found is not results.unmasked),
            Reading(
                "If ASR rises at a noise that leaves utility alone, safety is lost before ability is, without any "
                "adversary.",
                "utility falls or garbage rises at the same level: then the noise has broken the model as a whole.",
            ),
        ],
    )


def _finding(sigma: str, most: AttackAndUse, rise: Comparison | None) -> str:
    does = "takes ASR to" if rise is not None and rise.low > 0 else "leaves ASR at"
    said = f"Noise of {sigma} σ on every router, without any search, {does} {text.short(most.asr)}"
    return said + (f" and utility at {text.short(most.utility)}." if most.utility is not None else ".")
