"""``chat``: talk to a model with and without a steering, and switch in the middle of a conversation."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli.loading import ModelOptions
from pointsman.cli.options import with_model
from pointsman.cli.output import Session, keep_stdout_clean, one_line, quietly, say_note, waiting
from pointsman.errors import Interrupted, PointsmanError, PromptTooLong, UsageError
from pointsman.runs.steering import read_steering

if TYPE_CHECKING:
    from rich.console import Console

    from pointsman.engine.types import Completion, Engine
    from pointsman.judges.types import Judge
    from pointsman.steering.artefact import Steering

_HELP = """/on        apply the mask from here on
/off       do not apply it
/alpha X   change its strength (0 < X <= 8)
/reset     forget the conversation
/help      show this
/quit      leave (or Ctrl-D)"""
_LEAD = 12  # words before a request that are left out in looking for one that the judge knows
_COMMANDS = tuple(line.split()[0] for line in _HELP.splitlines())
_STYLES = {"refused": "yellow", "complied": "cyan", "correct": "cyan", "wrong": "magenta"}


@with_model("batch_size")
def chat(
    context: typer.Context,
    options: ModelOptions,
    steering: Annotated[
        str | None,
        typer.Option(
            "--steering",
            metavar="FOLDER",
            show_default=False,
            help="Folder or hub id of a steering, or the folder of a run that found one. Without it, only the model.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            show_default=False,
            help="Judge every answer. The testbed brings its own.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")] = 512,
) -> None:
    """Talk to a model under a steering. The mask can be switched in the middle of a conversation.

    Commands: /on, /off, /alpha X, /reset, /help, /quit. Anything else is said to the model, which knows the whole
    conversation, also what it answered under another mask. Lines can be piped in.

    [bold]Examples[/bold]

    pointsman chat testbed --steering runs/defence

    echo "how do you prune the tiny plum ?" | pointsman chat testbed
    """  # fmt: skip
    session: Session = context.obj
    try:
        from pointsman.judges.making import make_judge

        with keep_stdout_clean(), quietly(session):
            found = read_steering(steering) if steering is not None else None
            named = judge or _own_judge(options.name)
            judging = make_judge(named) if named else None
            engine = options.load(session)
            if found is not None:
                from pointsman.engine.types import refuse_unable

                found.check(engine.routers, engine.info.fingerprint)
                other = found.on_other_weights(engine.weights)
                if other:
                    say_note(other)
                refuse_unable(engine, found, "This steering")
            engine.encode(["Hello"], system=system)
    except KeyboardInterrupt:
        raise Interrupted("Interrupted", "Nothing was written; run the command again") from None
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    Chat(engine, console, session, found, judging, system, max_new_tokens).run()


def _own_judge(model: str) -> str | None:
    """The judge that a testbed model brings."""
    name, _, checkpoint = model.partition(":")
    return None if name != "testbed" else "english" if checkpoint == "english" else "testbed"


@dataclass
class Chat:
    """One conversation in a terminal.

    Attributes:
        steering: The mask at its present strength; None if there is none to switch on.
        on: Whether it is in force.
        turns, answers: The conversation so far, one answer a turn.
    """

    engine: Engine
    console: Console
    session: Session
    steering: Steering | None
    judge: Judge | None = None
    system: str | None = None
    max_new_tokens: int = 512
    on: bool = True
    turns: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Until /quit, the end of the input or Ctrl-C at the prompt; Ctrl-C during an answer only stops that."""
        for line in self._greeting():
            self._dim(line)
        try:
            while (text := self._read()) is not None:
                text = text.strip()
                if not text:
                    continue
                if text.startswith("/"):
                    if not self._command(text):
                        return
                else:
                    self._say(text)
        except KeyboardInterrupt:
            self.console.print()

    def _read(self) -> str | None:
        """The next line, or None at the end. A line that is piped in is shown, since no keyboard has shown it."""
        self.console.print(f"[{self._mask()}] > ", style="bold", end="")
        sys.stdout.flush()
        try:
            line = input()
        except (EOFError, UnicodeDecodeError) as error:
            self.console.print()
            if isinstance(error, UnicodeDecodeError):
                raise UsageError("The input is not UTF-8 text", "Pipe in UTF-8") from None
            return None
        line = line.encode("utf-8", "replace").decode("utf-8")  # bytes that are no text become question marks
        if not sys.stdin.isatty():
            self.console.print(one_line(line))
        return line

    def _say(self, text: str) -> None:
        """Ask the model, show the answer and its verdict. What fails is shown, and the turn forgotten."""
        try:
            with keep_stdout_clean(), quietly(self.session), waiting("..."):
                turns = [*self.turns, text]
                prompt = self.engine.encode(turns, answers=self.answers, system=self.system)
                (answer,) = self.engine.generate(
                    [prompt], routing=self.steering if self.on else None, max_new_tokens=self.max_new_tokens
                )
        except KeyboardInterrupt:
            self._dim("Stopped; this turn is forgotten.")
            return
        except PromptTooLong as error:
            self._dim(f"{error.problem}. This turn is forgotten; /reset begins anew.")
            return
        except PointsmanError as error:
            self._dim(f"{error} This turn is forgotten.")
            return
        self.turns.append(text)
        self.answers.append(answer.text)
        self.console.print(harmless(answer.text) or "(an empty answer)")
        if not answer.finished:
            self._dim(f"(cut off after {len(answer.ids)} tokens)")
        if self.judge is not None:
            self._show_verdict(self.judge, answer)

    def _show_verdict(self, judge: Judge, answer: Completion) -> None:
        from pointsman.data.types import Behaviour, Conversation
        from pointsman.judges.types import judged

        def asked(goal: str) -> Behaviour | Conversation:
            several = len(self.turns) > 1
            return Conversation("chat", tuple(self.turns), goal, "") if several else Behaviour("chat", goal, "")

        whole, *ends = _goals(self.turns[-1])
        try:
            (verdict,) = judged(judge, [asked(whole)], [answer])
            if verdict.label == "unscored" and "request" in judge.reads:
                others = judged(judge, [asked(end) for end in ends], [answer] * len(ends))
                verdict = next((v for v in others if v.label != "unscored"), others[-1] if others else verdict)
        except PointsmanError as error:
            self._dim(f"{judge.name}: unscored ({error})")
            return
        style = _STYLES.get(verdict.label, "dim")
        self.console.print(f"{judge.name}: {verdict.label} ({one_line(verdict.reason)})", style=style)

    def _command(self, text: str) -> bool:
        """Carry out a command. Returns whether the conversation goes on."""
        name, _, value = text.partition(" ")
        if name in ("/quit", "/exit", "/q"):
            return False
        if name == "/help":
            self._dim(_HELP)
        elif name == "/reset":
            self.turns, self.answers = [], []
            self._dim("The conversation is forgotten.")
        elif name in ("/on", "/off", "/alpha"):
            self._switch(name, value.strip())
        else:
            self._dim(f"There is no {one_line(name)}. Commands: {', '.join(_COMMANDS)}.")
        return True

    def _switch(self, name: str, value: str) -> None:
        if self.steering is None:
            self._dim("There is no mask: start with --steering FOLDER.")
            return
        if name != "/alpha":
            self.on = name == "/on"
        elif value:
            try:
                self.steering = self.steering.at(float(value))
            except ValueError:
                self._dim(f"{one_line(value)} is no number. Example: /alpha 0.5")
                return
            except PointsmanError as error:
                self._dim(str(error))
                return
        self._dim(f"From here on: {self._mask()}." if self.turns else f"Now: {self._mask()}.")

    def _mask(self) -> str:
        if self.steering is None:
            return "no mask"
        return f"mask {'on' if self.on else 'off'}, alpha {_decimal(self.steering.alpha)}"

    def _greeting(self) -> list[str]:
        lines = [one_line(f"{self.engine.info.name}, {self.engine.info.architecture}. /help lists the commands.")]
        if self.steering is not None:
            entries = len(self.steering.circuit)
            scenario = self.steering.about.get("scenario")
            of = f" of {scenario}" if isinstance(scenario, str) else ""
            experts = f"{entries} {'expert' if entries == 1 else 'experts'} pushed"
            where = {"prefill": "the prompt's tokens", "decode": "the answer's tokens", "both": "all tokens"}
            routers = len(self.steering.maps)
            moved = (
                f"{routers} {'router moved by what it reads' if routers == 1 else 'routers moved by what they read'}"
            )
            does = [experts] * bool(entries or not routers) + [moved] * bool(routers)
            lines.append(one_line(f"Mask{of}: {' and '.join(does)} at {where[self.steering.phase]}."))
        if self.judge is not None:
            lines.append(one_line(f"Judge: {self.judge.name}, version {self.judge.version}."))
        return lines

    def _dim(self, text: str) -> None:
        self.console.print(text, style="dim")


def harmless(text: str) -> str:
    """An answer without characters that could steer a terminal; its lines stay."""
    lines = text.expandtabs(4).splitlines()
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)


def _decimal(value: float) -> str:
    """``1.0``, ``0.25``: never without a point."""
    text = f"{value:g}"
    with suppress(ValueError):
        int(text)
        return f"{text}.0"
    return text


def _goals(said: str) -> list[str]:
    """What a judge may take for the request: all that was said, or its end only (``as a queen i ask : how ...``)."""
    words = said.split()
    return [said, *(" ".join(words[n:]) for n in range(1, min(len(words), _LEAD)))]
