"""``doctor`` and ``routers``: look at a model before anything is run on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from pointsman.cli.loading import ModelOptions
from pointsman.cli.options import JsonOption, with_model
from pointsman.cli.output import Session, one_line, show, undisturbed
from pointsman.environment import notices

if TYPE_CHECKING:
    from pointsman.engine.checkup import CheckUp
    from pointsman.engine.types import Engine
    from pointsman.routing.paths import Paths
    from pointsman.routing.routers import Router

_AGAIN = "Nothing was written; run the command again"


@with_model()
def doctor(
    context: typer.Context,
    options: ModelOptions,
    as_json: JsonOption = False,
) -> None:
    """Find a model's routers, prove that they can be controlled, and say so plainly.

    Exits with 2 and one line if something is wrong.

    [bold]Examples[/bold]

    pointsman doctor testbed

    pointsman doctor Qwen/Qwen1.5-MoE-A2.7B-Chat --dtype bfloat16
    """
    session: Session = context.obj
    with undisturbed(session, _AGAIN):
        from pointsman.engine.checkup import check_up

        engine = options.load(session)
        seen = check_up(engine)
    if as_json:
        print(json.dumps(_findings(engine, seen), indent=2))
    else:
        print("\n".join(_sentences(engine, seen)))


@with_model()
def routers(
    context: typer.Context,
    options: ModelOptions,
    as_json: JsonOption = False,
) -> None:
    """List the routers of a model: where they are, how many experts they choose from, how many they use.

    [bold]Examples[/bold]

    pointsman routers testbed

    pointsman routers ./my-model --json
    """
    session: Session = context.obj
    with undisturbed(session, _AGAIN):
        engine = options.load(session)
    if as_json:
        listed = {
            "schema": "pointsman.routers/1",
            "model": engine.info.name,
            "architecture": engine.info.architecture,
            "fingerprint": engine.info.fingerprint,
            "routers": [asdict(r) for r in engine.routers],
        }
        print(json.dumps(listed, indent=2))
    else:
        _show_routers(engine)


def _show_routers(engine: Engine) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(f"{engine.info.name} · {engine.info.architecture}", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("layer", "decoder layer"):
        table.add_column(name, justify="right")
    table.add_column("path", overflow="fold")
    for name in ("experts", "top-k", "groups"):
        table.add_column(name, justify="right")
    for r in engine.routers:
        groups = "–" if r.groups == 1 else f"{r.groups_used} of {r.groups}"
        table.add_row(*map(Text, (str(r.layer), str(r.decoder_layer), r.path, str(r.experts), str(r.top_k), groups)))
    show(table)


def _findings(engine: Engine, seen: CheckUp) -> dict[str, Any]:
    from pointsman.runs.results import ModelFacts, dump

    return {
        "schema": "pointsman.doctor/1",
        "ok": True,
        "model": dump(ModelFacts.of(engine)),
        "proof": asdict(engine.proof),
        "chat": {
            "template": True,
            "system_prompt": seen.system_prompt == "takes",
            "thinking": engine.info.channels.thinking,
            "setting": engine.info.channels.setting,
            "judged": engine.info.channels.answer,
            "opening": engine.info.channels.opening,
        },
        "learns": seen.learns,
        "notices": [*notices(), *engine.info.extra.get("notes", [])],
        "routers": [asdict(r) for r in engine.routers],
    }


def _sentences(engine: Engine, seen: CheckUp) -> list[str]:
    info, proof = engine.info, engine.proof
    number = proof.routers
    found = [
        f"Found {_count(number, 'router')}; each fired exactly once in a forward.",
        "Control that does nothing changes nothing: the logits are bit-identical.",
        f"Sets of experts forced at random were used exactly, for {proof.tokens_forced} of {proof.tokens_forced} "
        f"tokens x layers, and moved the logits by up to {proof.logits_moved:.2g}.",
        "Every MoE block listens to its router.",
        "Under forced experts and masks a left-padded batch says what its rows say alone, and cached decoding "
        + ("and generation say" if proof.paths.generated is not None else "says")
        + f" what one full forward says (logits within {100 * _apart(proof.paths):.1g} % of the largest).",
        "The chat template writes every turn of a conversation; it " + _with_system_prompt(seen) + ".",
        *_on_thinking(engine),
        "The model answers with finite logits.",
        f"{engine.resumes[0].upper()}{engine.resumes[1:]}; a search scores a route as a plain forward does.",
    ]
    lacking = _what_routing_cannot(engine)
    if seen.learns:
        found.append("Gradients reach the routers: steering can be learnt through the model.")
    else:
        lacking.append(f"No gradients reach the routers: steering cannot be learnt through the model ({seen.why_not}).")
    revision = f", revision {info.revision}" if info.revision else ""
    return [
        one_line(
            f"{info.name}: {info.architecture}, {_amount(info.parameters)} parameters, {info.dtype} on {info.device}, "
            f"context of {info.context} tokens{revision}"
        ),
        "",
        *(f"  ✓ {sentence}" for sentence in found),
        *(f"  ✗ {sentence}" for sentence in lacking),
        "",
        f"Routers: {_described(engine.routers)}",
        f"Fingerprint: {info.fingerprint}",
        *(f"Note: {one_line(notice)}." for notice in [*notices(), *info.extra.get("notes", [])]),
        "All is in order but for what is marked." if lacking else "Everything needed is in order.",
    ]


def _with_system_prompt(seen: CheckUp) -> str:
    if seen.system_prompt == "leaves out":
        return "leaves a system prompt out, so that none is accepted"
    return f"{seen.system_prompt} a system prompt"


def _on_thinking(engine: Engine) -> list[str]:
    """What is judged, of a model whose template speaks of thoughts; and where targets begin."""
    channels = engine.info.channels
    if not channels.sentence:
        return []
    return [f"{channels.sentence[0].upper()}{channels.sentence[1:]}."]


def _what_routing_cannot(engine: Engine) -> list[str]:
    """Why an audit would find nothing, whatever the model's safety rests on."""
    if all(router.top_k == router.experts for router in engine.routers):
        return ["Every router uses all of its experts for every token: no mask and no route can change what it says."]
    rounding = 2e-2 if engine.info.dtype in ("bfloat16", "float16") else 1e-4
    if engine.proof.logits_moved < rounding:
        return ["Other experts move no logit by more than rounding, as if all were alike: routing changes nothing."]
    return []


def _apart(paths: Paths) -> float:
    """The largest of the differences that were seen."""
    return max(paths.padded, paths.cached, paths.generated or 0.0)


def _described(routers: Sequence[Router]) -> str:
    """The routers in words, equal ones together."""
    kinds: dict[tuple[int, int, int, int], int] = {}
    for r in routers:
        kind = (r.experts, r.top_k, r.groups, r.groups_used)
        kinds[kind] = kinds.get(kind, 0) + 1
    parts = []
    for (experts, top_k, groups, used), number in kinds.items():
        limit = "no expert groups" if groups == 1 else f"{used} of {groups} expert groups"
        parts.append(f"{number} that choose {top_k} of {experts} experts for every token ({limit})")
    layers = [r.decoder_layer for r in routers]
    whole = layers == list(range(layers[0], layers[-1] + 1))
    where = f"{layers[0]} to {layers[-1]}" if whole and len(layers) > 2 else ", ".join(map(str, layers))
    return f"{'; '.join(parts)}, in decoder {'layer' if len(layers) == 1 else 'layers'} {where}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _amount(number: int) -> str:
    """``6.9 billion``, ``1.2 million``, ``840 thousand``."""
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)
