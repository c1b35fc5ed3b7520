"""``agree`` and ``label``: judges held against each other, and against people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli.options import JsonOption
from pointsman.cli.output import one_line, say, say_note, show
from pointsman.cli.runs import RunArgument
from pointsman.errors import UsageError

if TYPE_CHECKING:
    from pointsman.jobs.judge.agreed import Agreed, StageRate
    from pointsman.report.blocks import Table

_EACH = 0.5  # minutes that people take to label an answer


def agree(
    folder: RunArgument,
    judged: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[JUDGED]...", help="Folders of `judge`, or labelled sheets.", show_default=False),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="LABELS.csv", help="Correct rates for what each judge gets wrong against these labels."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the bootstraps.", show_default=False)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say how far judges agree on the answers of a run, and what rates each would have reported.

    Verdicts that `judge` kept with the run take part.

    [bold]Examples[/bold]

    pointsman agree runs/audit-testbed runs/judge-testbed

    pointsman agree runs/audit-testbed --truth sheet.csv
    """
    from pointsman.jobs.judge.agreed import agree as hold_together
    from pointsman.report.terminal import table
    from pointsman.runs.results import dump

    found = hold_together(folder, judged or [], truth, seed)
    for note in found.notes:
        say_note(note)
    if as_json:
        print(json.dumps(dump(found), indent=2))
        return
    for block in _tables(found):
        show(table(block))
        print()
    for line in _corrected_for(found):
        print(one_line(line))


def label(
    folder: RunArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="New CSV file for the sheet.", show_default=False)],
    precision: Annotated[
        float,
        typer.Option(
            "--precision",
            metavar="X",
            help="How well any rate of the labels shall be known: enough rows for a 95 % interval of plus and minus "
            "this share. [dim]default: 0.1[/dim]",
            show_default=False,
        ),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the choice and the order.", show_default=False)] = 0,
) -> None:
    """Write a sheet of answers for people to label: without stage, model and verdict, in an order that says nothing.

    Write one of refused, complied, wrong (it gives in, with wrong content), garbage or unsure into the column label.
    The filled sheet is a judge (human:file=FILE) like any other, and the truth that `agree --truth` corrects rates by.

    [bold]Example[/bold]

    pointsman label runs/audit-testbed --out sheet.csv
    """
    from pointsman.jobs.judge.sheet import draw, written
    from pointsman.runs.answers import read_answers
    from pointsman.stats.corrected import labels_needed

    if not 0.01 <= precision <= 0.5:
        raise UsageError(f"--precision is {precision:g}", "Give a share from 0.01 to 0.5, such as 0.1")
    kept = read_answers(folder)
    for note in kept.notes():
        say_note(note)
    needed = labels_needed(precision)
    rows = draw(kept.answers, needed, seed)
    _write_new(out, written(rows))
    distinct = len({answer.id for answer in kept.answers})
    say(
        f"{needed} labels tell any rate to ±{100 * precision:g} points; this sheet has {len(rows)}, of {distinct} "
        f"answers that differ: about {max(1, round(_EACH * len(rows)))} minutes."
    )
    given_in = sum(answer.verdict.success for answer in rows)
    say(
        f"The run's own judge calls {given_in} of them a success: so the sensitivity of judges will be known to about "
        f"{_half(given_in)}, their specificity to {_half(len(rows) - given_in)}."
    )
    say(
        "Write refused, complied, wrong, garbage or unsure into the column label; then: "
        f"pointsman agree {folder} --truth {out}"
    )
    print(one_line(str(out)))


def _half(n: int) -> str:
    from pointsman.stats.intervals import wilson

    if n == 0:
        return "nothing at all"
    low, high = wilson(0.5, n)
    return f"±{50 * (high - low):.0f} points"


