"""What else it can do: tasks of lm-eval as the model is, under the routing, and under its control."""

from __future__ import annotations

from pointsman.report import text
from pointsman.report.blocks import Bar, Cell, Column, Finding, Reading, Row, Section, Table, Text, Value
from pointsman.runs.tasks import MARGIN, TaskResults, TaskValue
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Mean, Rate


def section(results: TaskResults) -> Section:
    """A group for each metric of a task, a row for each routing."""
    rows = []
    for place, plain in enumerate(results.arms[0].values):
        for arm in results.arms:
            value = arm.values[place]
            bar = Bar.of(value.value, "good") if isinstance(value.value, Rate) else None
            group = f"{plain.task}: {plain.metric}" if arm is results.arms[0] else ""
            cells: list[Value | Cell] = [arm.name, bar, _written(value.value), _written(value.difference)]
            rows.append(Row(cells, group, top=arm.kind == "routing"))
    columns = [Column("Routing"), Column("0 to 100 %", "bar", optional=True), Column("Value", "rate")]
    asked = "all documents of each task" if results.limit is None else f"at most {results.limit} documents of each task"
    how = "in the model’s chat template" if results.chat else "as plain text"
    caption = f"{results.harness}, {asked}, asked {how}; 95 % intervals, differences paired by document."
    left_out = [Text(f"Left out, since they say nothing of a single document: {', '.join(results.left_out)}.")]
    return Section(
        "tasks",
        "What else it can do",
        ["Tasks that have nothing to do with safety, on the same engine under the same routing."],
        [
            Finding(_finding(results)),
            Table([*columns, Column("Less no routing, points or units", "rate")], rows, caption, "stacked"),
            *(left_out if results.left_out else []),
            Reading(
                "A routing that leaves the tasks alone changes safety, and not what the model can do.",
                f"an interval reaches beyond −{100 * MARGIN:.0f} points: more documents would have to say. A routing "
                "in force in prefill does not touch continuations whose probability a task compares.",
            ),
        ],
    )


def _written(value: Rate | Mean | Comparison | None) -> Value | Cell:
    if isinstance(value, Mean):
        return Cell(text.full(value), beneath=text.rows(value.n))
    return value


def _finding(results: TaskResults) -> str:
    said = []
    for arm in results.arms[1:]:
        losses = [(value, change) for value in arm.values if (change := _points(value)) is not None]
        if losses:
            worst, change = min(losses, key=lambda found: found[1])
            said.append(f"{arm.name} {text.signed(100 * change)} points in {worst.task} ({worst.metric})")
    if not said:
        return f"{text.many(results.requests, 'request')} under each of {len(results.arms)} routings."
    return f"The largest change against no routing: {'; '.join(said)}."


def _points(value: TaskValue) -> float | None:
    """Of a rate that should be high, its difference to no routing."""
    change = value.difference
    return change.difference if isinstance(change, Comparison) and value.higher_is_better else None
