"""The answers that a run keeps, to be judged again: what was asked, what was said, and what its own judge found.

``artefacts/completions.jsonl`` holds the texts. What it does not hold is looked up in the journal: the source question,
whether an answer ended, its score, and how many turns a conversation had. The folder may come from a stranger: nothing
in it is followed, and a line that is not what it should be is left out and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pointsman.data.types import Behaviour, Conversation
from pointsman.errors import RunError
from pointsman.judges.human import BETWEEN_TURNS, answer_id
from pointsman.judges.types import Answer, Judge, Label, Verdict
from pointsman.runs.files import shareable_judge
from pointsman.runs.folder import read_file
from pointsman.runs.run import ARTEFACTS, Run

COMPLETIONS = f"{ARTEFACTS}/completions.jsonl"
VERDICTS = f"{ARTEFACTS}/verdicts.jsonl"
KEPT_VERDICTS = f"{ARTEFACTS}/verdicts"
EARLIER_TURN = "answers to an earlier turn of a conversation, whose request is not kept"
UNREADABLE = "lines that could not be read"


@dataclass(frozen=True)
class KeptAnswer:
    """One answer of a run.

    Attributes:
        stage: In which it was given.
        asked: The behaviour, or the conversation whose last turn it answers, as far as it is kept: without targets, and
            with the last turn for the goal of a conversation.
        answer: As it was given.
        end_known: Whether the run knows if it ended; else it is taken to have.
        verdict: Of the run's own judge.
    """

    stage: str
    asked: Behaviour | Conversation
    answer: Answer
    end_known: bool
    verdict: Verdict

    @property
    def key(self) -> tuple[str, str]:
        """Stage and id: unique within a run."""
        return self.stage, self.asked.id

    @property
    def id(self) -> str:
        """Of what was asked and said, wherever it was said."""
        return answer_id(self.asked.turns, self.answer.text)


@dataclass(frozen=True)
class KeptAnswers:
    """All answers of a run that can be judged again.

    Attributes:
        folder: Of the run.
        answers: In the order in which they were given.
        left_out: How many cannot be judged again, by why.
    """

    folder: Path
    answers: tuple[KeptAnswer, ...]
    left_out: Mapping[str, int]

    @property
    def stages(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(dict.fromkeys(answer.stage for answer in self.answers))

    @property
    def digest(self) -> str:
        """SHA-256 of all of them."""
        return hashlib.sha256(repr(self.answers).encode("utf-8", "backslashreplace")).hexdigest()

    def notes(self) -> tuple[str, ...]:
        """What a reader should know of them, in sentences."""
        unknown = sum(not answer.end_known for answer in self.answers)
        turns = sum(isinstance(answer.asked, Conversation) for answer in self.answers)
        found = [f"Not judged again: {count} {why}." for why, count in self.left_out.items()]
        if turns:
            found.append(
                f"Of {turns} conversations the run keeps the turns, and not the request as it is stated on its own: a "
                "judge that reads the request is given the last turn."
            )
        if unknown:
            found.append(
                f"Of {unknown} answers the run does not know whether they reached the token limit; they are judged as "
                "if they ended."
            )
        return tuple(found)


def read_answers(folder: Path) -> KeptAnswers:
    """The answers of a finished run.

    Raises:
        RunError: It is no run, is damaged or not finished, leads out of its folder, or keeps no answers.
    """
    with Run.open(folder, read_only=True) as run:
        run.read_results()
        rows = list(read_rows(folder, COMPLETIONS))
        journal = _Journal.of(run)
    found: dict[tuple[str, str], KeptAnswer] = {}
    left_out: dict[str, int] = {}
    for row in rows:
        answer = _kept(row, journal)
        if isinstance(answer, str) or answer.key in found:
            why = answer if isinstance(answer, str) else UNREADABLE
            left_out[why] = left_out.get(why, 0) + 1
        else:
            found[answer.key] = answer
    if not found:
        raise RunError(
            f"{folder} keeps no answers that could be judged", "Give the folder of an audit or of a steering"
        )
    return KeptAnswers(folder, tuple(found.values()), left_out)


def read_rows(folder: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSONL file of a run; an empty one for a line that is none.

    Raises:
        RunError: The file is not there, or cannot be read.
    """
    try:
        lines = read_file(folder / name).decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise RunError(
            f"{folder / name} cannot be read ({error.strerror})", "Give the folder of a run that has it"
        ) from None
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = {}
        yield row if isinstance(row, dict) else {}


# ---------------------------------------------------------------------- verdicts on disk


