"""Prompts and answers, for the eyes of their owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from markupsafe import Markup

from pointsman.report import text
from pointsman.report.answers import FILE, Answered, Kept, answered
from pointsman.report.blocks import Answers, Block, Choice, Page, Section, Text
from pointsman.report.sections.cost import stage_name


def with_answers(page: Page, kept: Kept) -> Page:
    """The page with what its run kept of prompts and answers, or with what to say where it kept nothing.

    They stand last: there may be hundreds, and the list of contents leads to them.
    """
    return replace(page, sections=[*page.sections, section(kept, page.stages)])


def section(kept: Kept, stages: Mapping[str, str]) -> Section:
    """Every prompt, answer and verdict, and first the most doubtful ones; `stages` are names of stages."""
    prompts = answered(kept)
    blocks: list[Block] = []
    if prompts:
        answers = _answers(prompts, stages)
        blocks += [answers] if answers.doubtful else [_no_doubt(), answers]
    else:
        missing = f"Not shown: this run folder has no {FILE}."
        blocks.append(Text(missing if kept.completions is None else f"{FILE} holds no answers."))
    if kept.torn:
        blocks.append(Text(f"{text.many(kept.torn, 'line')} of {FILE} could not be read."))
    aside = (
        "As asked and as generated, unedited: model output, which may be harmful. At the left what the untouched model "
        "says, beside it what it says otherwise; the same words under several stages are shown once."
    )
    return Section("answers", "Prompts and answers", [aside], blocks)


def _no_doubt() -> Text:
    return Text(
        Markup(
            "No verdict is in doubt by what lies in this run. Another judge may disagree: "
            "<code>pointsman judge RUN --judge NAME</code> asks one without generating anything."
        )
    )


def _answers(prompts: list[Answered], stages: Mapping[str, str]) -> Answers:
    each = [answer for prompt in prompts for answer in prompt.answers]
    names = Counter(stage for answer in each for stage in answer.stages)
    doubtful = sorted((p for p in prompts if p.most_doubtful.doubt), key=lambda p: -p.most_doubtful.doubt)
    return Answers(
        prompts,
        doubtful,
        stages=[Choice(stage, stage_name(stage, stages) or "no stage", count) for stage, count in names.items()],
        categories=_choices(Counter(prompt.category for prompt in prompts)),
        verdicts=_choices(Counter(label for a in each for label in {o.label for o in a.opinions} for _ in a.stages)),
    )


def _choices(counted: Counter[str]) -> list[Choice]:
    return [Choice(value, text.readable(value) or "none", count) for value, count in sorted(counted.items())]
