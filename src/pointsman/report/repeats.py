"""The method under other seeds: a spread of its own, never part of n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pointsman.report.values import MISSING, NARROW, Node, plain, show


@dataclass(frozen=True)
class SeedRow:
    """One quantity under every seed, and between what it lies."""

    name: str
    values: list[str]
    spread: str


def seeds_section(results: Node) -> dict[str, Any] | None:
    """Ranking, masking and search, seed by seed; None if there was one seed."""
    seeds = results.get("seeds")
    if seeds is None:
        return None
    rows: list[SeedRow] = []
    names: list[str] = []
    said: list[str] = []
    ranking, masking, search = (seeds.get(key) for key in ("rosais", "masking", "fsour"))
    agreement = ""
    if ranking is not None:
        names = [node.text() for node in ranking["seeds"].rows()]
        tops = [str(layer) for layer in ranking["top1"].integers()]
        rows.append(SeedRow("Router of highest RoSais", tops, show(sorted(set(tops), key=int))))
        alike = ranking.get("spearman")
        if alike is not None:
            mean, least, most = (plain(alike[key].maybe(), 2) for key in ("mean", "min", "max"))
            agreement = f"Rankings under two seeds correlate at ρ = {mean} (from {least} to {most})."
    for record in masking.rows() if masking else []:
        names = [node.text() for node in record["seeds"].rows()]
        many = record["routers"].integer()
        which = "top router" if many == 1 else f"top {many} routers"
        asked = results["base"]["asr"].rate().count
        rows.append(_shares(f"ASR, {which} masked, {record['phase'].text()} ({asked})", record["asr"]))
        rows.append(
            SeedRow(
                "masked layers" if many > 1 else "masked layer",
                [", ".join(map(str, layers.integers())) for layers in record["layers"].rows()],
                "",
            )
        )
    if search is not None:
        names = [node.text() for node in search["seeds"].rows()]
        asked = results["fsour"]["asr"].rate().count
        rows.append(_shares(f"F-SOUR ASR, best of all restarts ({asked})", search["asr"]))
        rows.append(_shares(f"F-SOUR ASR, first search ({asked})", search["asr_at_1"]))
        pairs = [node.number() for node in search["pairs"].rows()]
        rows.append(SeedRow("F-SOUR, median forced pairs", [show(p) for p in pairs], _between(pairs)))
        low, high = (f"{100 * search[key].number():.0f}{NARROW}%" for key in ("min", "max"))
        where = f"is {low} under every one of" if low == high else f"lies between {low} and {high} over"
        said.append(f"F-SOUR’s ASR {where} {len(names)} seeds.")
    return {
        "names": names,
        "rows": rows,
        "agreement": agreement,
        "finding": " ".join(said) or f"The method was repeated with {len(names)} seeds.",
    }


def _shares(name: str, node: Node) -> SeedRow:
    values = [item.maybe() for item in node.rows()]
    known = [100 * value for value in values if value is not None]
    shown = [MISSING if value is None else f"{100 * value:.0f}{NARROW}%" for value in values]
    return SeedRow(name, shown, f"{_between(known, 0)}{NARROW}%" if known else MISSING)


def _between(values: list[float], digits: int = 1) -> str:
    low, high = (plain(edge, digits) for edge in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
