"""Progress: right estimates, few lines in a log, silence when asked."""

from __future__ import annotations

import io
import sys

import pytest

from pointsman.runs.progress import NullProgress, Progress, ProgressLike


class Clock:
    """Seconds that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_estimate_ignores_what_was_restored() -> None:
    clock = Clock()
    with Progress(quiet=True, clock=clock) as progress, progress.stage("RoSais", total=240) as stage:
        assert stage.remaining is None
        stage.skip(120)
        clock.now += 5
        assert stage.remaining is None, "restored steps say nothing about the speed"
        stage.advance(12)
        clock.now += 5
        assert stage.done == 132
        assert stage.remaining == pytest.approx(10 / 12 * 108)
        stage.advance(108)
        assert stage.remaining == 0.0


def test_plain_lines_are_rare_and_complete() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(stream=out, clock=clock) as progress:
        with progress.stage("RoSais", total=100) as stage:
            for _ in range(100):
                clock.now += 0.5
                stage.advance()
        with progress.stage("F-SOUR", total=10) as stage:
            stage.advance(10)
    lines = out.getvalue().splitlines()
    assert lines[0] == "RoSais 0/100, 0:00 elapsed, time left unknown"
    assert lines[1] == "RoSais 20/100, 0:10 elapsed, about 0:40 left"
    assert len(lines) == 6, "one line in 10 s, also across stages"
    assert all("\x1b" not in line for line in lines)


def test_long_times() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(stream=out, clock=clock) as progress, progress.stage("x", total=3) as stage:
        clock.now += 3725
        stage.advance()
    assert out.getvalue().splitlines()[-1] == "x 1/3, 1:02:05 elapsed, about 2:04:10 left"


def test_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Progress(stream=out) as progress, progress.stage("Ro[b]Sais", total=4) as stage:
        stage.advance(4)
    assert "Ro[b]Sais" in out.getvalue(), "names are no markup"
    assert "4/4" in out.getvalue()


def test_stderr_only_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    stdout = sys.stdout
    with Progress() as progress, progress.stage("x", total=1) as stage:
        stage.advance()
        assert sys.stdout is stdout
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("x 0/1")
    quiet: list[ProgressLike] = [Progress(quiet=True), NullProgress()]
    for silent in quiet:
        with silent.stage("x", total=2) as stage:
            stage.advance()
            stage.skip()
            assert stage.done == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_pipes_and_dumb_terminals_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, name, force in ((Terminal(), "dumb", "0"), (io.StringIO(), "xterm", "1")):
        monkeypatch.setenv("TERM", name)
        monkeypatch.setenv("FORCE_COLOR", force)
        with Progress(stream=stream) as progress, progress.stage("x", total=1):
            pass
        assert stream.getvalue() == "x 0/1, 0:00 elapsed, time left unknown\n"


def test_an_error_ends_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with (
        pytest.raises(RuntimeError, match="boom"),
        Progress(stream=out) as progress,
        progress.stage("x", total=2),
    ):
        raise RuntimeError("boom")
    assert "\x1b[?25h" in out.getvalue(), "the cursor is shown again"
