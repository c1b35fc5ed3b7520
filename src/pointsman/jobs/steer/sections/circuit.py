"""The expert circuit: which experts the mask moves, by how much, and whether other seeds find the same."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from pointsman.jobs.steer.results import CircuitEntry, CircuitFacts, CircuitStability, ConditionalLayer, SteerResults
from pointsman.jobs.steer.sections import drawings
from pointsman.jobs.steer.wording import PHASES, mask_name, mask_settings
from pointsman.report import text
from pointsman.report.blocks import (
    Block,
    Cell,
    Chart,
    Column,
    Definitions,
    Details,
    Finding,
    Heading,
    Reading,
    Row,
    Section,
    Table,
    Text,
    Value,
)

SHOWN = 12


def section(results: SteerResults) -> Section:
    """The heat map, its entries, the norms per layer, and the stability."""
    chosen = results.chosen
    mask = [("method", mask_name(chosen)), ("settings", mask_settings(chosen)), ("phase", PHASES[chosen.phase])]
    conditional, constant = results.circuit.conditional, results.circuit.size > 0
    blocks = _conditional(conditional, len(results.circuit.matrix), chosen.alpha) if conditional else []
    blocks += _circuit(results.circuit, chosen.alpha) if constant or not conditional else []
    if results.artefact:
        said = Markup(
            'The mask itself is in <code class="untrusted">{}</code> of the run folder; try it with '
            "<code>pointsman chat MODEL --steering FOLDER</code>."
        )
        blocks.append(Text(said.format(results.artefact)))
    aside = "Which experts the mask moves: what it adds to each router logit, in units of that layer’s own spread σ."
    if conditional and not constant:
        aside = "Which experts the mask moves, and how far: by how much depends on what the router reads at the token."
    return Section("circuit", "The expert circuit", [aside, Definitions(mask, "aside-list")], blocks)


def _circuit(found: CircuitFacts, alpha: float | None) -> list[Block]:
    entries = sorted(found.entries, key=lambda entry: -abs(entry.value))
    rows = [_row(entry, _logits(found, alpha, entry.layer, entry.value)) for entry in entries]
    columns = [*Column.numbers("Layer", "Expert"), Column("Logit"), *Column.numbers("S, σ", "α σ S, logits")]
    finding = _finding(found)

    def title(layer: int, expert: int, value: float) -> str:
        logits = _logits(found, alpha, layer, value)
        added = "" if logits is None else f", {text.signed(logits, 2)} logits at α = {alpha:g}"
        return f"layer {layer}, expert {expert}: {text.signed(value, 2)} σ{added}"

    blocks: list[Block] = [
        Finding(finding),
        Chart(
            drawings.circuit(found.matrix, found.layers, title, label=f"{finding} The table below lists the entries."),
            "Rows are MoE layers from the first on, columns experts; blank cells are left alone (|S| ≤ 0.1 is cut to "
            "zero). At the right the L1 norm of each layer.",
            drawings.circuit_legend(found.matrix),
        ),
    ]
    if rows:
        blocks.append(Table(columns, rows[:SHOWN], "Entries, strongest first.", "compact fit"))
    if weaker := rows[SHOWN:]:
        table = Table(columns, weaker, "The other entries.", "compact fit")
        blocks.append(Details(f"{len(weaker)} weaker entries", [table]))
    return [
        *blocks,
        Heading("Stability"),
        *_stability(found.stability),
        Reading(
            "Few strong cells: the behaviour hangs on few experts, and the mask is easy to inspect.",
            "other seeds find other cells: then many circuits do the same, and this one names no culprit.",
        ),
    ]


def _conditional(found: Sequence[ConditionalLayer], depth: int, alpha: float | None) -> list[Block]:
    """How far every expert can be moved, as a map and layer by layer; `depth` is L."""
    strength = 1.0 if alpha is None else alpha
    by_layer = {one.layer: one for one in found}
    rows = [[strength * norm for norm in by_layer[n].experts] if n in by_layer else [] for n in range(depth)]
    norms = [strength * by_layer[n].norm if n in by_layer else 0.0 for n in range(depth)]
    ranks = sorted({one.rank for one in found})
    finding = (
        f"The mask adds α B A x to the logits of {text.many(len(found), 'router')}, x what the router reads, of rank "
        f"{ranks[0] if len(ranks) == 1 else f'{ranks[0]} to {ranks[-1]}'}: up to "
        f"{text.percent(max(norms, default=0.0))} of the router’s own weight W."
    )

    def title(layer: int, expert: int, value: float) -> str:
        return f"layer {layer}, expert {expert}: {text.percent(value)} of a row of W"

    def row(one: ConditionalLayer) -> Row:
        strongest = sorted(range(len(one.experts)), key=lambda expert: -one.experts[expert])[:3]
        share = text.percent(strength * one.norm)
        return Row([one.layer, one.rank, "yes" if one.threshold else "no", share, ", ".join(map(str, strongest))])

    columns = [*Column.numbers("Layer", "Rank"), Column("Threshold"), *Column.numbers("|α B A| / |W|")]
    table = Table([*columns, Column("Most moved experts")], [row(one) for one in found], "Layers.", "compact fit")
    return [
        Finding(finding),
        Chart(
            drawings.circuit(rows, norms, title, label=f"{finding} The table below lists the layers."),
            "Rows are MoE layers from the first on, columns experts: the norm of its row of α B A, beside the mean row "
            "of W. It can raise an expert at one token and lower it at another. At the right the norm of each layer.",
        ),
        table,
    ]


def _logits(found: CircuitFacts, alpha: float | None, layer: int, value: float) -> float | None:
    """What an entry adds to a router's logit."""
    return alpha * found.sigma[layer] * value if alpha is not None and layer < len(found.sigma) else None


def _row(entry: CircuitEntry, added: float | None) -> Row:
    logit = Cell("raised", classes="up") if entry.value > 0 else Cell("lowered", classes="down")
    cells: list[Value | Cell] = [entry.layer, entry.expert, logit, text.signed(entry.value, 2)]
    return Row([*cells, text.signed(added, 2)])


def _finding(found: CircuitFacts) -> str:
    if not found.size or not found.possible:
        return "The circuit is empty: the mask moves no expert."
    share = text.percent(found.size / found.possible, 1)
    raised, layers = sum(entry.value > 0 for entry in found.entries), len({entry.layer for entry in found.entries})
    return (
        f"The mask moves {text.count(found.size)} of {text.count(found.possible)} ({share}) experts, in "
        f"{text.many(layers, 'layer')}: {raised} raised, {len(found.entries) - raised} lowered."
    )


def _stability(found: CircuitStability | None) -> list[Block]:
    if found is None:
        return [Text("One seed of the method: whether another finds the same circuit was not measured.")]
    said = (
        f"Circuits of {text.many(len(found.seeds), 'seed')} of the method share {text.percent(found.mean)} of their "
        "entries (mean Jaccard overlap of pairs: common entries over all entries of either)."
    )
    columns = [Column("Seed"), *Column.numbers(*map(str, found.seeds))]
    rows = [
        Row([str(seed), *(text.plain(shared, 2) for shared in line)])
        for seed, line in zip(found.seeds, found.jaccard, strict=False)
    ]
    return [Text(said), Table(columns, rows, "Jaccard overlap of circuits.", "compact fit")]
