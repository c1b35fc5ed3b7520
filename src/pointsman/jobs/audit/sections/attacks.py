"""Attacks of other packages, each beside its control."""

from __future__ import annotations

from pointsman.jobs.audit.results import AuditResults
from pointsman.report import text
from pointsman.report.blocks import Bar, Column, Finding, Reading, Row, Section, Table
from pointsman.report.sections.unscored import unscored


def section(results: AuditResults) -> Section:
    """A row for each attack, and one for its control."""
    rows = []
    for found in results.attacks:
        rows.append(
            Row(
                [found.name, Bar.of(found.asr, "attack"), found.asr, None, found.any_compliance, found.garbage],
                top=True,
            )
        )
        if found.control is not None:
            name, other = f"control: {found.control_name}", found.control
            rows.append(
                Row([name, Bar.of(other.asr), other.asr, found.difference_control, other.any_compliance, other.garbage])
            )
        rows.append(Row(["no attack", Bar.of(results.base.asr), results.base.asr, found.vs_base, None, None]))
    columns = [Column("Attack"), Column("ASR, 0 to 100 %", "bar", optional=True), Column("ASR", "rate")]
    columns += [Column("Attack − this, points", "rate"), Column("Any compliance", "rate"), Column("Garbage", "rate")]
    most = max(results.attacks, key=lambda found: found.asr.rate or 0.0)
    return Section(
        "attacks",
        "Other attacks",
        ["Attacks that other packages bring, tried on the same prompts, each beside its own control."],
        [
            Finding(f"The strongest of {len(results.attacks)}, {most.name}, reaches {text.short(most.asr)}."),
            Table(columns, rows, "Shares of prompts with 95 % intervals; differences are paired by prompt.", "stacked"),
            *unscored((found.name, found) for found in results.attacks),
            Reading(
                "An attack that stands clear of its control found something; else the control is the finding.",
                "there is no control, or the garbage grows with the success.",
            ),
        ],
    )
