"""What was tried on validation: gain and loss of every candidate, the chosen mask, and the gap to test."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.jobs.steer.enough import Margin
from pointsman.jobs.steer.results import CandidateResult, MaskFacts, OutcomeRates, Overfit, SteerResults
from pointsman.jobs.steer.sections import drawings
from pointsman.jobs.steer.sections.rates import RateColumns
from pointsman.jobs.steer.wording import Wording, mask_name, mask_settings, wording_for
from pointsman.report import text
from pointsman.report.blocks import (
    Bar,
    Block,
    Cell,
    Chart,
    Column,
    Details,
    Finding,
    Heading,
    Reading,
    Row,
    Section,
    Table,
    Text,
    Value,
)

LOSSES = {"benign": -1, "benign_conversations": -1, "over_refusal": 1, "held": -1}
"""Measures that have a limit against no mask, and the sign of a change for the worse."""
SCREENED = (
    "What the model would say, from the probability of given answers: {} is the share of contexts where the wanted "
    "answer begins more probably than the unwanted one, the others the share of the untouched model’s own answers that "
    "stay more probable than not. Cheap, and not comparable to rates of generated answers: it only decides which "
    "settings are worth generating with."
)


def section(results: SteerResults) -> Section:
    """The figure, the finding, the tables of all candidates, and the overfit gap."""
    wording, base = wording_for(results), results.baseline_validation
    tried = [candidate for candidate in results.candidates if candidate.stage == "fine"]
    screened = [candidate for candidate in results.candidates if candidate.stage == "coarse"]
    chosen = next((candidate for candidate in tried if candidate.id == results.chosen.id), None)
    finding = _finding(tried, len(screened), base, chosen, wording)
    blocks: list[Block] = [
        Finding(finding),
        Text(f"Why this one: {results.chosen.why}"),
        *_figure(tried, base, chosen, wording, finding),
        *_overfit(results.overfit, wording),
    ]
    if tried:
        said = "The chosen one first, then those that keep the limits, by gain. In bold orange: over its limit."
        said += " λ weighs sparsity, α scales the mask."
        if results.margin:
            said += (
                f" With margin: the one-sided {results.margin.confidence}{text.NARROW}% bound of the loss lies within "
                f"the limit, where validation can show that: {_margins(results.margin)}."
            )
        table = _table(tried, base, chosen, wording, "Answers to the validation prompts, % with 95 % intervals.")
        blocks.append(Details(f"All {len(tried)} settings", [Text(said), table]))
    if screened:
        table = _table(screened, None, None, wording, "Screened on validation contexts, % with 95 % intervals.")
        summary = f"{len(screened)} settings screened without generating"
        blocks.append(Details(summary, [Text(SCREENED.format(wording.gain)), table]))
    aside = "Every setting on the validation split, from which the mask was chosen."
    return Section("frontier", "What was tried", [aside], blocks)


def _margins(margin: Margin) -> str:
    """Of every limit whether its margin counts clusters or rows, or cannot be shown."""
    how = {"clusters": "by clusters", "rows": "by rows", None: "not shown"}
    return ", ".join(f"{one.measure} {how[one.of]}" for one in margin.limits)


def worst_loss(rates: OutcomeRates, base: OutcomeRates | None) -> tuple[str, float] | None:
    """The measure that suffers most against no mask, and by how much, as a share; None if none was measured."""
    found = []
    for key, worse in LOSSES.items():
        now, was = getattr(rates, key), getattr(base, key, None)
        if now is not None and was is not None and now.rate is not None and was.rate is not None:
            found.append((key, worse * (now.rate - was.rate)))
    return max(found, key=lambda item: item[1], default=None)


def _name(candidate: CandidateResult) -> str:
    return f"{mask_name(candidate)}, {mask_settings(candidate)}"


def _finding(
    tried: Sequence[CandidateResult],
    screened: int,
    base: OutcomeRates | None,
    chosen: CandidateResult | None,
    wording: Wording,
) -> str:
    if not tried:
        return "No list of what was tried is in the results."
    kept = sum(bool(candidate.admissible) for candidate in tried)
    said = f"Of {text.many(len(tried), 'setting')} that answered the validation prompts, {kept or 'none'} "
    said += f"keep{'s' if kept <= 1 else ''} every limit"
    said += f" ({screened} more were only screened)." if screened else "."
    if chosen is None:
        return said
    was = f" (without a mask {text.value(base.gain)})" if base else ""
    said += f" Chosen: {_name(chosen)}: {text.short(chosen.gain)} {wording.gain.lower()}{was}"
    if (lost := worst_loss(chosen, base)) is not None:
        said += f", worst loss {text.points(max(lost[1], 0.0))} points"
        said += f" ({wording.within(lost[0])})" if lost[1] > 0 else ""
    return said + ("." if chosen.admissible else "; it does not keep every limit.")


# ---------------------------------------------------------------------- the figure


def _figure(
    tried: Sequence[CandidateResult],
    base: OutcomeRates | None,
    chosen: CandidateResult | None,
    wording: Wording,
    finding: str,
) -> list[Block]:
    marks = {
        candidate.id: _mark(candidate, lost, wording)
        for candidate in tried
        if (lost := worst_loss(candidate, base)) and candidate.gain.rate is not None
    }
    if base is None or not marks:
        why = "the rates without a mask, which losses are counted from, are not in the results."
        return [Text(f"No figure: {why if tried else 'nothing was tried.'}")]
    kinds = {(m.shape, m.style): mask_name(candidate) for candidate in tried if (m := marks.get(candidate.id))}
    legend = [(drawings.key_mark(shape, f"{style} kept"), name) for (shape, style), name in kinds.items()]
    if len({mark.kept for mark in marks.values()}) > 1:
        legend.append((drawings.key_mark("circle", "plainmark kept"), "filled: keeps every limit"))
        legend.append((drawings.key_mark("circle", "plainmark broke"), "hollow: breaks one"))
    if base.gain.rate is not None:
        legend.append((drawings.key_mark("cross", "origin"), "no mask"))
    drawing = drawings.frontier(
        list(marks.values()),
        base.gain,
        marks.get(chosen.id) if chosen else None,
        of=wording.gain.lower(),
        label=f"{finding} The table below has every number.",
    )
    return [
        Chart(drawing, legend=legend),
        Reading(
            "Up is better, left is cheaper: the gain against what the mask loses on the measure that it hurts most. "
            "The staircase is the best gain at every loss; the whisker of the chosen mask is its 95 % interval, those "
            "of the others are in the table.",
            "the chosen mask stands alone above its neighbours: then it may be the luck of many tries, which the test "
            "split pays back.",
        ),
    ]


def _mark(candidate: CandidateResult, lost: tuple[str, float], wording: Wording) -> drawings.Mark:
    shape = {"on_policy": "square", "through_model": "diamond"}.get(candidate.refinement or "", "circle")
    shape = {"steermoe": "up", "steermoe_paired": "plus", "random": "down"}.get(candidate.method, shape)
    style = {"steermoe_paired": "steermoe", "steermoe": "steermoe", "random": "random"}.get(candidate.method, "learnt")
    said = [_name(candidate), f"{wording.gain.lower()} {text.full(candidate.gain)}"]
    said += [f"worst change {text.points(lost[1])} points ({wording.within(lost[0])})"]
    said += [f"garbage {text.value(candidate.garbage)}"] if candidate.garbage else []
    broken = ", ".join(map(wording.within, candidate.broken))
    said += [f"breaks: {broken}" if broken else "keeps every limit"]
    kept = bool(candidate.admissible)
    return drawings.Mark(lost[1], candidate.gain, shape, style, kept, "; ".join(said))


# ---------------------------------------------------------------------- the tables


def _overfit(found: Overfit | None, wording: Wording) -> list[Block]:
    """The chosen mask where it was chosen and where it is scored."""
    if found is None:
        return [Text("The gap between validation and test was not measured.")]
    validation, test = found.validation, found.test
    said = []
    if validation.rate is not None and test.rate is not None:
        gap = text.points(validation.rate - test.rate)
        said.append(
            f"{wording.gain} on validation, where the mask was chosen: {text.full(validation)}; on test: "
            f"{text.full(test)}. Overfit gap: {gap} points."
        )
    columns = [Column("Split"), Column.bars(), Column(wording.gain, "rate")]
    rows = [Row(["validation", Bar.of(validation), validation]), Row(["test", Bar.of(test, "good"), test])]
    table = Table(columns, rows, "The chosen mask on either split.", "wide")
    return [Heading("Chosen on validation, scored on test"), *map(Text, said), table]


def _table(
    candidates: Sequence[CandidateResult],
    base: OutcomeRates | None,
    chosen: CandidateResult | None,
    wording: Wording,
    caption: str,
) -> Table:
    """The chosen one, then those that keep the limits, each by falling gain; without losses, if there is no `base`."""
    rates = RateColumns.of(candidates, wording)
    columns = [Column("Setting"), *rates.columns, *[Column("Worst loss")] * bool(base), Column("Experts, norm")]
    columns += [Column("s per answer"), Column("Limits")] if base else []
    rows = [Row(["no mask", *rates.cells(base, unit=False), "", "", "", ""], top=True)] if base else []
    for candidate in sorted(candidates, key=lambda c: (c is not chosen, not c.admissible, -(c.gain.rate or 0.0))):
        own = candidate is chosen
        name = mask_name(candidate) + (" (chosen)" if own else "")
        size = Cell(text.show(candidate.entries), beneath=_size(candidate))
        cells: list[Value | Cell] = [Cell(name, beneath=mask_settings(candidate), title=candidate.id)]
        cells += rates.cells(candidate, candidate.broken, unit=False)
        if base:
            lost = worst_loss(candidate, base)
            broken = Cell("broken", title=", ".join(map(wording.within, candidate.broken)), classes="hit")
            cells += [text.points(lost[1]) if lost else None, size, text.plain(candidate.seconds_per_answer, 2)]
            unsure = Cell("kept, no margin", title=", ".join(map(wording.within, candidate.unsure or ())))
            cells += [broken if not candidate.admissible else unsure if candidate.unsure else "kept"]
        rows.append(Row(cells if base else [*cells, size], top=own))
    return Table(columns, rows, caption, "compact dense split tried")


def _size(candidate: MaskFacts) -> str:
    """The L1 norm of a matrix; of a conditional mask how much it changes, over the routers' own weights."""
    return text.plain(candidate.norm1, 1) if candidate.size is None else text.plain(candidate.size, 2)
