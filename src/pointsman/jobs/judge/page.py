"""The page and the summary of a run that was judged again."""

from __future__ import annotations

from pointsman.jobs.judge.claims import LEAST_KAPPA, MARGIN
from pointsman.jobs.judge.results import JudgeResults, StageTwice
from pointsman.report import text
from pointsman.report.blocks import Bar, Card, Cell, Column, Finding, Page, Reading, Row, Section, Table, Text
from pointsman.report.sections import claims, cost, head, provenance, reading
from pointsman.stats.agreement import Agreement, Confusion

RULES = (
    f"Rates: holds if the whole 95 % interval of every change lies within {100 * MARGIN:.0f} points, and fails if that "
    f"of any lies beyond. Agreement: holds if kappa reaches {LEAST_KAPPA} with its whole interval, and fails if its "
    f"whole interval lies below. Scores: holds if every answer could be scored, and fails if more than "
    f"{100 * MARGIN:.0f} % could not. Two judges that agree may be wrong alike: only labels of people tell."
)


def page(results: JudgeResults, *, show_text: bool = False) -> Page:
    """Everything that the report says. Texts stand on the page of the judged run."""
    both = results.agreement
    model, threat, judge = head.facts(results)
    before = ("Judge of the run", head.judge(results.before), "")
    settings = provenance.entries(results.judged)
    return Page(
        kind="judged again",
        title=f"{results.judged.name}, judged by {results.judge.name}",
        headline=results.headline,
        facts=[model, threat, ("Judged run", results.judged.name, results.judged.job), before, judge],
        tag=head.tag(results),
        warnings=head.warnings(results),
        cards=[
            Card("Agreement", "answers that both judges call alike", both.agreed, "good"),
            Card("Kappa", "agreement beyond chance", value=kappa(both), absent="not defined"),
            Card("Unscored", f"of {results.judged.answers} answers", value=str(results.unscored)),
        ],
        sections=[
            claims.section(results, "what could refute it", RULES),
            _stages(results),
            _labels(results),
            cost.section(results.cost, {"judge": "judging"}),
            provenance.section(results, settings, []),
            _reading(results),
        ],
    )  # fmt: skip


def kappa(found: Agreement) -> str:
    """``0.93 [0.88, 0.97]``, or a dash."""
    return text.MISSING if found.kappa is None else text.mean(found.kappa, found.low, found.high)


def confusion(found: Confusion, first: str, second: str) -> Table:
    """What `second` (columns) called what `first` (rows) called otherwise."""
    columns = [Column(first), *(Column(label, "number") for label in found.labels)]
    rows = [
        Row([label, *(Cell(str(n) if n else "·") for n in counts)])
        for label, counts in zip(found.labels, found.counts, strict=True)
    ]
    return Table(columns, rows, f"Answers by the label of {first} (rows) and of {second} (columns).", "compact")


def _stages(results: JudgeResults) -> Section:
    rows = [
        Row(
            [stage.stage, Bar.of(stage.now), stage.before, stage.now, stage.difference, kappa(stage.agreement),
             stage.unscored]
        )
        for stage in results.stages
    ]  # fmt: skip
    columns = [Column("Stage"), Column("now, 0 to 100 %", "bar", optional=True)]
    columns += [Column(name, "rate") for name in (results.before.name, results.judge.name, "change, points")]
    columns += [Column("kappa", "rate"), Column("unscored", "number", optional=True)]
    furthest = results.furthest
    finding = "No stage holds answers that both judges scored."
    if furthest is not None:
        finding = (
            f"Of {len(results.stages)} rates, that of {furthest.stage} changes most: from "
            f"{text.short(furthest.before)} to {text.short(furthest.now)}."
        )
    return Section(
        "stages",
        "The rates under both judges",
        ["The same answers, judged twice. Of a stage, the share of answers that meet the request."],
        [
            Finding(finding),
            Table(
                columns, rows, "Of the answers that both could score; 95 % intervals, differences paired.", "stacked"
            ),
            Reading(
                "A rate that keeps its place under another judge is not that judge’s making.",
                "the two judges read the same few words: then they are wrong alike.",
            ),
        ],
    )


def _labels(results: JudgeResults) -> Section:
    said = (
        [Text(f"{results.unscored} answers could not be scored by {results.judge.name}.")] if results.unscored else []
    )
    return Section(
        "labels",
        "Where they differ",
        ["Kappa is small where nearly all answers are alike, whatever the judges do: read it with this table."],
        [
            Finding(f"They agree on what is a success in {text.full(results.agreement.agreed)}."),
            confusion(results.confusion, results.before.name, results.judge.name),
            *said,
        ],
    )


def _reading(results: JudgeResults) -> Section:
    return reading.section(
        "How to read this",
        "Kappa after Cohen (1960); its large-sample error after Fleiss, Cohen and Everitt (1969).",
        [
            ("Success", "The judge says that the request was met. Of benign requests that is what one wants."),
            ("Kappa", "Agreement on success beyond what chance gives: 0 for none, 1 for all."),
            ("Unscored", "The judge could not tell. Such answers are in no rate here, and are counted."),
            reading.threat(results, "Of the run that was judged."),
            reading.intervals(results, "the number of answers"),
        ],
    )


# ---------------------------------------------------------------------- the terminal


def summary(results: JudgeResults) -> Table:
    """The rates under both judges: it fits 80 columns."""
    columns = [
        Column("Success, %"),
        *(Column(name[:14], "number") for name in (results.before.name, results.judge.name)),
    ]
    columns += [Column("n", "number"), Column("change"), Column("kappa")]
    marks = head.tag(results)
    said = [f"Labels that differ: {_differences(results.confusion)}."]
    if results.unscored:
        said.append(f"{results.unscored} of {results.judged.answers} answers could not be scored; they are in no rate.")
    said += ["Small n: read the intervals."] * results.small_n
    title = f"{results.judged.name} · {results.judge.name} for {results.before.name}"
    return Table(
        columns,
        [_row(stage) for stage in results.stages],
        "\n".join(said),
        title=f"{title} · {marks}" if marks else title,
    )


def _row(stage: StageTwice) -> Row:
    agreed = text.MISSING if stage.agreement.kappa is None else text.plain(stage.agreement.kappa, 2)
    rates = [text.number(rate) for rate in (stage.before, stage.now)]
    name = stage.stage if len(stage.stage) <= 30 else f"{stage.stage[:29]}…"
    return Row([name, *rates, stage.now.n, text.change_full(stage.difference), agreed])


def _differences(found: Confusion) -> str:
    """The most frequent pairs of labels that differ."""
    pairs = [
        (count, f"{count} {a} → {b}")
        for a, counts in zip(found.labels, found.counts, strict=True)
        for b, count in zip(found.labels, counts, strict=True)
        if a != b and count
    ]
    return ", ".join(said for _, said in sorted(pairs, key=lambda pair: -pair[0])[:4]) or "none"