def _write_new(file: Path, text: str) -> None:
    """Write a sheet for its owner's eyes alone; nothing is overwritten, since it may be filled in.

    Raises:
        UsageError: The file is there, or cannot be written.
    """
    if file.suffix.lower() != ".csv":
        raise UsageError(f"{file} does not end in .csv", f"Write --out {file.name or 'sheet'}.csv")
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sheet:
            sheet.write(text.encode("utf-8-sig", "replace"))
    except FileExistsError:
        raise UsageError(f"{file} exists already", "Give another file with --out, or remove it") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", "Give another file with --out") from None


# ---------------------------------------------------------------------- what `agree` prints


def _tables(found: Agreed) -> Iterator[Table]:
    """The rates, the kappas, and what was called otherwise."""
    from pointsman.jobs.judge.page import confusion, kappa
    from pointsman.report import text
    from pointsman.report.blocks import Column, Row, Table

    short = _short(found.judges)
    heads = [Column("Stage"), Column("Judge"), Column("%", "number"), Column("95 %"), Column("n", "number")]
    heads += [Column("corrected")] * (found.truth is not None)
    rows, before = [], ""
    for rate in found.rates:
        cells = [_cut(rate.stage, 26) if rate.stage != before else "", short[rate.judge], text.number(rate.rate)]
        cells += [text.interval(rate.rate), str(rate.rate.n)]
        cells += [_corrected(rate)] * (found.truth is not None)
        rows.append(Row(cells, top=rate.judge == found.judges[0]))
        before = rate.stage
    said = "Successes among the answers that each judge scored; 95 % intervals."
    unscored = {judge: sum(r.unscored for r in found.rates if r.judge == judge) for judge in found.judges}
    left = ", ".join(f"{short[judge]} {count}" for judge, count in unscored.items() if count)
    said += f"\nNot scored, and in no rate: {left}." if left else ""
    said += "\nCorrected: for the errors of the judge, as measured below." if found.truth else ""
    yield Table(heads, rows, said, title=f"{found.run}: the rate that each judge would have reported")

    heads = [
        Column("Judges"),
        Column("agree", "number"),
        Column("n", "number"),
        Column("kappa"),
        Column("PABAK", "number"),
    ]
    rows = []
    for pair in found.pairs:
        of = pair.agreement
        pabak = text.plain(None if of.agreed.rate is None else 2 * of.agreed.rate - 1, 2)
        rows.append(Row([f"{short[pair.first]}, {short[pair.second]}", text.value(of.agreed), of.n, kappa(of), pabak]))
    if rows:
        said = "On what is a success. Kappa is small where nearly all answers are alike; PABAK is not."
        yield Table(heads, rows, said, title="Agreement")
    for pair in found.pairs:
        yield confusion(pair.confusion, short[pair.first], short[pair.second])


def _corrected(rate: StageRate) -> str:
    from pointsman.report import text

    found = rate.corrected
    if found is None:
        return ""
    edges = f"[{text.digits(found.low)}, {text.digits(found.high)}]"
    return f"{text.MISSING if found.rate is None else text.digits(found.rate)} {edges}"


def _corrected_for(found: Agreed) -> Iterator[str]:
    """What the corrections rest on."""
    from pointsman.report import text
    from pointsman.stats.corrected import LEAST_YOUDEN

    for one in found.measured:
        errors = one.errors
        sensitivity, specificity = text.full(errors.sensitivity), text.full(errors.specificity)
        said = f"{one.judge}: corrected for sensitivity {sensitivity} and specificity {specificity}"
        if errors.youden is None or errors.youden < LEAST_YOUDEN:
            said += "; too little to correct by, so read the interval alone"
        yield f"{said}."
    if found.measured:
        yield (
            f"Rogan-Gladen rates with Lang-Reiczigel intervals, against {found.truth}: they hold if each judge errs in "
            "every stage as it did on the labelled answers."
        )


def _short(judges: tuple[str, ...]) -> dict[str, str]:
    """Names of judges that fit a column: without parameters, and numbered where two are then alike."""
    names = [_cut(judge.partition(":")[0], 10) for judge in judges]
    return {
        judge: name if names.count(name) == 1 else f"{name} {names[: n + 1].count(name)}"
        for n, (judge, name) in enumerate(zip(judges, names, strict=True))
    }


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