def written_verdicts(judge: Judge, answers: Sequence[KeptAnswer], verdicts: Sequence[Verdict]) -> str:
    """The lines of ``verdicts.jsonl``: one for each answer, which is named by stage, id and content."""
    name = shareable_judge(judge)
    rows = (
        {"stage": a.stage, "id": a.asked.id, "answer": a.id, "judge": name, "label": v.label, "score": v.score,
         "reason": v.reason}
        for a, v in zip(answers, verdicts, strict=True)
    )  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def kept_name(judge: Judge) -> str:
    """The file, within a run, of what a judge says of its answers: another for every version and parameter."""
    what = json.dumps([shareable_judge(judge), judge.version])
    return f"{KEPT_VERDICTS}/{hashlib.sha256(what.encode()).hexdigest()[:16]}.jsonl"


def read_verdicts(folder: Path, name: str, answers: KeptAnswers) -> tuple[str, list[Verdict | None]]:
    """Who judged, and the verdict on each answer; None where the file says nothing of it.

    Raises:
        RunError: The file cannot be read, or speaks of other answers.
    """
    place = {(*answer.key, answer.id): number for number, answer in enumerate(answers.answers)}
    found: list[Verdict | None] = [None] * len(place)
    judge = ""
    for row in read_rows(folder, name):
        key, verdict = tuple(row.get(part) for part in ("stage", "id", "answer")), _verdict(row)
        if verdict is not None and isinstance(row.get("judge"), str) and all(isinstance(part, str) for part in key):
            judge = judge or row["judge"]
            if key in place and row["judge"] == judge:
                found[place[key]] = verdict
    if not any(found):
        raise RunError(
            f"{folder / name} holds no verdicts on the answers of {answers.folder}",
            f"Judge them with `pointsman judge {answers.folder} --judge NAME`",
        )
    return judge, found


# ---------------------------------------------------------------------- what the journal adds


@dataclass(frozen=True)
class _Journal:
    """What a journal says beside the texts, by id of the prompt and answer.

    Attributes:
        attempts: Source, whether it ended, and the verdict.
        played: Source, which turn it answers, of how many, and the verdict.
    """

    attempts: dict[tuple[str, str], list[tuple[str, bool, Verdict]]]
    played: dict[tuple[str, str], list[tuple[str, int, int, Verdict]]]

    @staticmethod
    def of(run: Run) -> _Journal:
        journal = _Journal({}, {})
        for key in run.keys():  # noqa: SIM118 (they are not all that it contains)
            for value in _objects(run.remember(key, dict)):
                journal._take(value)
        return journal

    def _take(self, value: Mapping[str, Any]) -> None:
        name, source = value.get("id"), value.get("source")
        if not isinstance(name, str) or not isinstance(source, str):
            return
        verdict, verdicts = _verdict(value.get("verdict")), value.get("verdicts")
        response, responses, finished = (value.get(part) for part in ("response", "responses", "finished"))
        if verdict is not None and isinstance(response, str) and isinstance(finished, bool):
            self.attempts.setdefault((name, response), []).append((source, finished, verdict))
        elif isinstance(responses, list) and isinstance(verdicts, list):
            for turn, (said, one) in enumerate(zip(responses, verdicts, strict=False)):
                found = _verdict(one)
                if isinstance(said, str) and found is not None:
                    kept = self.played.setdefault((name, said), [])
                    kept.append((source, turn, len(responses), found))


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in a JSON value, however deep."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _verdict(value: Any) -> Verdict | None:
    """A verdict from its JSON; None if it is none."""
    if not isinstance(value, dict):
        return None
    label, score, reason = value.get("label"), value.get("score"), value.get("reason", "")
    right = isinstance(score, int | float | None) and not isinstance(score, bool) and isinstance(reason, str)
    if label not in get_args(Label) or not right or not (score is None or 0 <= score <= 1):
        return None
    return Verdict(cast(Label, label), None if score is None else float(score), reason)


def _kept(row: Mapping[str, Any], journal: _Journal) -> KeptAnswer | str:
    """An answer from its line, or why it cannot be judged again."""
    texts = [row.get(part) for part in ("stage", "id", "category", "prompt", "response")]
    given = {"complied": 1.0, "correct": 1.0, "unscored": None}
    own = _verdict({"score": given.get(str(row.get("label")), 0.0), **row})
    if not all(isinstance(each, str) for each in texts) or own is None:
        return UNREADABLE
    stage, name, category, prompt, response = map(str, texts)
    if "tactic" not in row:
        for source, finished, verdict in journal.attempts.get((name, response), ()):
            if (verdict.label, verdict.reason) == (own.label, own.reason):
                asked = Behaviour(name, prompt, "", category, source)
                return KeptAnswer(stage, asked, Answer(response, finished), True, verdict)
        return KeptAnswer(stage, Behaviour(name, prompt, "", category, name), Answer(response), False, own)
    turns = tuple(prompt.split(BETWEEN_TURNS))
    for source, turn, of, verdict in journal.played.get((name, response), ()):
        if turn == len(turns) - 1 == of - 1 and verdict.label == own.label:
            conversation = Conversation(name, turns, turns[-1], "", str(row["tactic"]), category, source)
            return KeptAnswer(stage, conversation, Answer(response), False, verdict)
    return EARLIER_TURN
