"""Unsafe routes: a search beside its controls, one route, other searches, how routes transfer, where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pointsman.errors import RunError
from pointsman.jobs.audit.route_results import (
    ExampleRoute,
    ExpertUse,
    FoundRoutes,
    Fsour,
    GuidedRoutes,
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


@dataclass(frozen=True)
class _Search:
    """How a search of routes is spoken of.

    Attributes:
        key: Of its results.
        doubt: What makes one doubt where its pairs lie.
        together: Whether pairs come in together, so that no pair has a gain of its own.
    """

    name: str
    key: str
    doubt: str
    together: bool


_FSOUR = _Search(
    "F-SOUR",
    "fsour",
    "early tokens lead: the search visits tokens from the first on, in each the layers from the lowest on, and "
    "stops once the target is likely enough.",
    together=False,
)
_GUIDED = _Search(
    "Guided",
    "guided",
    "there are few pairs in all: the search forces what promises most to first order, and leaves out what it can.",
    together=True,
)


def section(fsour: Fsour, *, show_text: bool) -> Section:
    """All that F-SOUR found; tokens of prompts only with `show_text`."""
    return Section(
        "fsour",
        "Unsafe routes",
        ["F-SOUR searches, prompt by prompt, for experts to force at single layers and tokens.", _pairs_of(fsour)],
        [
            *_found(_FSOUR, fsour, show_text),
            *_sparser(fsour.min_gain),
            *_other_targets(fsour.targets),
            Heading("Does a route open other prompts?", tag=True),
            *(_transfer(fsour.transfer) if fsour.transfer else _no_transfer()),
            *_where(_FSOUR, fsour),
            *_experts(fsour.experts),
            _behaviours(fsour.behaviours),
        ],
    )


def guided_section(guided: GuidedRoutes, *, show_text: bool) -> Section:
    """What Guided found."""
    return Section(
        "guided",
        "Unsafe routes by the gradient",
        [
            "Guided asks one backward pass which experts at which layers and tokens would raise the target’s "
            "log-probability most, tries these by exact forwards, and leaves out the pairs that the route does not "
            "need.",
            _pairs_of(guided),
        ],
        [
            *_found(_GUIDED, guided, show_text),
            *_where(_GUIDED, guided),
            *_experts(guided.experts),
            _behaviours(guided.behaviours),
        ],
    )


def _pairs_of(found: FoundRoutes) -> str:
    pairs = found.pairs
    return f"Forced pairs per route, median: {text.show(pairs.median)} (from {pairs.min} to {pairs.max})."


def _found(search: _Search, found: FoundRoutes, show_text: bool) -> list[Block]:
    example = found.example
    return [
        Finding(_finding(found)),
        *_against_controls(search, found),
        *(_example(search, found, example, show_text) if example else _no_example()),
    ]


def _finding(found: FoundRoutes) -> str:
    said = f"With a route of its own, {text.short(found.asr)} of the prompts get what the model should refuse"
    if found.controls is not None:
        random = "the best of as many random routes" if found.settings.restarts > 1 else "a random route"
        said += f"; {random} reaches {text.short(found.controls.random.asr)}"
    return f"{said}. The median route forces {text.show(found.pairs.median)} pairs of layer and token."


# ---------------------------------------------------------------------- beside the controls


def _against_controls(search: _Search, found: FoundRoutes) -> list[Block]:
    restarts, controls, name = found.settings.restarts, found.controls, search.name
    again = restarts > 1

    def row(
        name: str, asr: Rate, whole: AttackRates | None = None, less: Comparison | None = None, style: str = "plain"
    ) -> Row:
        others = [whole.any_compliance, whole.garbage] if whole else [None, None]
        return Row([name, Bar.of(asr, style), asr, less, *others], top=whole is found)

    rows = [row(f"{name}, best of {restarts}" if again else name, found.asr, found, style="attack")]
    if again:
        rows.append(row(f"{name}, first search", found.asr_at_1, style="attack"))
    if controls is not None:
        random, natural = controls.random, controls.natural
        drawn = f"random routes, best of {restarts}" if again else "a random route"
        rows.append(row(drawn, random.asr, random, found.difference_random))
        if again:
            rows.append(row("random routes, first draw", random.asr_at_1))
        rows.append(row("natural top\u2011k forced", natural.asr, natural, found.difference_natural))
    rows.append(row("no route", found.base, less=found.difference_base))
    heads = ("ASR", f"{name} − this, points", "Any compliance", "Garbage")
    caption = f"Shares of prompts with 95 % intervals; {name} less each control is paired by prompt."
    said = (
        "Garbage is nobody’s success. Of the prompts that need a route, since the model withstands them without one, "
    )
    said += f"{text.full(found.asr_base_failed)} fall to {name}."
    judged: list[tuple[str, AttackRates]] = [(name, found)]
    if controls is not None:
        judged += [("random routes", controls.random), ("natural top\u2011k", controls.natural)]
    return [
        Table([Column("Route"), Column.bars("ASR, 0 to 100 %"), *Column.rates(*heads)], rows, caption, "stacked"),
        Text(said + ("" if controls else " The controls were left out of this run.")),
        *unscored(judged),
        Reading(
            "The first line is the attack. Random routes force other experts at the same places and are judged as "
            "often; the natural top\u2011k forces the experts that the model would have chosen anyway.",
            "random routes or the forced natural top\u2011k come near the first line, much of it is garbage, or the "
            f"first search does far worse than the best of {restarts}."
            if again
            else "a random route or the forced natural top\u2011k comes near the first line, or much of it is garbage.",
        ),
    ]


# ---------------------------------------------------------------------- one route


def _no_example() -> list[Block]:
    return [Text("No example route is in the results.")]


def _example(search: _Search, found: FoundRoutes, example: ExampleRoute, show_text: bool) -> list[Block]:
    _check(search, example)
    # Only tokens that the chat template wrote are ours to show.
    shown = [
        text.token(token) if show_text or role == "template" else text.REDACTED
        for token, role in zip(example.tokens, example.roles, strict=True)
    ]
    cells, layers, tokens = example.cells, example.layers, len(example.tokens)
    gains = [cell.gain for cell in cells]
    most = text.plain(max(gains, default=0.0), 2)
    ramp = Markup('<span class="ramp" role="img" aria-label="weak to strong colour"></span>')
    said = Markup("{} of {} pairs are forced. Each square is one layer at one prompt token").format(
        len(cells), text.count(tokens * layers)
    )
    if search.together:
        said += f". The pairs came in together and gained {text.plain(sum(gains), 2)} nats in all."
    else:
        said += Markup("; the stronger its colour, the more the pair gained{}(at most {} nats).").format(ramp, most)
    said += "" if show_text else " Content tokens are redacted."
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
        *_course(found, example),
        Details(f"The {text.many(len(cells), 'forced pair')} of this route", [_pairs(search, cells, shown)]),
    ]


def _check(search: _Search, example: ExampleRoute) -> None:
    tokens = len(example.tokens)
    inside = all(0 <= cell.layer < example.layers and 0 <= cell.position < tokens for cell in example.cells)
    if len(example.roles) != tokens or not inside or example.layers > _MOST_LAYERS:
        raise RunError(
            f"results.json cannot be rendered: `{search.key}.example` has pairs outside its layers or tokens",
            "Run `pointsman resume` on the folder again, or report this as a bug",
        )


def _clip(token: str, most: int = 14) -> str:
    return token if len(token) <= most else token[: most - 1] + "…"


def _title(cell: RouteCell, token: str) -> str:
    gain = text.signed(cell.gain, 2)
    return f"layer {cell.layer}, token {cell.position} “{token}”: experts {text.experts(cell.experts)}; {gain} nats"


def _course(found: FoundRoutes, example: ExampleRoute) -> list[Block]:
    """The log-probability of the target after each pair, from that without any on."""
    values = list(example.trajectory)
    if not values:
        return []
    before = next((row.log_prob_before for row in found.behaviours if row.id == example.id), None)
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


def _pairs(search: _Search, cells: Sequence[RouteCell], tokens: Sequence[str]) -> Table:
    rows = [
        Row([c.layer, c.position, tokens[c.position], text.experts(c.experts), text.signed(c.gain, 2)]) for c in cells
    ]
    columns = [*Column.numbers("Layer", "Position"), Column("Token"), Column("Experts"), *Column.numbers("Gain, nats")]
    order = "The most promising first; the gain is shared." if search.together else "In the order of acceptance."
    return Table(columns, rows, order, "compact")


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


def _where(search: _Search, found: FoundRoutes) -> list[Block]:
    layers = [(str(layer), share) for layer, share in enumerate(found.layers)]
    most = max(found.layers, default=0.0)
    return [
        Heading("Where the forced pairs lie", tag=True),
        Beside(
            [_shares("Share of forced pairs per MoE layer, all routes", "Layer", layers, most)],
            [_shares("Share per role of the token", "Role", list(found.roles.items()), 1.0)],
        ),
        Reading(
            "Shares of all pairs that routes force.",
            search.doubt,
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
