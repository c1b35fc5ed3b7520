"""``fold``: write a steering into a checkpoint that any engine loads, where that is exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli.loading import ModelOptions
from pointsman.cli.options import JsonOption, with_model
from pointsman.cli.output import Session, say, say_note, undisturbed, waiting
from pointsman.runs.steering import read_steering

if TYPE_CHECKING:
    from pointsman.steering.artefact import Steering
    from pointsman.steering.fold import FoldReport


@with_model("load_in", "batch_size")
def fold(
    context: typer.Context,
    options: ModelOptions,
    steering: Annotated[
        str,
        typer.Option(
            "--steering",
            metavar="FOLDER",
            help="Folder or hub id of a steering, or the folder of a run that found one.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="New folder for the steered checkpoint.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Fold a steering into the routers of a model and write an ordinary checkpoint.

    It loads anywhere and costs nothing. Only where that is exact. A conditional steering goes into the weights of the
    routers of any model. A constant one needs a bias on the routers' logits (gpt-oss has one, most have none). Either
    must act on all tokens, and have no threshold. It is proven on the model before anything is written; else nothing
    is, and one line says why.

    [bold]Example[/bold]

    pointsman fold openai/gpt-oss-20b --dtype float32 --steering ./steering --out ./gpt-oss-20b-steered
    """
    session: Session = context.obj
    with undisturbed(session, "Nothing was written; run the command again"):
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
            say_note(other)
        with waiting("Folding, and comparing with the steered model ..."):
            report = fold_into(held.model, found)
            save_folded(out, held.model, held.tokenizer, found, report)
    if as_json:
        print(json.dumps({"schema": "pointsman.fold/1", "out": str(out), **report.to_json()}, indent=2))
        return
    for sentence in _sentences(found, report):
        say(sentence)
    print(out)


def _sentences(steering: Steering, report: FoldReport) -> list[str]:
    layers = len(report.layers)
    what = [f"{report.entries} entries"] if report.tensor else []
    what += [f"maps of rank {report.rank}"] if report.weight else []
    where = " and ".join(f"`{name}`" for name in (report.tensor, report.weight) if name)
    tied = (
        f" ({report.not_compared} more follow a choice between experts that are equal up to rounding, and say nothing)"
        if report.not_compared
        else ""
    )
    return [
        f"Folded {' and '.join(what)} at alpha {steering.alpha:g} into {where} of {layers} "
        f"{'router' if layers == 1 else 'routers'}.",
        f"On {report.prompts} prompts the folded and the steered model generate the same {report.tokens} tokens{tied}; "
        f"their logits differ by at most {report.logit_difference:.2g}.",
        f"Fingerprint of the folded model: {report.fingerprint}",
    ]
