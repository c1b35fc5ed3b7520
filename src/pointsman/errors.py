"""Every failure that a user can cause, one class each; the message says what is wrong *and* what to do next.

The command line prints the message as one line and exits with `exit_code`; a traceback appears only with `--debug`.
"""

from __future__ import annotations


class PointsmanError(Exception):
    """Base of all errors that Pointsman raises on purpose.

    Args:
        problem: What is wrong, in one sentence, naming the thing that is wrong.
        remedy: What the user can do about it, in one sentence.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem.rstrip(".")
        self.remedy = remedy.rstrip(".")
        super().__init__(f"{self.problem}. {self.remedy}{'' if self.remedy.endswith('?') else '.'}")


class UnsupportedEnvironment(PointsmanError):
    """A torch or transformers that is missing, broken, or outside of what this version of Pointsman supports."""


class UnknownName(PointsmanError):
    """A judge, behaviour set or other registered name that nobody registered."""


class JudgeError(PointsmanError):
    """A judge that failed on some answers, or that cannot be used as it is."""


class ModelError(PointsmanError):
    """A model that cannot be found or loaded."""


class NoRouters(PointsmanError):
    """A model without routers, for example a dense one."""


class UncontrollableRouter(PointsmanError):
    """A router whose logits or selection Pointsman cannot see or set; never skipped in silence."""


class ControlFailed(PointsmanError):
    """Control was attached and did not do what it promised: the result would have been a silent no-op."""


class InterventionError(PointsmanError):
    """An intervention that is not well formed, or does not fit the routers of the model."""


class WrongModel(InterventionError):
    """An intervention made for another model."""


class DataError(PointsmanError):
    """A behaviour file that cannot be used."""


class PromptTooLong(PointsmanError):
    """A prompt that, with its answer, does not fit the model's context."""


class BadLogits(PointsmanError):
    """The model returned NaN or infinite logits."""


class OutOfMemory(PointsmanError):
    """Not even one row fits into the device's memory."""


class RunError(PointsmanError):
    """A run folder that cannot be written, read or resumed."""


class UsageError(PointsmanError):
    """An option outside its range."""


class Interrupted(PointsmanError):
    """The user pressed Ctrl-C; what was done is kept."""

    exit_code = 130
