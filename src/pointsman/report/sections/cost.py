"""What a run cost, beside what was foretold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pointsman.report import plot, text
from pointsman.report.blocks import Cell, Column, Details, Row, Section, Table
from pointsman.runs.forecast import memory_foretold
from pointsman.runs.results import Forecast, RunCost, Spent, StageCost

KINDS: tuple[tuple[str, Callable[[Spent], float], Callable[[float | None], str]], ...] = (
    ("Forwards", lambda spent: spent.forwards, text.count),
    ("Tokens", lambda spent: spent.tokens, text.count),
    ("Time", lambda spent: spent.seconds, text.duration),
)


def stage_name(stage: str, names: Mapping[str, str]) -> str:
    """The name of a stage, or of its parts as in ``test/before`` and ``fsour-natural``, as people say it."""

    def name(part: str) -> str:
        return names.get(part) or " ".join(names.get(word, text.readable(word)) for word in part.split("-"))

    return names.get(stage) or ", ".join(map(name, stage.split("/")))


def section(cost: RunCost, names: Mapping[str, str]) -> Section:
    """All of it, and stage by stage; `names` are those of stages that are not called by their key."""
    predicted = cost.predicted
    said = "Predicted before the run, and in fact." if predicted else "No prediction was made before this run."
    if predicted and predicted.gradient_memory:
        said += f" Of memory was predicted: {memory_foretold(predicted.gradient_memory)}."
    stages = [_stages(cost, predicted, names)] if cost.stages or (predicted and predicted.stages) else []
    details = [Details("Stage by stage", stages)] if stages else []
    return Section("cost", "Cost", [said], [_totals(cost, predicted), *details])


def _totals(cost: RunCost, predicted: Forecast | None) -> Table:
    upper = predicted.upper if predicted else None
    heads = ["", *["Predicted"] * bool(predicted), *["At most"] * bool(upper), "Fact"]
    heads += ["Fact / predicted"] * bool(predicted)
    rows = []
    for name, of, write in KINDS:
        before = [write(of(spent)) for spent in (predicted, upper) if spent is not None]
        ratio = [_ratio(of(cost), of(predicted))] if predicted else []
        rows.append(Row([name, *before, write(of(cost)), *ratio]))
    caption = "Whole run." + (" Above 1 ×, the run took more than foretold." if predicted else "")
    return Table(
        [Column(head, "number" if place else "text") for place, head in enumerate(heads)], rows, caption, tag=False
    )


def _ratio(fact: float, predicted: float) -> str:
    return f"{text.plain(fact / predicted, 2)} ×" if predicted else text.MISSING


def _stages(cost: RunCost, predicted: Forecast | None, names: Mapping[str, str]) -> Table:
    found = {stage.stage: stage for stage in cost.stages}
    foretold = {stage.stage: stage for stage in predicted.stages} if predicted else {}
    whole = sum(stage.seconds for stage in cost.stages) or 1.0

    def cell(of: Callable[[Spent], float], write: Callable[[float | None], str], stage: str) -> Cell:
        fact, before = (_spent(stages.get(stage), of) for stages in (found, foretold))
        return Cell(write(fact), beside=f"({write(before)})" if predicted else "")

    rows = []
    for stage in dict.fromkeys([*found, *foretold]):
        part = (_spent(found.get(stage), lambda spent: spent.seconds) or 0.0) / whole
        numbers = [cell(of, write, stage) for _, of, write in (KINDS[2], *KINDS[:2])]
        rows.append(Row([stage_name(stage, names), plot.share_bar(part), f"{100 * part:.0f}", *numbers]))
    columns = [Column("Stage"), Column("share of time", "bar", optional=True)]
    columns += Column.numbers("%", "Time", "Forwards", "Tokens")
    caption = "The bar is the stage’s share of the time." + (" In grey: predicted." if predicted else "")
    return Table(columns, rows, caption, "compact", tag=False)


def _spent(stage: StageCost | None, of: Callable[[Spent], float]) -> float | None:
    return None if stage is None else of(stage)
