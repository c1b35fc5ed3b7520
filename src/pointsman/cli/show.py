"""``show``: what a model said to one prompt of a run, in the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli.options import JsonOption
from pointsman.cli.output import one_line, show
from pointsman.cli.runs import RunArgument
from pointsman.errors import RunError

if TYPE_CHECKING:
    from pointsman.report.answers import Answer, Answered, Opinion


def show_answers(
    folder: RunArgument,
    id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Of a prompt; all prompts are listed if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model said to a prompt: every answer, with what judges say of it and what there is to doubt.

    Without ID: all prompts with the verdict of the untouched model, the worst one, and what is in doubt.

    [bold]Examples[/bold]

    pointsman show runs/audit-testbed-20260101-120000

    pointsman show runs/audit-testbed-20260101-120000 restricted/nosk/open/tall
    """
    from pointsman.jobs.finished import read_results
    from pointsman.report.answers import FILE, answered
    from pointsman.report.text import clean_text
    from pointsman.report.write import read_folder, read_kept

    job, results = read_results(read_folder(folder))
    prompts = answered(read_kept(folder, results.judge.name))
    if not prompts:
        raise RunError(f"{folder} holds no answers in {FILE}", "Give the folder of a finished run")
    if id is not None:
        prompts = _named(prompts, id)
    if as_json:
        print(json.dumps([{**asdict(p), "doubt": p.most_doubtful.doubt} for p in prompts], indent=2))
        return
    names = job.work.page(results, show_text=True).stages
    if id is None:
        _list(prompts, names)
        return
    print(clean_text("\n\n".join("\n".join(_card(prompt, names)) for prompt in prompts)))


def _named(prompts: Sequence[Answered], id: str) -> list[Answered]:
    """The prompts of that id, also as a page writes it into addresses; there may be several in files of users."""
    found = [p for p in prompts if id.removeprefix("#") in (p.id, p.anchor)]
    if found:
        return found
    ids = list(dict.fromkeys(p.id for p in prompts))
    near = [each for each in ids if id in each][:3] or get_close_matches(id, ids, n=3, cutoff=0.3)
    like = f"Did you mean {', '.join(map(one_line, near))}? " if near else ""
    raise RunError(f"No prompt of this run has the id {one_line(id)!r}", f"{like}Leave the id out for a list")


# ---------------------------------------------------------------------- as words


def _list(prompts: Sequence[Answered], names: Mapping[str, str]) -> None:
    from pointsman.report.blocks import Column, Row, Table
    from pointsman.report.sections.cost import stage_name
    from pointsman.report.terminal import table

    rows = []
    for p in prompts:
        worst, doubtful = p.worst, p.most_doubtful
        where = "" if worst is p.base else stage_name(worst.stages[0], names)
        rows.append(Row([p.id, p.base.verdict.label, worst.verdict.label, where, "; ".join(doubtful.doubts)]))
    columns = [Column(head) for head in ("Prompt", "Untouched", "Worst", "Under", "In doubt")]
    show(table(Table(columns, rows)))


def _card(prompt: Answered, names: Mapping[str, str]) -> list[str]:
    """The lines of a card."""
    from pointsman.report.html import about

    lines = [" · ".join(filter(None, (prompt.id, about(prompt))))]
    lines += [] if prompt.base.turns else _indented(prompt.asked)
    for answer in prompt.answers:
        lines += ["", *_answer(answer, names)]
    return lines


def _answer(answer: Answer, names: Mapping[str, str]) -> list[str]:
    from pointsman.report.sections.cost import stage_name

    lines = [" + ".join(stage_name(stage, names) for stage in answer.stages)]
    lines += [f"  {_opinion(opinion)}" for opinion in answer.opinions]
    lines += [f"  In doubt: {doubt}." for doubt in answer.doubts]
    for number, turn in enumerate(answer.turns):
        falls = " (falls here)" if number == answer.fallen else ""
        lines += [f"  turn {number + 1}, user:", *_indented(turn.asked)]
        lines += [f"  turn {number + 1}, model{falls}: {turn.opinion.label}", *_indented(turn.said)]
    lines += [] if answer.turns else _indented(answer.said)
    if answer.finished is False:
        lines.append("  Cut off at the token limit.")
    if answer.route is not None:
        route = answer.route
        lines.append(f"  {route.pairs} pairs forced, at {route.places} of {route.tokens} tokens:")
        lines += [f"    {tint.token}  {tint.title}" for tint in route.tints if tint.shade]
    return lines


def _opinion(opinion: Opinion) -> str:
    score = "" if opinion.score is None else f", score {opinion.score:.2g}"
    return f"{opinion.judge}: {opinion.label or 'no verdict'}{score}{opinion.reason and f' ({opinion.reason})'}"


def _indented(said: str) -> list[str]:
    return [f"    {line}" for line in said.splitlines() or [""]]
