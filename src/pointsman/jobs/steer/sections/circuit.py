"""The expert circuit: which experts the mask moves, by how much, and whether other seeds find the same."""

from __future__ import annotations

from markupsafe import Markup

from pointsman.jobs.steer.results import CircuitEntry, CircuitFacts, CircuitStability, SteerResults
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
    conditional = chosen.method == "conditional"
    blocks = _changed(results.circuit, chosen.alpha or 1.0) if conditional else _circuit(results.circuit, chosen.alpha)
    if results.artefact:
        said = Markup(
            'The mask itself is in <code class="untrusted">{}</code> of the run folder; try it with '
            "<code>pointsman chat MODEL --steering FOLDER</code>."
        )
        blocks.append(Text(said.format(results.artefact)))
    aside = "Which experts the mask moves: what it adds to each router logit, in units of that layer’s own spread σ."
    if conditional:
        aside = "Which experts the mask can move: by how much it changes what each router reads for them."
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


def _changed(found: CircuitFacts, alpha: float) -> list[Block]:
    """Of a conditional mask: how much of every expert's own weight it changes, and which layers carry it."""
    entries = sorted(found.entries, key=lambda entry: -entry.value)
    rows = [Row([entry.layer, entry.expert, text.percent(alpha * entry.value, 1)]) for entry in entries[:SHOWN]]
    heaviest = max(range(len(found.layers)), key=lambda layer: found.layers[layer], default=0)
    share = found.layers[heaviest] / total if (total := sum(found.layers)) else 0.0
    finding = (
        f"Layer {heaviest} carries most, {text.percent(share)} of all that is changed; the most changed expert has "
        f"{text.percent(alpha * max((e.value for e in entries), default=0.0))} of its own weight added."
    )

    def title(layer: int, expert: int, value: float) -> str:
        return f"layer {layer}, expert {expert}: {text.percent(alpha * value, 1)} of its own weight"

    columns = Column.numbers("Layer", "Expert", "α |B A| / |W|")
    return [
        Finding(finding),
        Chart(
            drawings.circuit(found.matrix, found.layers, title, label=f"{finding} The table below lists the largest."),
            "Rows are MoE layers from the first on, columns experts: the norm of what is added to a router’s weight "
            "for an expert, over the mean norm of such weights. At the right the sum of each layer.",
        ),
        Table(columns, rows, "The experts that are changed most.", "compact fit"),
        Reading(
            "What is changed says which experts may move; when they do depends on the token.",
            "all layers are changed alike: then no few routers carry the behaviour.",
        ),
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
