"""What any number of judges make of the answers of one run: rates, kappas, and rates corrected for measured errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pointsman.errors import RunError, UsageError
from pointsman.jobs.finished import read_results
from pointsman.jobs.judge.perform import LABELS, on_success, success
from pointsman.judges.human import NOT_LABELLED, HumanJudge
from pointsman.judges.types import Verdict, judged
from pointsman.registry import write_name
from pointsman.report.write import read_folder
from pointsman.runs.answers import KEPT_VERDICTS, VERDICTS, KeptAnswers, read_answers, read_verdicts
from pointsman.runs.files import shareable_judge
from pointsman.runs.run import Run
from pointsman.stats.agreement import Agreement, Confusion
from pointsman.stats.corrected import Corrected, JudgeErrors
from pointsman.stats.rates import Rate

Verdicts = Sequence[Verdict | None]
"""One for each answer of a run; None where the judge was not asked."""


@dataclass(frozen=True, kw_only=True)
class StageRate:
    """What one judge makes of one stage.

    Attributes:
        stage, judge: Which.
        rate: Successes among the answers that it scored.
        unscored: How many it could not score.
        corrected: The rate corrected for its errors; None without labels of people.
    """

    stage: str
    judge: str
    rate: Rate
    unscored: int
    corrected: Corrected | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two judges on the answers that both were asked of.

    Attributes:
        first, second: Who.
        agreement: On what is a success, of the answers that both scored.
        confusion: Labels of the first (rows), and of the second.
    """

    first: str
    second: str
    agreement: Agreement
    confusion: Confusion


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a judge errs against people.

    Attributes:
        judge: Who.
        errors: Of the answers that people labelled, each counted once however often it was given.
    """

    judge: str
    errors: JudgeErrors


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """What judges make of the answers of a run.

    Attributes:
        schema: Of the JSON.
        run: Name of its folder.
        answers: How many.
        judges: The run's own first.
        truth: The sheet that rates are corrected by; None if none was given.
        rates: By stage, then judge.
        pairs: Of every two judges.
        measured: Of every judge, where there is a sheet.
        notes: What a reader should know.
    """

    schema: str = "pointsman.agreement/1"
    run: str
    answers: int
    judges: tuple[str, ...]
    truth: str | None
    rates: tuple[StageRate, ...]
    pairs: tuple[Pair, ...]
    measured: tuple[Measured, ...]
    notes: tuple[str, ...]


def agree(folder: Path, others: Sequence[Path], truth: Path | None, seed: int = 0) -> Agreed:
    """Hold judges against each other on the answers of a run.

    Args:
        folder: Of a finished run; the verdicts that are kept with it take part.
        others: Folders of `pointsman judge`, or sheets that people labelled.
        truth: A sheet that is taken for true.
        seed: Of the bootstraps.

    Raises:
        RunError, DataError: One cannot be read, or is of other answers.
        UsageError: There is nothing to compare.
    """
    kept = read_answers(folder)
    _, of = read_results(read_folder(folder))
    own = write_name(of.judge.name, of.judge.parameters or {})
    judges: dict[str, Verdicts] = {own: [answer.verdict for answer in kept.answers]}
    beside, notes = _kept_with(kept)
    for name, verdicts in [*beside, *(_from(place, kept) for place in others)]:
        judges[f"{name} (again)" if name == own else name] = [_asked(verdict) for verdict in verdicts]
    if len(judges) == 1 and truth is None:
        raise UsageError(
            f"Only one judge, {own}, has judged {folder}",
            f"Judge it again with `pointsman judge {folder} --judge NAME`, or give a labelled sheet",
        )
    measured: dict[str, JudgeErrors] = {}
    if truth is not None:
        people, labels = _from(truth, kept)
        right = [_asked(verdict) for verdict in labels]
        measured = {name: _errors(kept, found, right, seed) for name, found in judges.items() if name != people}
    return Agreed(
        run=folder.resolve().name,
        answers=len(kept.answers),
        judges=tuple(judges),
        truth=None if truth is None else truth.name,
        rates=tuple(
            _rate(kept, stage, name, found, measured.get(name), seed)
            for stage in kept.stages
            for name, found in judges.items()
        ),
        pairs=tuple(
            Pair(
                first=a, second=b, agreement=on_success(kept.answers, judges[a], judges[b], seed),
                confusion=_confusion(judges[a], judges[b]),
            )
            for a, b in combinations(judges, 2)
        ),
        measured=tuple(Measured(judge=name, errors=errors) for name, errors in measured.items()),
        notes=(*kept.notes(), *notes),
    )  # fmt: skip


def _kept_with(kept: KeptAnswers) -> tuple[list[tuple[str, Verdicts]], list[str]]:
    """The verdicts of other judges that lie with the run, and what to say of files that hold none."""
    place = kept.folder / KEPT_VERDICTS
    found: list[tuple[str, Verdicts]] = []
    notes = []
    for file in sorted(place.glob("*.jsonl")) if place.is_dir() else ():
        try:
            found.append(read_verdicts(kept.folder, f"{KEPT_VERDICTS}/{file.name}", kept))
        except RunError as error:
            notes.append(f"Left out: {error.problem}.")
    return found, notes


def _from(place: Path, kept: KeptAnswers) -> tuple[str, Verdicts]:
    """Who judged, and what they said, from a folder or a sheet."""
    if place.is_dir():
        with Run.open(place, read_only=True):  # nothing in it leads out of it
            return read_verdicts(place, VERDICTS, kept)
    judge = HumanJudge(str(place))
    found = judged(judge, [a.asked for a in kept.answers], [a.answer for a in kept.answers])
    if not any(map(_asked, found)):
        raise UsageError(f"{place} labels no answer of {kept.folder}", "Fill in a sheet that was written for this run")
    return shareable_judge(judge), found


def _asked(verdict: Verdict | None) -> Verdict | None:
    """None for an answer that nobody labelled: people are asked of some only."""
    return None if verdict is not None and verdict.reason == NOT_LABELLED else verdict


def _errors(kept: KeptAnswers, said: Verdicts, right: Verdicts, seed: int) -> JudgeErrors:
    once = {answer.id: n for n, answer in enumerate(kept.answers)}.values()
    both = [n for n in once if _score(said[n]) is not None and _score(right[n]) is not None]
    sources = [kept.answers[n].asked.source for n in both]
    return JudgeErrors.of([success(said[n]) for n in both], [success(right[n]) for n in both], sources, seed)


def _rate(
    kept: KeptAnswers, stage: str, judge: str, found: Verdicts, errors: JudgeErrors | None, seed: int
) -> StageRate:
    rows = [n for n, answer in enumerate(kept.answers) if answer.stage == stage]
    scored = [n for n in rows if _score(found[n]) is not None]
    flags, sources = [success(found[n]) for n in scored], [kept.answers[n].asked.source for n in scored]
    return StageRate(
        stage=stage,
        judge=judge,
        rate=Rate.of(flags, sources, seed),
        unscored=sum(verdict is not None and verdict.score is None for verdict in (found[n] for n in rows)),
        corrected=None if errors is None else Corrected.of(flags, errors, sources),
    )


def _confusion(a: Verdicts, b: Verdicts) -> Confusion:
    both = [(x.label, y.label) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return Confusion.of([x for x, _ in both], [y for _, y in both], LABELS)


def _score(verdict: Verdict | None) -> float | None:
    return None if verdict is None else verdict.score
