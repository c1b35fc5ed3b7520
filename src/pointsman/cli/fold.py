"""``fold``: write a steering into a checkpoint that any engine loads, where that is exact."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli.options import (
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelArgument,
    ModelOptions,
    RevisionOption,
    TemplateOption,
    TrustOption,
)
from pointsman.cli.output import Session, interruptible, keep_stdout_clean, quietly, say, waiting
from pointsman.cli.runs import make_again
from pointsman.errors import RunError, UsageError

if TYPE_CHECKING:
    from pointsman.steering.artefact import Steering
    from pointsman.steering.fold import FoldReport

SteeringOption = Annotated[
    str,
    typer.Option(
        "--steering", metavar="FOLDER", help="Folder or hub id of a steering, or the folder of a run that found one.",
        show_default=False,
    ),
]  # fmt: skip


def fold(
    context: typer.Context,
    model: ModelArgument,
    steering: SteeringOption,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="New folder for the steered checkpoint.", show_default=False)
    ],
    as_json: JsonOption = False,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    chat_template: TemplateOption = None,
) -> None:
    """Fold a steering into the router biases of a model and write an ordinary checkpoint.

    It loads anywhere and costs nothing. Only where that is exact: the router must have a bias on its logits (gpt-oss
    has, most have none), and the steering must act on all tokens. It is proven on the model before anything is
    written; else nothing is, and one line says why.

    [bold]Example[/bold]

    pointsman fold openai/gpt-oss-20b --dtype float32 --steering ./steering --out ./gpt-oss-20b-steered
    """
    session: Session = context.obj
    options = ModelOptions.of(model, dtype, device, None, revision, trust_remote_code, chat_template, None)
    with interruptible("Nothing was written; run the command again"), keep_stdout_clean(), quietly(session):
        found = read_steering(steering)
        from pointsman.steering.fold import fold as fold_into
        from pointsman.steering.fold import refuse_full, save_folded

        out = out.expanduser()
        refuse_full(out)
        engine = options.load(session)
        from pointsman.engine.abilities import that_holds_module

        held = that_holds_module(engine)
        found.check(engine.routers, engine.info.fingerprint)
        other = found.on_other_weights(engine.weights)
        if other:
            say(f"pointsman: note: {other}.")
        with waiting("Folding, and comparing with the steered model ..."):
            report = fold_into(held.model, found)
            save_folded(out, held.model, held.tokenizer, found, report)
    if as_json:
        print(json.dumps({"schema": "pointsman.fold/1", "out": str(out), **report.to_json()}, indent=2))
        return
    for sentence in _sentences(found, report):
        say(sentence)
    print(out)


def read_steering(name: str) -> Steering:
    """The steering that a user names: its folder, that of a run, or a hub id.

    Raises:
        InterventionError: There is none, or it is damaged.
        RunError: Something in the run leads out of it, or the steering is not the one that the run wrote.
        UsageError: The name is empty.
    """
    from pointsman.steering.artefact import DATA, Steering

    if not name.strip():
        raise UsageError("The name of the steering is empty", "Give its folder, that of a run, or a hub id")
    folder = Path(name).expanduser()
    of_run = folder / "artefacts" / "steering"
    if (folder / DATA).exists() or not os.path.lexists(of_run / DATA):
        return Steering.from_pretrained(name)
    from pointsman.runs.folder import refuse_links
    from pointsman.runs.run import MANIFEST, Run

    if not os.path.lexists(folder / MANIFEST):  # no more of a run than its artefacts
        refuse_links(folder)
        return Steering.from_pretrained(of_run)
    with Run.open(folder, read_only=True) as run:
        for change in run.changes(within="artefacts/steering"):
            raise RunError(change, f"Make it again ({make_again(run)}), or give {of_run} itself to use it as it is")
    return Steering.from_pretrained(of_run)


def _sentences(steering: Steering, report: FoldReport) -> list[str]:
    layers = len(report.layers)
    return [
        f"Folded {report.entries} entries at alpha {steering.alpha:g} into `{report.tensor}` of {layers} "
        f"{'router' if layers == 1 else 'routers'}.",
        f"On {report.prompts} prompts the folded and the steered model generate the same {report.tokens} tokens; their "
        f"logits differ by at most {report.logit_difference:.2g}.",
        f"Fingerprint of the folded model: {report.fingerprint}",
    ]
