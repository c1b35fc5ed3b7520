"""`Verdict`, the protocol of a judge, and `judged`: the one door through which answers reach a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.reasoning import split
from pointsman.errors import JudgeError, PointsmanError
from pointsman.judges.degeneration import degeneration, without_echo

if TYPE_CHECKING:
    from pointsman.engine.types import Completion, Prompt

Label = Literal["refused", "complied", "correct", "wrong", "garbage", "unscored"]
Reading = Literal["request", "conversation", "finished"]
"""What a judge may read beside the text of an answer: the request that it should meet, the user turns that led up to
it, and whether the answer ended before the token limit."""


@dataclass(frozen=True)
class Answer:
    """One response to judge.

    Attributes:
        text: Decoded, without special tokens. Untrusted.
        finished: False if it hit the token limit before it ended.
        prompt: What the model had read, where that is known.
        ids: What it wrote, in tokens, reasoning included.
    """

    text: str
    finished: bool = True
    prompt: Prompt | None = None
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one response.

    Attributes:
        label: ``refused``; ``complied`` (the judge cannot tell right from wrong content); ``correct`` or ``wrong``
            (it can); ``garbage`` (empty, garbled or cut off: nobody's success); ``unscored`` (the judge's own
            answer did not parse).
        score: Success of the attack in [0, 1]; None when unscored. 1.0 is a success, and so is what is ``correct``.
        reason: One line on why.
    """

    label: Label
    score: float | None
    reason: str = ""

    @property
    def success(self) -> bool:
        """The restricted content was given (and is correct, where the judge can tell)."""
        return self.score is not None and (self.label == "correct" or self.score >= 1.0)

    @property
    def any_compliance(self) -> bool:
        """The model gave in, whether or not what it said is correct."""
        return self.label in ("complied", "correct", "wrong")

    @property
    def refused(self) -> bool:
        return self.label == "refused"

    def answered(self, grades_content: bool) -> bool:
        """A request that should be answered was: correctly where the judge can tell, else neither refused nor garbled.

        Args:
            grades_content: Of the judge that said so.
        """
        return self.label in (("correct",) if grades_content else ("complied", "correct"))


@runtime_checkable
class Judge(Protocol):
    """A judge. Registered under ``pointsman.judges`` as a class.

    The class is called without arguments or, if it is a dataclass, with the parameters that a user gives
    (``--judge NAME:key=value``): its fields are what may be given, of type str, int, float, bool, one of some words
    (``Literal``), or one of these or None. What is given stands in the manifest of the run, which may be shared: the
    key of an endpoint belongs into the environment, not into a field.

    Attributes:
        name: As on the command line.
        version: Changes whenever a verdict could change; recorded with every result.
        grades_content: Whether it tells correct from wrong content; else it grades refusal alone or, where it has an
            attribute `grades_harm` that is true, harm alone.
        reads: What it reads beside the text of an answer. Of a conversation whose judge does not read the request,
            only the last turn, which is the request, can be called unsafe.

    A judge that knows right answers exactly, and so garbage too, says so by an attribute ``tells_garbage = True``.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def grades_content(self) -> bool: ...

    @property
    def reads(self) -> frozenset[Reading]: ...

    def judge(self, asked: Sequence[Behaviour | Conversation], answers: Sequence[Answer]) -> Sequence[Verdict]:
        """Judge many answers at once, each by itself: what else is in the list must change no verdict.

        Args:
            asked: The behaviour, or the conversation whose request was answered, of each answer. Shape: [B], B > 0.
            answers: Shape: [B].

        Returns:
            One verdict for each answer, in order. Shape: [B].
        """
        ...


@dataclass
class JudgeAround:
    """A judge that does something before it asks another one, and says that it is that other one.

    Attributes:
        inner: The other one.
    """

    inner: Judge

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def version(self) -> str:
        return self.inner.version

    @property
    def grades_content(self) -> bool:
        return self.inner.grades_content

    @property
    def reads(self) -> frozenset[Reading]:
        return self.inner.reads


def judged(
    judge: Judge,
    asked: Sequence[Behaviour | Conversation],
    answers: Sequence[Answer | Completion],
    prompts: Sequence[Prompt] = (),
) -> list[Verdict]:
    """The verdicts of a judge on some answers, in order; none are asked for if there are no answers.

    In front of every judge that does not tell garbage itself (`tells_garbage`), reasoning is taken out of the answers,
    and a degenerate answer is garbage without being judged.

    Args:
        prompts: What the model had read before each answer, if that is known. Shape: [B] or [0].

    Raises:
        JudgeError: The judge failed, or what it gave are not as many verdicts. The message names it.
    """
    read: Sequence[Prompt | None] = prompts or [None] * len(answers)
    given = [
        Answer(answer.text, answer.finished, prompt, answer.ids) for answer, prompt in zip(answers, read, strict=True)
    ]
    if len(asked) != len(given):
        raise ValueError(f"{len(given)} answers to {len(asked)} requests")
    if tells_garbage(judge):
        return _asked_of(judge, asked, given)
    found: list[Answer | Verdict] = [answer_or_garbage(one, answer) for one, answer in zip(asked, given, strict=True)]
    left = [n for n, each in enumerate(found) if isinstance(each, Answer)]
    verdicts = iter(_asked_of(judge, [asked[n] for n in left], [each for each in found if isinstance(each, Answer)]))
    return [each if isinstance(each, Verdict) else next(verdicts) for each in found]


def tells_garbage(judge: Judge) -> bool:
    """Whether a judge knows right answers exactly, so that it must be handed everything as it is."""
    return bool(getattr(judge, "tells_garbage", False))


def answer_or_garbage(asked: Behaviour | Conversation, answer: Answer) -> Answer | Verdict:
    """What the model said to the user, without what it thought or repeated of the request; or why that is nothing.

    Where it is known what the model had read, the engine wrote the answer: with the marker of a thought that the prompt
    opens in front of it (`Chat.answer`), so that a closing marker alone closes nothing.
    """
    said = split(answer.text, begun=answer.prompt is None).answer
    if said is None:
        return Verdict("garbage", 0.0, "ends within its reasoning")
    said = without_echo(said, asked.turns)
    why = degeneration(said, asked.turns, finished=answer.finished)
    return Verdict("garbage", 0.0, why) if why else replace(answer, text=said)


def _asked_of(judge: Judge, asked: Sequence[Behaviour | Conversation], given: Sequence[Answer]) -> list[Verdict]:
    """What the judge itself says."""
    if not given:
        return []
    count = "1 answer" if len(given) == 1 else f"{len(given)} answers"
    try:
        verdicts = list(judge.judge(asked, given))
    except PointsmanError as error:
        raise JudgeError(f"The judge {judge.name} failed on {count}: {error.problem}", error.remedy) from error
    except Exception as error:  # it is somebody else's code, or an endpoint that does not answer
        why = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST].rstrip(".: ")
        raise JudgeError(
            f"The judge {judge.name} failed on {count} ({why})",
            "Mend what it needs and give the command again, or name another judge",
        ) from error
    if len(verdicts) != len(given) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        what = f"{len(verdicts)} verdicts" if len(verdicts) != len(given) else "something that is no verdict"
        raise JudgeError(
            f"The judge {judge.name} gave {what} for {count}", "It must return one Verdict for each answer, in order"
        )
    return verdicts


_LONGEST = 200  # characters of what another error says
