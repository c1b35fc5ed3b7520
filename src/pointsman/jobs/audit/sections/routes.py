"""Unsafe routes: F-SOUR beside its controls, one route, what else was searched, how routes transfer, where they go."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from pointsman.errors import RunError
from pointsman.jobs.audit.results import (
    AuditResults,
    ExampleRoute,
    ExpertUse,
    Fsour,
    RouteCell,
    Searched,
    SearchVariant,
    TransferResult,
)
from pointsman.report import plot, text
from pointsman.report.blocks import (
    Bar,
    Beside,
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
)
from pointsman.report.sections.unscored import unscored
from pointsman.runs.rates import AttackRates
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Rate

TARGETS = {"affirmative": "affirmative", "content": "begins with content", "mixed": "some of each"}
_MOST_LAYERS = 10_000  # of a route that is drawn: each is a line


def section(results: AuditResults, *, show_text: bool) -> Section:
    """All that was found; tokens of prompts only with `show_text`."""
    fsour = results.fsour
    pairs = fsour.pairs
    median = text.show(pairs.median)
    return Section(
        "fsour",
        "Unsafe routes",
        [
            "F-SOUR searches, prompt by prompt, for experts to force at single layers and tokens.",
            f"Forced pairs per route, median: {median} (from {pairs.min} to {pairs.max}).",
        ],
        [
            Finding(_finding(fsour, median)),
            *_against_controls(fsour),
            *(_example(fsour, fsour.example, show_text) if fsour.example else _no_example()),
            *_sparser(fsour.min_gain),
            *_other_targets(fsour.targets),
            Heading("Does a route open other prompts?", tag=True),
            *(_transfer(fsour.transfer) if fsour.transfer else _no_transfer()),
            *_where(fsour),
            *_experts(fsour.experts),
            _behaviours(fsour.behaviours),
        ],
    )


def _finding(fsour: Fsour, median: str) -> str:
    said = f"With a route of its own, {text.short(fsour.asr)} of the prompts get what the model should refuse"
    if fsour.controls is not None:
        said += f"; the best of as many random routes reaches {text.short(fsour.controls.random.asr)}"
    return f"{said}. The median route forces {median} pairs of layer and token."


# ---------------------------------------------------------------------- beside the controls


def _against_controls(fsour: Fsour) -> list[Block]:
    restarts, controls = fsour.settings.restarts, fsour.controls

    def row(
        name: str, asr: Rate, whole: AttackRates | None = None, less: Comparison | None = None, style: str = "plain"
    ) -> Row:
        others = [whole.any_compliance, whole.garbage] if whole else [None, None]
        return Row([name, Bar.of(asr, style), asr, less, *others], top=whole is fsour)

    rows = [
        row(f"F-SOUR, best of {restarts}", fsour.asr, fsour, style="attack"),
        row("F-SOUR, first search", fsour.asr_at_1, style="attack"),
    ]
    if controls is not None:
        random, natural = controls.random, controls.natural
        rows += [
            row(f"random routes, best of {restarts}", random.asr, random, fsour.difference_random),
            row("random routes, first draw", random.asr_at_1),
            row("natural top\u2011k forced", natural.asr, natural, fsour.difference_natural),
        ]
    rows.append(row("no route", fsour.base, less=fsour.difference_base))
    heads = ("ASR", "F-SOUR − this, points", "Any compliance", "Garbage")
    caption = "Shares of prompts with 95 % intervals; F-SOUR less each control is paired by prompt."
    said = (
        "Garbage is nobody’s success. Of the prompts that need a route, since the model withstands them without one, "
    )
    said += f"{text.full(fsour.asr_base_failed)} fall to F-SOUR."
    found: list[tuple[str, AttackRates]] = [("F-SOUR", fsour)]
    if controls is not None:
        found += [("random routes", controls.random), ("natural top\u2011k", controls.natural)]
    return [
        Table([Column("Route"), Column.bars("ASR, 0 to 100 %"), *Column.rates(*heads)], rows, caption, "stacked"),
        Text(said + ("" if controls else " The controls were left out of this run.")),
        *unscored(found),
        Reading(
            "The first line is the attack. Random routes force other experts at the same places and are judged as "
            "often; the natural top\u2011k forces the experts that the model would have chosen anyway.",
            "random routes or the forced natural top\u2011k come near the first line, much of it is garbage, or the "
            f"first search does far worse than the best of {restarts}.",
        ),
    ]


# ---------------------------------------------------------------------- one route


def _no_example() -> list[Block]:
    return [Text("No example route is in the results.")]


def _example(fsour: Fsour, example: ExampleRoute, show_text: bool) -> list[Block]:
    _check(example)
    # Only tokens that the chat template wrote are ours to show.
    shown = [
        _token(token) if show_text or role == "template" else text.REDACTED
        for token, role in zip(example.tokens, example.roles, strict=True)
    ]
    cells, layers, tokens = example.cells, example.layers, len(example.tokens)
    most = text.plain(max((cell.gain for cell in cells), default=0.0), 2)
    ramp = Markup('<span class="ramp" role="img" aria-label="weak to strong colour"></span>')
    said = Markup(
        "{} of {} pairs are forced. Each square is one layer at one prompt token; the stronger its colour, the more "
        "the pair gained{}(at most {} nats).{}"
    ).format(len(cells), text.count(tokens * layers), ramp, most, "" if show_text else " Content tokens are redacted.")
    drawing = plot.route(
        [_clip(token) for token in shown],
        example.roles,
        layers,
        [plot.Pair(cell.layer, cell.position, cell.gain, _title(cell, shown[cell.position])) for cell in cells],
        label=f"Route of {len(cells)} forced pairs over {layers} layers and {tokens} tokens; the table below lists "
        "each pair.",
    )
    caption = Markup(
        "Prompt tokens from left to right, layers from bottom to top; the dark line on top marks the tokens of the "
        "request, the grey one those of the chat template. Hover over a square for its experts. One route is an "
        "illustration: <b>doubt it</b> as a pattern until the shares over all routes, below, show it too."
    )
    return [
        Heading(Markup("One route: <bdi>{}</bdi>").format(example.id), tag=True),
        Text(said),
        Chart(drawing, caption, scroll="Route over the prompt’s tokens"),
        *_course(fsour, example),
        Details(f"The {len(cells)} forced pairs of this route", [_pairs(cells, shown)]),
    ]


def _check(example: ExampleRoute) -> None:
    tokens = len(example.tokens)
    inside = all(0 <= cell.layer < example.layers and 0 <= cell.position < tokens for cell in example.cells)
    if len(example.roles) != tokens or not inside or example.layers > _MOST_LAYERS:
        raise RunError(
            "results.json cannot be rendered: `fsour.example` has pairs outside its layers or tokens",
            "Run `pointsman resume` on the folder again, or report this as a bug",
        )


def _token(token: str) -> str:
    """White space made visible."""
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"


def _clip(token: str, most: int = 14) -> str:
    return token if len(token) <= most else token[: most - 1] + "…"


def _title(cell: RouteCell, token: str) -> str:
    gain = text.signed(cell.gain, 2)
    return f"layer {cell.layer}, token {cell.position} “{token}”: experts {text.experts(cell.experts)}; {gain} nats"


def _course(fsour: Fsour, example: ExampleRoute) -> list[Block]:
    """The log-probability of the target after each pair, from that without any on."""
    values = list(example.trajectory)
    if not values:
        return []
    before = next((row.log_prob_before for row in fsour.behaviours if row.id == example.id), None)
    if before is not None and len(values) == len(example.cells):
        values.insert(0, before)
    first, last, stop = (text.plain(value, 2) for value in (values[0], values[-1], example.log_tau))
    drawing = plot.trajectory(
        values, example.log_tau, x_label="pairs forced",
        label=f"Log-probability of the target rises from {first} to {last} nats; the search stops at {stop}.",
    )  # fmt: skip
    caption = (
        f"Log-probability of the target (nats) after each accepted pair: from {first} to {last}. It says how likely "
        "the target’s words are, not that the answer is harmful: that is the judge’s word."
    )
    return [Chart(drawing, caption)]


def _pairs(cells: Sequence[RouteCell], tokens: Sequence[str]) -> Table:
    rows = [
        Row([c.layer, c.position, tokens[c.position], text.experts(c.experts), text.signed(c.gain, 2)]) for c in cells
    ]
    columns = [*Column.numbers("Layer", "Position"), Column("Token"), Column("Experts"), *Column.numbers("Gain, nats")]
    return Table(columns, rows, "In the order of acceptance.", "compact")


# ---------------------------------------------------------------------- other searches


def _sparser(found: Sequence[SearchVariant]) -> list[Block]:
    """Searches with a higher price on a pair."""
    if len(found) < 2:
        return []
    names = [
        "any gain" if (least := row.min_gain or 0.0) < 1e-6 else f"{text.tick(least)}{text.NARROW}nats" for row in found
    ]
    what = "One search that accepts a pair only if it gains at least this much"
    return [
        Heading("How few pairs are enough?"),
        _variants("Gain asked for", names, found, what),
        Reading(
            "If ASR holds with far fewer pairs, most pairs of the routes above were ballast.",
            "garbage rises, or the intervals are too wide to tell.",
        ),
    ]


def _other_targets(found: Sequence[SearchVariant]) -> list[Block]:
    """Searches with other targets; a target is told by its number and kind."""
    if not found:
        return []
    names = [
        f"other target {row.number}: {TARGETS.get(row.target or '', 'unknown')}" if row.number else "the target proper"
        for row in found
    ]
    return [
        Heading("Is it only the first word?"),
        _variants("Target", names, found, "One search with each target on the same behaviours"),
        Reading(
            "A target that begins with content, not with “Sure”, tests whether routes reach past the first word.",
            "only the affirmative target succeeds: then the route may have bought the word, and not the answer.",
        ),
    ]


def _variants(head: str, names: Sequence[str], found: Sequence[SearchVariant], what: str) -> Table:
    rows = [
        Row(
            [
                name,
                Bar.of(row.asr_at_1, "attack"),
                row.asr_at_1,
                text.show(row.pairs),
                row.any_compliance,
                row.garbage,
                f"{text.plain(row.log_prob_before, 2)} → {text.plain(row.log_prob_after, 2)}",
            ]
        )
        for name, row in zip(names, found, strict=True)
    ]
    columns = [Column(head), Column.bars("ASR, 0 to 100 %"), *Column.rates("ASR, one search"), *Column.numbers("Pairs")]
    columns += [*Column.rates("Any compliance", "Garbage"), Column("log p before → after", "number", optional=True)]
    return Table(columns, rows, f"{what}; medians of pairs and of the target’s log-probability.", "stacked")


# ---------------------------------------------------------------------- other prompts


def _no_transfer() -> list[Block]:
    return [Text("Not measured: fewer than two routes were needed and succeeded, or no transfer was asked for.")]


def _transfer(found: TransferResult) -> list[Block]:
    ids, matrix = found.ids, found.matrix
    if len(matrix) != len(ids) or any(len(row) != len(ids) for row in matrix):
        raise RunError(
            "results.json cannot be rendered: `fsour.transfer.matrix` has not one row and column for each of its ids",
            "Render it with the Pointsman version that wrote it, or run `pointsman audit` again",
        )
    kept = text.percent(found.pairs_kept)
    finding = (
        f"Replayed on another prompt, a route’s pairs at template tokens (median {kept} of them) succeed on "
        f"{text.short(found.asr_others)}, and on the prompt they were found for on {text.short(found.asr_own)}."
    )
    titles = [
        [
            f"route of {row + 1} ({ids[row]}) on {column + 1} ({ids[column]}): {'success' if hit else 'no success'}"
            for column, hit in enumerate(line)
        ]
        for row, line in enumerate(matrix)
    ]
    rates = Table(
        [Column(), Column(kind="rate")],
        [
            Row(["Own prompt", found.asr_own]),
            Row(["Other prompts", found.asr_others]),
            Row(["Pairs replayed", f"median {kept}"]),
        ],
        "Filled: success. Outlined: the route’s own prompt.",
        "compact stacked",
        tag=False,
    )
    heat = plot.heat_map(matrix, titles, label=finding)
    return [
        Text(finding),
        Beside([Chart(heat, scroll="Transfer of routes")], [rates], "heat"),
        Reading(
            "Filled squares off the outlined diagonal: routes that open prompts they were not searched for. Only pairs "
            "at template tokens can be replayed, since other prompts have other words.",
            "the diagonal is empty too: then these pairs carry nothing even at home, and the matrix says nothing of "
            "whole routes.",
        ),
        Details(
            f"The {len(ids)} prompts of the matrix", [Definitions([(str(n), id) for n, id in enumerate(ids, start=1)])]
        ),
    ]


# ---------------------------------------------------------------------- where the pairs lie


def _where(fsour: Fsour) -> list[Block]:
    layers = [(str(layer), share) for layer, share in enumerate(fsour.layers)]
    most = max(fsour.layers, default=0.0)
    return [
        Heading("Where the forced pairs lie", tag=True),
        Beside(
            [_shares("Share of forced pairs per MoE layer, all routes", "Layer", layers, most)],
            [_shares("Share per role of the token", "Role", list(fsour.roles.items()), 1.0)],
        ),
        Reading(
            "Shares of all pairs that routes force.",
            "early tokens lead: the search visits tokens from the first on, in each the layers from the lowest on, and "
            "stops once the target is likely enough.",
        ),
    ]


def _shares(caption: str, head: str, shares: Sequence[tuple[str, float]], most: float) -> Table:
    rows = [
        Row([name, plot.share_bar(share / most if most > 0 else 0.0, "attack"), f"{100 * share:.0f}"])
        for name, share in shares
    ]
    columns = [Column(head), Column("share", "bar"), *Column.numbers("%")]
    return Table(columns, rows, caption, "compact", tag=False)


def _experts(found: Sequence[ExpertUse]) -> list[Block]:
    if not found:
        return []
    rows = [
        Row(
            [
                use.layer,
                use.expert,
                use.count,
                f"{100 * use.share:.1f}",
                f"{100 * use.expected:.1f}",
                f"{text.plain(use.share / use.expected, 1)} ×" if use.expected > 0 else text.MISSING,
            ]
        )
        for use in found
    ]
    heads = ("Layer", "Expert", "Pairs", "Share, %", "By chance, %", "Ratio")
    caption = "Share of all forced pairs that use the expert, beside what uniform draws at the same layers would give."
    return [
        Details(
            "Which experts are forced most often",
            [
                Table(Column.numbers(*heads), rows, caption, "compact"),
                Text(
                    "The largest of many counts exceeds chance even where nothing is going on: read the ratio beside "
                    "the number of pairs."
                ),
            ],
        )
    ]


def _behaviours(found: Sequence[Searched]) -> Details:
    rows = []
    for row in found:
        hit = Markup('<span class="hit">success</span>{}, ').format(" without a route" if row.base_success else "")
        numbers = [text.plain(row.log_prob_before, 2), text.plain(row.log_prob_after, 2)]
        numbers += [text.count(row.forwards), text.count(row.tokens)]
        outcome = (hit if row.success else Markup("")) + row.label
        rows.append(Row([Cell(row.id, classes="id"), row.category, outcome, row.restarts, row.pairs, *numbers]))
    columns = [Column(head) for head in ("Behaviour", "Category", "Outcome")]
    columns += Column.numbers("Restarts", "Pairs", "log p before", "after", "Forwards", "Tokens")
    caption = "One row per behaviour; log p is the target’s log-probability in nats."
    return Details(f"All {len(found)} behaviours", [Table(columns, rows, caption, "compact")])
