"""Which routers matter: RoSais, its p-values, the target score and the placebo beside it, and how stable it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pointsman.report.geometry import Bar, Scale, bar, bar_scale, ticks
from pointsman.report.masks import strongest
from pointsman.report.values import MISSING, NARROW, Node, p_value, plain

SIGNIFICANT = 0.05
"""Family-wise: below it a router is marked."""


@dataclass(frozen=True)
class RouterRow:
    """One router. `placebo_bar` is on the scale of `bar`."""

    layer: int
    decoder_layer: int
    router: str
    rank: int
    mean: str
    interval: str
    p: str
    significant: bool
    top: bool
    bar: Bar
    target: str
    target_interval: str
    target_rank: str
    target_p: str
    placebo: str
    placebo_interval: str
    placebo_bar: Bar | None


def rosais_section(results: Node) -> dict[str, Any] | None:
    """Rows in depth order; the routers that the largest masking attack used are marked."""
    if results.get("rosais") is None or not results["rosais"].rows():
        return None
    rows = sorted(results["rosais"].rows(), key=lambda row: row["layer"].integer())
    settings = results["rosais_settings"]
    attack = strongest(results)
    marked = attack["routers"].integer() if attack else min(3, len(rows))
    probability = settings["scale"].text() == "probability"
    whole = settings["score"].text() != "first_token"
    scale = bar_scale([value for row in rows for value in _extent(row)])
    digits = 3 if max(abs(scale.start), abs(scale.end)) < 1 else 2
    table = [_row(row, scale, digits, marked) for row in rows]
    best = min(table, key=lambda row: row.rank)
    samples = settings["samples"].text()
    return {
        "rows": table,
        "zero": scale(0.0),
        "ticks": [(tick.at, plain(tick.value, 1 if scale.end - scale.start < 4 else 0)) for tick in ticks(scale, 5)],
        "unit": ("rise of the probability" if probability else "rise of the log-probability, in nats,")
        + (" of the whole target" if whole else " that the answer begins affirmatively"),
        "decoder": any(row.layer != row.decoder_layer for row in table),
        "p_values": any(row.p != MISSING for row in table),
        "significant": sum(row.significant for row in table),
        "target": any(row.target != MISSING for row in table),
        "placebo": _placebo(settings["placebo"], table),
        "marked": marked,
        "prompts": settings["prompts"].text(),
        "samples": samples,
        "permutations": settings["permutations"].text(),
        "stability": _stability(settings, best.layer),
        "finding": _finding(best, samples),
    }


def _extent(row: Node) -> list[float]:
    shown = [row, *([placebo] if (placebo := row.get("placebo")) else [])]
    return [value for node in shown for key in ("mean", "low", "high") if (value := node[key].maybe()) is not None]


def _row(row: Node, scale: Scale, digits: int, marked: int) -> RouterRow:
    number, rank = row["p"].maybe(), row["rank"].integer()
    mean, low, high = row["mean"].number(), row["low"].maybe(), row["high"].maybe()
    target, placebo = row.get("target"), row.get("placebo")
    rise = placebo["mean"].maybe() if placebo else None
    return RouterRow(
        layer=row["layer"].integer(),
        decoder_layer=row["decoder_layer"].integer(),
        router=row["router"].text(),
        rank=rank,
        mean=plain(mean, digits),
        interval=_interval(row, digits),
        p=p_value(number),
        significant=number is not None and number < SIGNIFICANT,
        top=rank <= marked,
        bar=bar(scale, mean, mean if low is None else low, mean if high is None else high),
        target=plain(target["mean"].maybe(), 2) if target else MISSING,
        target_interval=_interval(target, 2) if target else "",
        target_rank=target["rank"].text() if target else MISSING,
        target_p=p_value(target["p"].maybe()) if target else MISSING,
        placebo=plain(rise, digits),
        placebo_interval=_interval(placebo, digits) if placebo else "",
        placebo_bar=_bar(scale, rise, placebo) if placebo and rise is not None else None,
    )


def _bar(scale: Scale, value: float, row: Node) -> Bar:
    low, high = (value if (edge := row[key].maybe()) is None else edge for key in ("low", "high"))
    return bar(scale, value, low, high)


def _interval(row: Node, digits: int) -> str:
    low, high = (row[key].maybe() for key in ("low", "high"))
    return "[no interval]" if low is None or high is None else f"[{plain(low, digits)}, {plain(high, digits)}]"


def _finding(best: RouterRow, samples: str) -> str:
    said = (
        f"Router {best.layer} matters most: under the best of {samples} random masks on it alone, the score rises by "
        f"{best.mean} {best.interval} on average"
    )
    if best.p != MISSING:
        chance = f"p{NARROW}{best.p if best.p.startswith('<') else f'={NARROW}{best.p}'}"
        said += f" ({chance})" if best.significant else f" ({chance}: that may be chance)"
    if best.placebo != MISSING:
        said += f"; on benign prompts as many masks raise the refusal by {best.placebo} {best.placebo_interval}"
    return said + "."


def _placebo(settings: Node, table: list[RouterRow]) -> dict[str, Any]:
    """Without the refusal's first tokens: they are words of the model."""
    why = settings["why_not"]
    return {
        "shown": any(row.placebo_bar for row in table),
        "why_not": "" if why.value is None else why.text(),
        "prompts": settings["prompts"].text(),
        "tokens": len(settings["tokens"].rows()),
        "refused": settings["refused"].text(),
        "base": plain(settings["base"].maybe(), 3),
    }


def _stability(settings: Node, best: int) -> list[tuple[str, str, str]]:
    """(name, value, what it means) of every measure that is there."""
    found: list[tuple[str, str, str]] = []
    stability = settings.get("stability")
    if stability is not None:
        halves = stability.get("split_half")
        if halves is not None:
            low, high = (plain(halves[key].maybe(), 2) for key in ("low", "high"))
            found.append(
                (
                    "Split-half Spearman ρ",
                    f"{plain(halves['mean'].maybe(), 2)} [{low}, {high}]",
                    f"two halves of the prompts rank the routers alike (mean and 95 % range of "
                    f"{halves['halves'].text()} splits)",
                )
            )
        concordance = stability["kendall_w"].maybe()
        if concordance is not None:
            prompts = max(settings["prompts"].integer(), 1)
            found.append(
                (
                    "Kendall’s W",
                    plain(concordance, 2),
                    f"single prompts rank the routers alike (1: all do; {plain(1 / prompts, 2)}: as if at random)",
                )
            )
        share = stability["top"].get(str(best))
        many = stability["top_n"].integer()
        place = "first" if many == 1 else f"among the first {many}"
        found.append(
            (
                f"Router {best} {place}",
                f"{100 * (share.maybe() or 0.0 if share else 0.0):.0f}{NARROW}% of halves",
                "how often half of the prompts puts the top router there",
            )
        )
    agreement = settings["agreement"].maybe()
    if agreement is not None:
        found.append(
            (
                "Agreement of the two scores",
                plain(agreement, 2),
                "Spearman ρ between the first-token score and that of the whole target",
            )
        )
    return found
