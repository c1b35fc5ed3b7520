"""The surrogate: what it learnt from, whether it reads routing or length, and whether the model follows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pointsman.report.geometry import Bar, Scale, Tick, bar, rate_bar
from pointsman.report.steer.words import REFINEMENTS, Words, known, many, settings_text
from pointsman.report.values import MISSING, NARROW, Node, Rate, plain

SIZE, MARGIN = 190.0, 34.0  # px of the calibration plot


@dataclass(frozen=True)
class Auroc:
    """An area under the ROC curve with its 95 % interval; 0.5 is chance."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: str
    bar: Bar | None

    @property
    def interval(self) -> str:
        return "" if self.low is None or self.high is None else f"[{plain(self.low, 2)}, {plain(self.high, 2)}]"

    @property
    def number(self) -> str:
        return plain(self.value, 2)

    @property
    def full(self) -> str:
        return f"{self.number} {self.interval}".strip()


def auroc(name: str, node: Node | None) -> Auroc | None:
    if node is None:
        return None
    value, low, high = (found.maybe() if (found := node.get(key)) else None for key in ("value", "low", "high"))
    n = node.get("n")
    edges = [value if edge is None else edge for edge in (low, high)]
    placed = None
    if value is not None and edges[0] is not None and edges[1] is not None:
        placed = bar(Scale(0.0, 1.0), value, edges[0], edges[1])
    return Auroc(name, value, low, high, n.text() if n else MISSING, placed)


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    r: float
    title: str


def aurocs(results: Node) -> dict[str, Auroc]:
    """Those that were measured, by `all`, `matched` and `length`."""
    node = results.get("surrogate")
    if node is None:
        return {}
    matched, length = node.get("matched"), node.get("length_only")
    found = {
        "all": auroc("all held-out contexts", node.get("auroc")),
        "matched": auroc("matched pairs alone", matched.get("auroc") if matched else None),
        "length": auroc("length alone, the control", length.get("auroc") if length else None),
    }
    return {key: item for key, item in found.items() if item is not None}


def surrogate(results: Node, words: Words) -> dict[str, Any] | None:
    """The surrogate's worth; None if the run trained none."""
    node = results.get("surrogate")
    if node is None:
        return None
    found = aurocs(results)
    return {
        "finding": _finding(node, found),
        "aurocs": list(found.values()),
        "accuracy": _accuracy(node),
        "calibration": _calibration(node.get("calibration")),
        "seeds": _seeds(node.get("seeds")),
    }


def _finding(node: Node, found: dict[str, Auroc]) -> str:
    contexts, whole = node.get("contexts"), found.get("all")
    of = f" on {contexts.text()} contexts" if contexts else ""
    said = (
        f"From the router logits alone the surrogate tells the two labels apart with AUROC {whole.full}{of}."
        if whole
        else ""
    )
    matched, length = found.get("matched"), found.get("length")
    if matched is not None:
        said += f" On matched pairs, which share question, tactic and number of turns, {matched.full}"
        said += f"; from length alone one would reach {length.full}." if length else "."
    elif length is not None:
        said += f" There were no matched pairs to test it on; from length alone one would reach {length.full}."
    return said.strip() or "Its accuracy was not measured."


def _accuracy(node: Node) -> list[tuple[str, str]]:
    matched, rows = node.get("matched"), []
    for name, found in (
        ("Accuracy, all held-out contexts", node.get("accuracy")),
        ("Accuracy, matched pairs", matched.get("accuracy") if matched else None),
    ):
        value = found.maybe() if found else None
        if value is not None:
            rows.append((name, f"{plain(100 * value, 1)}{NARROW}%"))
    pairs = matched.get("pairs") if matched else None
    return [*rows, *([("Matched pairs", pairs.text())] if pairs else [])]


