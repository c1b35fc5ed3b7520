"""Live progress on stderr: a bar on a terminal, a plain line now and then elsewhere, nothing if quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

EVERY = 10.0
"""Seconds between two plain lines, at least."""


class Stage:
    """One stage of a run: how much is done, and how long the rest will take.

    Args:
        name: Shown to the user.
        total: Units in all; any unit that takes about equally long.
        clock: Seconds, monotonic.
        changed: Called after every change.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[Stage], None] = lambda stage: None,
    ) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self._worked = 0
        self._clock = clock
        self._start = clock()
        self._changed = changed

    def advance(self, units: int = 1) -> None:
        """`units` were done just now."""
        self.done += units
        self._worked += units
        self._changed(self)

    def skip(self, units: int = 1) -> None:
        """`units` need not be done (restored from the journal, or saved): they say nothing about speed."""
        self.done += units
        self._changed(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._start

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest will take at the mean speed so far; None if nothing is known yet."""
        left = self.total - self.done
        if left <= 0:
            return 0.0
        return self.elapsed / self._worked * left if self._worked else None

    def times(self) -> str:
        """Elapsed and remaining time in words."""
        left = self.remaining
        rest = "time left unknown" if left is None else f"about {_clock_face(left)} left"
        return f"{_clock_face(self.elapsed)} elapsed, {rest}"

    def __str__(self) -> str:
        return f"{self.name} {self.done}/{self.total}, {self.times()}"


class ProgressLike(Protocol):
    """What `Progress` and `NullProgress` have in common."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Stage]:
        """Begin a stage of `total` units."""
        ...


class NullProgress:
    """Progress that nobody sees."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """A stage that counts in silence."""
        yield Stage(name, total)


class Progress:
    """Progress of a run, stage by stage.

        with Progress(quiet=False) as progress:
            with progress.stage("RoSais", total=240) as stage:
                stage.advance(12)

    Args:
        quiet: Print nothing.
        stream: Where to; stderr unless given.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._last_line = float("-inf")
        self._bars: RichProgress | None = None

    def __enter__(self) -> Self:
        console = Console(file=self._stream)
        if not self._quiet and self._stream.isatty() and not console.is_dumb_terminal:
            self._bars = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                _Times(),
                console=console,
                redirect_stdout=False,  # stdout belongs to the results
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Begin a stage of `total` units."""
        if self._quiet:
            yield Stage(name, total, clock=self._clock)
        elif self._bars is None:
            stage = Stage(name, total, clock=self._clock, changed=self._say)
            self._say(stage)
            yield stage
        else:
            bars = self._bars
            stage = Stage(name, total, clock=self._clock, changed=lambda s: bars.update(task, completed=s.done))
            task: TaskID = bars.add_task(name, total=total, stage=stage)
            yield stage
            bars.refresh()

    def _say(self, stage: Stage) -> None:
        """Print a plain line, unless there was one a moment ago."""
        now = self._clock()
        if now - self._last_line >= EVERY:
            self._last_line = now
            print(stage, file=self._stream, flush=True)


class _Times(ProgressColumn):
    """Elapsed and remaining time of a stage, which knows what was skipped."""

    def render(self, task: Task) -> Text:
        stage = task.fields["stage"]
        if task.finished and task.finished_time is not None:
            return Text(f"{_clock_face(task.finished_time)} in all")
        return Text(stage.times())


def _clock_face(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"
