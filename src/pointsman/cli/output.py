"""What the verbs print, and what they keep from being printed.

stdout holds results and nothing else; progress, notes and errors go to stderr.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointsman.errors import Interrupted, PointsmanError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDE = 240  # columns for tables where no terminal limits them: nothing is cut off in a file or a pipe
_LONGEST = 400  # characters of a message that somebody else wrote


@dataclass(frozen=True)
class Session:
    """What every verb knows of the call.

    Attributes:
        command: The command line as typed.
        debug: Show tracebacks, and what other libraries say.
    """

    command: str = "pointsman"
    debug: bool = False


def show(table: RenderableType) -> None:
    """Print a table (or another rich object) to stdout, as wide as it needs where that is no terminal."""
    from rich.console import Console

    Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE, highlight=False).print(table)


def say(text: str) -> None:
    """Print a line to stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def say_note(text: str) -> None:
    """Print a line to stderr that nobody asked for and everybody should know."""
    say(f"pointsman: note: {text.rstrip('.')}.")


def one_line(text: str) -> str:
    """`text` without line breaks and control characters, which names and messages of others may hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def explain(error: BaseException, session: Session) -> int:
    """Print one line on what went wrong, after the traceback if that is wanted.

    Returns:
        The exit code.
    """
    if session.debug:
        traceback.print_exception(error)
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, PointsmanError):
        say(f"pointsman: {error}{notes}")
        return error.exit_code
    message = one_line(str(error))[:_LONGEST].rstrip(".")
    hint = "" if session.debug else " This was not foreseen: --debug shows the traceback."
    say(f"pointsman: {type(error).__name__}{': ' if message else ''}{message}.{notes}{hint}")
    return 1


def write_yaml(file: Path, text: str, option: str, usual: str) -> None:
    """Write a new file; nothing is overwritten.

    Args:
        option: That names the file.
        usual: Its name without ending, where it has none.

    Raises:
        UsageError: The file is there, is of another ending, or cannot be written.
    """
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(f"{file} does not end in .yaml", f"Write {option} {file.name or usual}.yaml")
    try:
        if file.exists() or file.is_symlink():
            raise UsageError(f"{file} exists already", f"Give another file with {option}, or remove it")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as written:
            written.write(text)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", f"Give another file with {option}") from None


@contextmanager
def undisturbed(session: Session, remedy: str) -> Iterator[None]:
    """`interruptible`, with stdout for results alone and other libraries kept quiet."""
    with interruptible(remedy), keep_stdout_clean(), quietly(session):
        yield


@contextmanager
def interruptible(remedy: str) -> Iterator[None]:
    """Turn Ctrl-C into an `Interrupted` that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("Interrupted", remedy) from None


@contextmanager
def quietly(session: Session) -> Iterator[None]:
    """Keep the warnings and progress bars of other libraries off stderr while this lasts, unless debugging.

    Download bars stay on a terminal: nobody should wait for gigabytes in silence.
    """
    if session.debug:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as chatter

        hub: Any = import_module("huggingface_hub.utils")
        loggers = {logging.getLogger(name): logging.CRITICAL for name in ("huggingface_hub", "httpx", "torch")}
        levels = {logger: logger.level for logger in loggers}
        verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
        downloads = not hub.are_progress_bars_disabled()
        try:
            for logger, level in loggers.items():
                logger.setLevel(level)
            chatter.set_verbosity(logging.CRITICAL)
            chatter.disable_progress_bar()
            if not sys.stderr.isatty():
                hub.disable_progress_bars()
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)
            chatter.set_verbosity(verbosity)
            if bars:
                chatter.enable_progress_bar()
            if downloads:
                hub.enable_progress_bars()


def waiting(text: str) -> AbstractContextManager[object]:
    """A spinner on a terminal while something takes its time; nothing elsewhere."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console
    from rich.markup import escape

    return Console(file=sys.stderr).status(escape(text))


def keep_stdout_clean() -> AbstractContextManager[object]:
    """Whatever a library prints goes to stderr."""
    return redirect_stdout(sys.stderr)
