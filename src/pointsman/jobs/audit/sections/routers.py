"""Which routers matter: their scores, p-values, target score and placebo beside them, and how stable the ranking is."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from pointsman.jobs.audit.ranks import meaning, meaningful
from pointsman.jobs.audit.results import (
    AuditResults,
    PlaceboSettings,
    Rise,
    RosaisSettings,
    RouterScore,
    ScreenAgreement,
)
from pointsman.report import plot, text
from pointsman.report.blocks import Bar, Block, Cell, Column, Details, Finding, Reading, Row, Section, Table, Text
from pointsman.runs.results import SIGNIFICANT

DENSE = 16
"""With more routers, rows stand closer."""


def section(results: AuditResults) -> Section:
    """Routers in depth order; those that the largest masking attack used are marked."""
    best, settings = results.top_router, results.rosais_settings
    about = f"{'RoSais' if settings.screen is None else 'Screen'} per router, in depth order, with 95 % whiskers."
    if best is None:
        said = Finding("Not measured: no RoSais scores are in the results.")
        return Section("rosais", "Which routers matter", [about], [said])
    rows = sorted(results.rosais, key=lambda row: row.layer)
    attack = results.most_masked()
    marked = attack.routers if attack else min(3, len(rows))
    shown = [rise for row in rows for rise in (row, row.placebo) if rise is not None]
    x = plot.Scale.of_bars(v for rise in shown for v in (rise.mean, rise.low, rise.high) if v is not None)
    digits = 3 if max(abs(x.start), abs(x.end)) < 1 else 2
    coloured = "the router" if marked == 1 else f"the {marked} routers"
    return Section(
        "rosais",
        "Which routers matter",
        [
            about,
            f"Ranked on {settings.prompts} discovery prompts; the rates below are from the test prompts. In colour: "
            f"{coloured} of highest rank.",
        ],
        [
            Finding(_finding(best, settings, digits)),
            _scores(rows, settings, x, digits, marked),
            *_about_p(rows, settings),
            *_about_ranks(rows),
            Reading(
                f"A long bar: {_AT_ONE[settings.screen is None]}; whiskers are 95 % intervals over prompts.",
                f"p is 0.05 or more, {_reaching(rows)}the whole target ranks the routers otherwise, or other prompts "
                "do (below).",
            ),
            _stability(settings, best.layer),
            *([Text(f"No placebo: {why}.")] if (why := settings.placebo.why_not) else []),
            *_beside(rows, settings.placebo, digits, marked),
        ],
    )


_AT_ONE = {
    True: "some set of experts at this one router makes the model begin to comply",
    False: "by an estimate to first order, other experts at this one router make the model begin to comply",
}
"""What a score says, of RoSais and of the screen."""


def _finding(best: RouterScore, settings: RosaisSettings, digits: int) -> str:
    under = f"under the best of {settings.samples} random masks on it alone, the score rises by"
    if settings.screen is not None:
        under = "with the best experts for every token at it alone, the score would rise, to first order, by"
    said = f"Router {best.layer} matters most: {under} {_mean(best, digits)} on average"
    if best.p is not None:
        luck = "" if best.p < SIGNIFICANT else ": that may be chance"
        said += f" (p{text.NARROW}{text.p_value(best.p, equals=True)}{luck})"
    if _measured(best.placebo):
        said += f"; on benign prompts as many masks raise the refusal by {_mean(best.placebo, digits)}"
    return f"{said}."


def _measured(rise: Rise | None) -> bool:
    return rise is not None and rise.mean is not None


def _reaching(rows: Sequence[RouterScore]) -> str:
    return "the placebo reaches as far as the bar, " if any(_measured(row.placebo) for row in rows) else ""


def _mean(rise: Rise | None, digits: int) -> str:
    return text.MISSING if rise is None else text.mean(rise.mean, rise.low, rise.high, digits)


def _cell(rise: Rise | None, digits: int) -> Cell:
    if rise is None:
        return Cell(text.MISSING)
    return Cell(text.plain(rise.mean, digits), beside=text.mean_interval(rise.low, rise.high, digits))


def _scores(rows: Sequence[RouterScore], settings: RosaisSettings, x: plot.Scale, digits: int, marked: int) -> Table:
    decoder = any(row.layer != row.decoder_layer for row in rows)
    tested, targets = any(row.p is not None for row in rows), any(row.target for row in rows)
    columns = [Column("MoE layer" if decoder else "Layer", "number")]
    columns += [Column("Decoder layer", "number", optional=True)] * decoder
    columns += [Column(plot.ruler(x), "bar"), *Column.numbers("Mean [95 %]", "Rank")]
    judged = any(meaning(row).verdict != "not tested" for row in rows)
    columns += (
        Column.numbers("p") * tested
        + [Column("What the rank means")] * judged
        + [Column("Rank by target", "number", optional=True)] * targets
    )
    table = []
    for row in rows:
        star = "*" if row.p is not None and row.p < SIGNIFICANT else ""
        p = Markup('{}<span class="star">{}</span>').format(text.p_value(row.p), star)
        table.append(
            Row(
                [
                    Cell(row.layer, title=row.router),
                    *[row.decoder_layer] * decoder,
                    _bar(row, x, digits, marked),
                    _cell(row, digits),
                    row.rank,
                    *[p] * tested,
                    *[_meaning(row)] * judged,
                    *[row.target.rank if row.target else text.MISSING] * targets,
                ],
                top=row.rank <= marked,
            )
        )
    return Table(columns, table, _caption(rows, settings), f"narrow wide{' compact' * (len(rows) > DENSE)}", tag=False)


def _meaning(row: RouterScore) -> Cell:
    """Whether the rank means something, and why it does not."""
    found = meaning(row)
    muted = "" if found.verdict == "means something" else " muted"
    return Cell(found.verdict, beneath=found.because, classes=f"meaning{muted}")


def _bar(row: RouterScore, x: plot.Scale, digits: int, marked: int) -> Markup:
    label, beside = f"layer {row.layer}: {_mean(row, digits)}, rank {row.rank}", None
    if row.placebo is not None and row.placebo.mean is not None:
        label += f", placebo {text.plain(row.placebo.mean, digits)}"
        beside = (row.placebo.mean, f"placebo {_mean(row.placebo, digits)}")
    mean = row.mean or 0.0
    low, high = (mean if edge is None else edge for edge in (row.low, row.high))
    bar = Bar(mean, low, high, "top" if row.rank <= marked else "plain", x.start, x.end)
    return plot.ruled_bar(bar, x, label=label, title=row.router, beside=beside)


def _caption(rows: Sequence[RouterScore], settings: RosaisSettings) -> Markup:
    unit = "probability" if settings.scale == "probability" else "log-probability, in nats,"
    of = " that the answer begins affirmatively" if settings.score == "first_token" else " of the whole target"
    how = f"best of {settings.samples} random masks"
    if settings.screen is not None:
        how = "estimated by one backward pass a prompt, each token its best set of experts"
    name = "RoSais" if settings.screen is None else "Screen"
    said = Markup(f"{name}: rise of the {unit}{of}, {how}, mean over prompts.")
    if not any(_measured(row.placebo) for row in rows):
        return said
    key = plot.element("svg", plot.element("path", class_="placebo", d="M6 1L11 6L6 11L1 6Z"), width=12, height=12,
                       aria_hidden="true", focusable="false")  # fmt: skip
    prompts = settings.placebo.prompts
    told = f"placebo: rise of the refusal on {prompts} benign prompts, same scale"
    return said + Markup(' <span class="key">{} {}</span>').format(key, told)


def _about_p(rows: Sequence[RouterScore], settings: RosaisSettings) -> list[Block]:
    if all(row.p is None for row in rows):
        return []
    return [
        Text(
            f"* p < 0.05: the labels of the routers permuted within prompts {settings.permutations} times, against the "
            "largest mean (family-wise). One strong router makes the p-values of the others too large, never too small."
        )
    ]


def _about_ranks(rows: Sequence[RouterScore]) -> list[Block]:
    """How many ranks mean something, and what a rank must pass."""
    found = [meaning(row) for row in rows]
    if all(each.verdict == "not tested" for each in found):
        return []
    real = meaningful(rows)
    which = f" ({', '.join(str(row.layer) for row in real)})" if real else ""
    untested = sum(each.verdict == "not tested" for each in found)
    alike = sum(each.above_others is False for each in found)
    benign = sum(each.above_placebo is False for each in found)
    return [
        Text(
            f"{len(real)} of {text.many(len(rows), 'rank')} mean something{which}: the router stands above the others "
            "(p < 0.05), and the interval of its rise less its placebo lies above zero (on benign prompts it does not "
            f"do the same to the refusal). {alike} are not above the other routers, and {benign} not surely above "
            "benign prompts: in which order these stand says nothing."
            + (f" {untested} passed the only test that was made." if untested else "")
        )
    ]


def _stability(settings: RosaisSettings, best: int) -> Table:
    """Every measure that is there, with what it means."""
    found: list[tuple[str, str, str]] = []
    stability = settings.stability
    if (halves := stability.split_half) is not None:
        found.append(
            (
                "Split-half Spearman ρ",
                text.mean(halves.mean, halves.low, halves.high),
                f"two halves of the prompts rank the routers alike (mean and 95 % range of {halves.halves} splits)",
            )
        )
    if stability.kendall_w is not None:
        chance = text.plain(1 / max(settings.prompts, 1), 2)
        means = f"single prompts rank the routers alike (1: all do; {chance}: as if at random)"
        found.append(("Kendall’s W", text.plain(stability.kendall_w, 2), means))
    place = "first" if stability.top_n == 1 else f"among the first {stability.top_n}"
    often = f"{text.percent(stability.top.get(str(best), 0.0))} of halves"
    found.append((f"Router {best} {place}", often, "how often half of the prompts puts the top router there"))
    if settings.agreement is not None:
        means = "Spearman ρ between the first-token score and that of the whole target"
        found.append(("Agreement of the two scores", text.plain(settings.agreement, 2), means))
    found += _beside_rosais(settings.screen) if settings.screen is not None else []
    rows = [
        Row([name, Markup("<b>{}</b>").format(value), Cell(means, classes="muted")]) for name, value, means in found
    ]
    caption = "Is the ranking one of the model, or of these prompts? Near 1 of the model, near 0 of the prompts."
    return Table([Column(), Column(kind="number"), Column()], rows, caption, "compact")


def _beside_rosais(screen: ScreenAgreement) -> list[tuple[str, str, str]]:
    """How far the screen agrees with what it stands for."""
    on = f"on {text.many(screen.prompts, 'prompt')} on which RoSais was measured too ({screen.samples} masks)"
    return [
        ("Spearman ρ with RoSais", _spearman(screen), f"rank correlation of screen and RoSais {on}"),
        ("Kendall τ with RoSais", text.plain(screen.kendall, 2), "the same, by pairs of routers"),
        (
            "Top routers shared with RoSais",
            f"{screen.same_top} of {screen.top_n}",
            "how many of those that are masked RoSais would mask, by these prompts",
        ),
    ]


def _spearman(screen: ScreenAgreement) -> str:
    """With its interval over prompts, where there is one."""
    said = text.plain(screen.spearman, 2)
    if screen.low is None or screen.high is None:
        return said
    return f"{said} [{text.plain(screen.low, 2)}, {text.plain(screen.high, 2)}]"


def _beside(rows: Sequence[RouterScore], placebo: PlaceboSettings, digits: int, marked: int) -> list[Block]:
    """Target score and placebo, where there are any. Not the tokens of the refusal: they are words of the model."""
    drawn = any(_measured(row.placebo) for row in rows)
    if not drawn and not any(row.target for row in rows):
        return []
    caption = (
        "Means over prompts with 95 % intervals. Target: rise of the log-probability of the whole target, in nats."
    )
    if drawn:
        refused, base = text.show(placebo.refused), text.plain(placebo.base, 3)
        caption += f" Placebo: rise of the refusal’s first token ({len(placebo.tokens)} of them, from {refused} "
        caption += f"refusals; {base} without a mask)."
    heads = ("Layer", "First token", "Rank", "p", "Whole target", "Rank", "p", "Placebo")
    table = [
        Row(
            [
                Cell(row.layer, title=row.router),
                _cell(row, digits),
                row.rank,
                text.p_value(row.p),
                _cell(row.target, 2),
                row.target.rank if row.target else text.MISSING,
                text.p_value(row.target.p if row.target else None),
                _cell(row.placebo, digits),
            ],
            top=row.rank <= marked,
        )
        for row in rows
    ]
    shown = Table(Column.numbers(*heads), table, caption, "compact")
    return [Details("Target score and placebo, router by router", [shown])]
