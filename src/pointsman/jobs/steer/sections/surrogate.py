"""The surrogate: what it learnt from, whether it reads routing or length, and whether the model follows it."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.jobs.steer.results import Gap, SteerResults, SurrogateFacts, SurrogateSeed
from pointsman.jobs.steer.sections import drawings
from pointsman.jobs.steer.wording import LABEL0, Wording, mask_settings, refinement_name, wording_for
from pointsman.report import text
from pointsman.report.blocks import (
    Beside,
    Block,
    Cell,
    Chart,
    Column,
    Definitions,
    Details,
    Finding,
    Heading,
    Legend,
    Reading,
    Row,
    Section,
    Table,
    Text,
)
from pointsman.stats.auroc import Auroc


def section(results: SteerResults) -> Section | None:
    """What it is worth, what it learnt from, and whom masks turn; None beside a mask that needs none."""
    found = results.surrogate
    if found is None and results.chosen.method == "conditional":
        return None
    blocks: list[Block] = _worth(found) if found else [Finding("No surrogate was trained in this run.")]
    if results.contexts:
        blocks += [Heading("What it learnt from"), _contexts(results, wording_for(results))]
    blocks.append(Heading("Whom the mask turns: surrogate and model"))
    blocks += _gap(results.gap)
    aside = (
        "A small network that predicts from router logits what the model will do. The mask is first learnt against it."
    )
    return Section("surrogate", "The surrogate", [aside], blocks)


# ---------------------------------------------------------------------- its worth


def _worth(found: SurrogateFacts) -> list[Block]:
    matched, length = found.matched, found.length_only
    aurocs = [
        ("all held-out contexts", found.auroc),
        ("matched pairs alone", matched.auroc if matched else None),
        ("length alone, the control", length.auroc),
    ]
    rows = [
        Row([name, drawings.auroc(auroc, "was" if auroc is length.auroc else "now"), auroc])
        for name, auroc in aurocs
        if auroc is not None
    ]
    columns = [Column("Contexts"), Column("0 to 1; line: chance", "bar"), Column("AUROC", "rate")]
    accuracy = [("Accuracy, all held-out contexts", text.percent(found.accuracy, 1))]
    if matched and matched.accuracy is not None:
        accuracy.append(("Accuracy, matched pairs", text.percent(matched.accuracy, 1)))
    if matched:
        accuracy.append(("Matched pairs", str(matched.pairs)))
    ece = text.plain(found.calibration.ece, 3)
    calibration = Chart(
        drawings.calibration(
            found.calibration,
            label="Calibration of the surrogate: observed share against predicted probability; expected calibration "
            f"error {ece}.",
        ),
        "Calibration: share observed at each prediction; dots grow with n. On the diagonal: honest probabilities. "
        f"Expected error {ece}.",
    )
    table = Table(columns, rows, "AUROC on held-out contexts, 95 % intervals.", "stacked")
    worth: list[Block] = [table, Definitions(accuracy, "facts-list"), Text(_seeds(found.seeds))]
    return [Finding(_finding(found)), Beside(worth, [calibration], "calibrated")]


def _finding(found: SurrogateFacts) -> str:
    said = "From the router logits alone the surrogate tells the two labels apart with AUROC "
    said += f"{_interval(found.auroc)} on {found.contexts} contexts."
    length = f"from length alone one would reach {_interval(found.length_only.auroc)}."
    if found.matched and found.matched.auroc:
        said += " On matched pairs, which share question, tactic and number of turns, "
        return f"{said}{_interval(found.matched.auroc)}; {length}"
    return f"{said} There were no matched pairs to test it on; {length}"


def _interval(found: Auroc) -> str:
    return text.mean(found.value, found.low, found.high)


def _seeds(seeds: Sequence[SurrogateSeed]) -> str:
    if len(seeds) < 2:
        return "Other seeds of the surrogate were not trained."
    said = []
    for name, values in (
        ("AUROC", [seed.auroc for seed in seeds]),
        ("on matched pairs", [seed.matched for seed in seeds]),
        ("accuracy", [seed.accuracy for seed in seeds]),
    ):
        if known := [value for value in values if value is not None]:
            said.append(f"{name} {text.plain(min(known), 2)} to {text.plain(max(known), 2)}")
    return f"Over {text.many(len(seeds), 'training seed')}: {', '.join(said)}."


# ---------------------------------------------------------------------- what it learnt from, and whom masks turn


def _contexts(results: SteerResults, wording: Wording) -> Table:
    columns = [Column("Split"), *Column.numbers("Played"), *Column.rates(wording.fallen)]
    columns += Column.numbers("Label 1", "Label 0", "Matched pairs")
    rows = [
        Row([split, found.played, found.fallen, found.label1, found.label0, found.matched_pairs])
        for split, found in results.contexts.items()
    ]
    label0 = LABEL0.get(results.contrast or "", "those where the model did as wanted")
    caption = f"Contexts by split. Label 1: {wording.label1}; label 0: {label0}."
    return Table(columns, rows, caption, "stacked")


def _gap(gaps: Sequence[Gap]) -> list[Block]:
    """Surrogate turned against model turned, the best mask of each refinement first."""
    if not gaps:
        return [Text("The gap between surrogate and model was not measured.")]
    best: dict[str, Gap] = {}
    for gap in gaps:
        if gap.refinement not in best or _turned(gap) > _turned(best[gap.refinement]):
            best[gap.refinement] = gap
    said = "; ".join(
        f"{refinement_name(gap.refinement)}: the surrogate {_said(gap)}, the model {text.short(gap.model_turned)}"
        for gap in best.values()
    )
    caption = "Share of label 1 contexts of validation that turn"
    most = f"{caption}; of each refinement the setting that turns the model most."
    every = [Details(f"All {len(gaps)} settings", [_table(gaps, f"{caption}.")])] if len(gaps) > len(best) else []
    return [
        Text(f"Share of contexts turned. {said[:1].upper()}{said[1:]}."),
        Legend(drawings.TURNED),
        _table(list(best.values()), most),
        *every,
        Reading(
            "Where the diamond stands far to the right of the dot, the mask fools the surrogate and not the model: the "
            "gap that the refinements are there to close.",
            "the model’s share is high while garbage is high too: an answer that is broken is not turned.",
        ),
    ]


def _turned(gap: Gap) -> float:
    return gap.model_turned.rate or 0.0


def _said(gap: Gap) -> str:
    return text.MISSING if gap.surrogate_turned is None else text.percent(gap.surrogate_turned)


def _table(gaps: Sequence[Gap], caption: str) -> Table:
    columns = [Column("Refinement"), Column("0 to 100 %", "bar"), *Column.numbers("Surrogate"), *Column.rates("Model")]
    rows = [
        Row(
            [
                Cell(refinement_name(gap.refinement), beneath=mask_settings(gap)),
                drawings.turned(gap.surrogate_turned, gap.model_turned),
                _said(gap),
                gap.model_turned,
            ]
        )
        for gap in gaps
    ]
    return Table(columns, rows, caption, "stacked")