def _calibration(node: Node | None) -> dict[str, Any] | None:
    bins = found.rows() if node and (found := node.get("bins")) else []
    dots = []
    sizes = [item["n"].number() for item in bins]
    most = max(sizes, default=0.0) or 1.0
    x, y = Scale(0, 1, MARGIN, MARGIN + SIZE), Scale(0, 1, SIZE + 8, 8.0)
    for item, n in zip(bins, sizes, strict=True):
        p, observed = item["p"].maybe(), item["observed"].maybe()
        if p is None or observed is None or n <= 0:
            continue
        title = f"predicted {plain(p, 2)}, observed {plain(observed, 2)} (n = {n:g})"
        dots.append(Dot(x(p), y(observed), round(2.5 + 5.5 * math.sqrt(n / most), 2), title))
    if node is None or not dots:
        return None
    ece = node.get("ece")
    return {
        "dots": dots,
        "ece": plain(ece.maybe(), 3) if ece else MISSING,
        "width": MARGIN + SIZE + 12,
        "height": SIZE + 46,
        "left": MARGIN,
        "right": MARGIN + SIZE,
        "top": 8.0,
        "bottom": SIZE + 8,
        "x_ticks": [Tick(x(value), value) for value in (0, 0.5, 1)],
        "y_ticks": [Tick(y(value), value) for value in (0, 0.5, 1)],
    }


def _seeds(node: Node | None) -> str:
    rows = node.rows() if node else []
    if len(rows) < 2:
        return "Other seeds of the surrogate were not trained."
    said = []
    for key, name in (("auroc", "AUROC"), ("matched", "on matched pairs"), ("accuracy", "accuracy")):
        values = [value for row in rows if (value := _value(row.get(key))) is not None]
        if values:
            said.append(f"{name} {plain(min(values), 2)} to {plain(max(values), 2)}")
    return f"Over {many(len(rows), 'training seed')}: {', '.join(said)}." if said else ""


def _value(node: Node | None) -> float | None:
    """A number, or the value of an AUROC's object."""
    if node is None:
        return None
    if isinstance(node.value, dict):
        inner = node.get("value") or node.get("auroc")
        return _value(inner)
    return node.maybe()


@dataclass(frozen=True)
class Gap:
    """Whom a mask turns: the surrogate's verdict, and the model's answer. `surrogate` in percent of the width."""

    name: str
    settings: str
    surrogate: float | None
    said: str
    model: Rate
    bar: Bar | None


def gap(results: Node) -> dict[str, Any] | None:
    """Surrogate turned against model turned, the best mask of each refinement first."""
    node = results.get("gap")
    rows = node.rows() if node else []
    if not rows:
        return None
    found = []
    for row in rows:
        turned, refinement = row.get("surrogate_turned"), row.get("refinement")
        share, model = turned.maybe() if turned else None, row["model_turned"].rate()
        said = MISSING if share is None else f"{plain(100 * share, 0)}{NARROW}%"
        settings = settings_text(row)
        name = known(REFINEMENTS, refinement.text()) if refinement else MISSING
        at = None if share is None else min(max(100 * share, 0.0), 100.0)
        found.append(Gap(name, settings, at, said, model, rate_bar(model)))
    best: dict[str, Gap] = {}
    for one in found:
        if one.name not in best or (one.model.rate or 0.0) > (best[one.name].model.rate or 0.0):
            best[one.name] = one
    first = list(best.values())
    said = "; ".join(f"{one.name}: the surrogate {one.said}, the model {one.model.short}" for one in first)
    return {
        "finding": f"Share of contexts turned. {said[:1].upper()}{said[1:]}.",
        "rows": first,
        "all": found if len(found) > len(first) else [],
    }


def contexts(results: Node, words: Words) -> list[dict[str, Any]]:
    """Per split: what was played, what fell, and what the surrogate could learn from."""
    node = results.get("contexts")
    rows = []
    for name, item in node.items() if node else ():
        if item.value is None:
            continue
        fallen = item.get("fallen")
        counts = [
            found.text() if (found := item.get(key)) else MISSING
            for key in ("played", "label1", "label0", "matched_pairs")
        ]
        rows.append({"name": name, "counts": counts, "fallen": fallen.rate() if fallen else None})
    return rows
