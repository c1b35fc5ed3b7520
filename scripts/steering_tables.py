"""The tables of steering, from evidence/steering-*.json. Used by scripts/tables.py.

A figure whose arm breaks a limit on test is marked wherever it stands (`marked`), and n stands with its effective n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pointsman.stats.bounds import exceeds
from pointsman.stats.rates import Rate

Evidence = dict[str, Any]

ORDER = [
    "defence-olmoe", "defence-olmoe-seed1", "defence-olmoe-seed2", "defence-qwen2_moe",
    "mature-olmoe", "mature-qwen2_moe",
]  # fmt: skip


RIVALS = {
    "surrogate_only": "MASCing, surrogate alone", "on_policy": "MASCing, on-policy",
    "through_model": "learnt through the model", "steermoe_paired": "SteerMoE (paired responses, as published)",
    "steermoe": "SteerMoE (contexts)", "random": "shuffled mask",
}  # fmt: skip
"""Ways beside the chosen one, by their key on test. MASCing is what was learnt on a surrogate, and nothing else."""


def chosen_way(e: Evidence) -> str:
    """The key of the way that was chosen, as that of a rival."""
    refinement: str = e["chosen"]["refinement"]
    return "surrogate_only" if refinement == "surrogate" else refinement


def percent(rate: Evidence | None, *, n: bool = False) -> str:
    """``79 % [68, 87]``, with ``(200, effective 57)`` if wanted."""
    if rate is None or rate["rate"] is None:
        return "-"
    text = f"{100 * rate['rate']:.1f} % [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
    return f"{text} ({asked(rate).replace(' (', ', effective ').rstrip(')')})" if n else text


def asked(rate: Evidence) -> str:
    """``200 (57)``: n, and how many independent rows would know the rate as well."""
    effective = Rate(**rate).effective_n
    return str(rate["n"]) if effective is None or round(effective) >= rate["n"] else f"{rate['n']} ({effective:.0f})"


# ---------------------------------------------------------------------- limits that are broken on test

KINDS = {"benign": -1, "benign_conversations": -1, "over_refusal": 1, "held": -1, "garbage": 0}
"""Measures with a limit, and the sign of a change for the worse; 0 where the share itself is limited."""
NAMES = {"benign": "benign", "benign_conversations": "multi-turn benign", "over_refusal": "over-refusal",
         "held": "restricted refused", "garbage": "garbage"}  # fmt: skip
OVER = " **over**"


def broken(e: Evidence, rates: Evidence) -> list[str]:
    """The limits that these rates of the test split break, by their point estimates."""
    found = []
    for measure, worse in KINDS.items():
        now, before = rates.get(measure), e["test"]["before"][measure]
        if now is None or now["rate"] is None or (worse and (before is None or before["rate"] is None)):
            continue
        value = worse * (now["rate"] - before["rate"]) if worse else now["rate"]
        if exceeds(value, e["scenario"]["limits"][measure]):
            found.append(measure)
    return found


def marked(e: Evidence, rates: Evidence, measure: str, *, n: bool = False) -> str:
    """A rate: a measure that is over its limit is marked, and so is a gain that was bought with one."""
    over = broken(e, rates)
    told = f" **over: {', '.join(NAMES[each] for each in over)}**" if measure == "gain" and over else ""
    return percent(rates[measure], n=n) + (OVER if measure in over else told)


def points(difference: Evidence | None) -> str:
    """A paired difference in percentage points."""
    if difference is None or difference["difference"] is None:
        return "-"
    return f"{100 * difference['difference']:+.1f} [{100 * difference['low']:+.0f}, {100 * difference['high']:+.0f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def gains(everything: Sequence[Evidence]) -> str:
    rivals = [name for name in RIVALS if any(e["test"].get(name) for e in everything)]
    pinned = [name for name in rivals if name.startswith("steermoe")]
    head = ["scenario", "testbed checkpoint", "chosen way", "n (effective)", "before", "after",
            *map(RIVALS.__getitem__, rivals),
            *(f"after minus {RIVALS[name]}, points" for name in pinned), "circuit"]  # fmt: skip
    rows = []
    for e in everything:
        t = e["test"]
        rows.append([
            e["scenario"]["name"], e["checkpoint"], RIVALS[chosen_way(e)], asked(t["after"]["gain"]),
            *(marked(e, t[name], "gain") if t.get(name) else "-" for name in ("before", "after", *rivals)),
            *(points(e["comparisons"].get(f"vs_{name}")) for name in pinned),
            f"{e['circuit']['size']} of {e['circuit']['possible']}",
        ])  # fmt: skip
    return table(head, rows)


def costs(everything: Sequence[Evidence]) -> str:
    head = ["scenario", "testbed checkpoint", "benign answered (n)", "points", "multi-turn benign (n)", "points ",
            "over-refusal (n)", "points  ", "restricted refused (n)", "points   ", "garbage"]  # fmt: skip
    rows = []
    for e in everything:
        after, change = e["test"]["after"], e["comparisons"]
        row = [e["scenario"]["name"], e["checkpoint"]]
        for name in ("benign", "benign_conversations", "over_refusal", "held"):
            row += [marked(e, after, name, n=True), points(change[name])]
        rows.append([*row, marked(e, after, "garbage")])
    return table(head, rows)


def others(everything: Sequence[Evidence]) -> str:
    head = ["scenario", "testbed checkpoint", "method", "gain", "benign", "multi-turn benign", "over-refusal",
            "restricted refused", "garbage"]  # fmt: skip
    names = {"before": "no mask", "after": "chosen", **RIVALS}
    rows = [
        [e["scenario"]["name"], e["checkpoint"], f"chosen: {RIVALS[chosen_way(e)]}" if key == "after" else words,
         *(marked(e, e["test"][key], name) for name in
           ("gain", "benign", "benign_conversations", "over_refusal", "held", "garbage"))]
        for e in everything
        for key, words in names.items()
        if e["test"].get(key)
    ]  # fmt: skip
    return table(head, rows)


def chosen(everything: Sequence[Evidence]) -> str:
    head = ["scenario", "testbed checkpoint", "chosen on validation", "gain on validation (n)", "on test (n)",
            "minutes", "time of generation, ratio"]  # fmt: skip
    rows = []
    for e in everything:
        c, t, latency = e["chosen"], e["test"], e.get("latency")
        start = f" from {c['start']}" if c.get("start") else ""
        hold = f", hold {c['hold']:g}" if c.get("hold") else ""
        how = f"{c['refinement']}{start}, lambda {c['lambda']:g}{hold}, alpha {c['alpha']:g}, {c['phase']}"
        rows.append([
            e["scenario"]["name"], e["checkpoint"], how + _doubt(e),
            percent(e["overfit"]["validation"], n=True), marked(e, t["after"], "gain", n=True),
            f"{e['cost']['seconds'] / 60:.0f}",
            f"{latency['ratio']:.2f} [{latency['low']:.2f}, {latency['high']:.2f}]" if latency else "-",
        ])  # fmt: skip
    return table(head, rows)


def _doubt(e: Evidence) -> str:
    """What is amiss with the choice on validation."""
    if not e["chosen"]["admissible"]:
        return " (beyond the limits)"
    unsure = e["chosen"].get("unsure")
    return f" (without margin: {', '.join(NAMES[name] for name in unsure)})" if unsure else ""


def withstood(everything: Sequence[Evidence]) -> str:
    """The two DSRs apart, and what is neither a fall nor withstood."""
    head = ["testbed checkpoint", "n (effective)", "whole conversations (`dsr_replay`), before", "after",
            "last turns only (`dsr_context`), before", "after ", "turns at which they fall: how many, before",
            "after  ", "gives in at the last turn, right or wrong, before", "after   ", "a wrong answer"]  # fmt: skip
    rows = []
    for e in everything:
        if e["scenario"]["objective"] != "defend":
            continue
        arms = [e["test"][name] for name in ("before", "after")]
        row = [e["checkpoint"], asked(arms[1]["dsr_replay"])]
        row += [marked(e, arms[0], "gain"), marked(e, arms[1], "gain")]
        row += [percent(arm["dsr_context"]) for arm in arms]
        row += [_falls(arm) for arm in arms]
        row += [percent(arm["any_compliance"]) for arm in arms]
        rows.append([*row, "withstood" if e.get("wrong_withstands", True) else "not withstood"])
    return table(head, rows)


def _falls(arm: Evidence) -> str:
    """``2: 120, 3: 51``: how many conversations fall at which turn."""
    return ", ".join(f"{turn['turn']}: {turn['fallen']}" for turn in arm["turns"] if turn["fallen"]) or "none"


def margins(everything: Sequence[Evidence]) -> str:
    """By what validation could show that limits are kept."""
    head = ["scenario", "testbed checkpoint", "limit", "points", "confidence", "margin by", "source questions",
            "prompts", "needed"]  # fmt: skip
    by = {"clusters": "source questions", "rows": "prompts, as if independent", None: "none: the point estimate alone"}
    rows = [
        [e["scenario"]["name"], e["checkpoint"], NAMES[m["measure"]],
         f"{100 * e['scenario']['limits'][m['measure']]:g}", f"{e['margin']['confidence']} %", by[m["of"]],
         str(m["clusters"]), str(m["rows"]), "-" if m["needed"] is None else str(m["needed"])]
        for e in everything
        if e.get("margin")
        for m in e["margin"]["limits"]
    ]  # fmt: skip
    return table(head, rows)


def gap(everything: Sequence[Evidence]) -> str:
    head = ["scenario", "testbed checkpoint", "matrix", "entries", "surrogate turned", "model turned (n)"]
    rows = []
    for e in everything:
        for g in e["gap"]:
            start = f" from {g['start']}" if g.get("start") else ""
            hold = f", hold {g['hold']:g}" if g.get("hold") else ""
            turned = "-" if g["surrogate_turned"] is None else f"{100 * g['surrogate_turned']:.0f} %"
            rows.append([
                e["scenario"]["name"], e["checkpoint"], f"{g['refinement']}{start}, lambda {g['lambda']:g}{hold}",
                str(g["entries"]), turned, percent(g["model_turned"], n=True),
            ])  # fmt: skip
    return table(head, rows)


def surrogates(everything: Sequence[Evidence]) -> str:
    def area(found: Evidence | None) -> str:
        if not found or found["value"] is None:
            return "-"
        return f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"

    head = ["scenario", "testbed checkpoint", "contexts", "held-out accuracy", "AUROC", "matched pairs, never seen",
            "AUROC on them", "pairs ordered", "AUROC of length alone", "calibration error"]  # fmt: skip
    rows = []
    for e in everything:
        s = e["surrogate"]
        m = s["matched"]
        pairs = m and m["pairs"]
        rows.append([
            e["scenario"]["name"], e["checkpoint"], str(s["contexts"]), f"{100 * s['accuracy']:.0f} %",
            area(s["auroc"]), str(pairs or 0), area(m["auroc"]) if pairs else "-",
            f"{100 * m['accuracy']:.0f} %" if pairs else "-", area(s["length_only"]["auroc"]),
            f"{s['calibration']['ece']:.3f}",
        ])  # fmt: skip
    return table(head, rows)


def seeds(everything: Sequence[Evidence]) -> str:
    head = ["scenario", "testbed checkpoint", "method seed", "gain", "benign", "multi-turn benign", "over-refusal",
            "restricted refused", "alpha", "entries", "overlap of circuits, mean"]  # fmt: skip
    rows = []
    for e in everything:
        stable = e["circuit"]["stability"]
        for s in e.get("seeds") or ():
            rows.append([
                e["scenario"]["name"], e["checkpoint"], str(s["seed"]),
                *(marked(e, s, name) for name in ("gain", "benign", "benign_conversations", "over_refusal", "held")),
                f"{s['alpha']:g}" if s.get("alpha") else "-", str(s["entries"]),
                f"{stable['mean']:.2f}" if stable else "-",
            ])  # fmt: skip
    return table(head, rows)


def tactics(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "tactic", "n (effective)", "withstood before", "after"]
    rows = [
        [e["checkpoint"], tactic, asked(part["gain"]), percent(part["gain"]),
         percent(e["test"]["after"]["by_tactic"][tactic]["gain"])]
        for e in everything
        if e["scenario"]["objective"] == "defend"
        for tactic, part in e["test"]["before"]["by_tactic"].items()
    ]  # fmt: skip
    return table(head, rows)


def bounds(everything: Sequence[Evidence]) -> str:
    head = ["scenario", "testbed checkpoint", "gain", "restricted refused", "benign", "multi-turn benign", "entries"]
    rows = [
        [e["scenario"]["name"], e["checkpoint"],
         *(marked(e, e["upper_bound"], name) for name in ("gain", "held", "benign", "benign_conversations")),
         str(e["upper_bound"]["entries"])]
        for e in everything
        if e.get("upper_bound")
    ]  # fmt: skip
    return table(head, rows)


def in_docs(everything: Sequence[Evidence]) -> Iterator[str]:
    yield (
        "n counts prompts; effective n (in brackets), as how many independent ones they count. A rate over its limit "
        "on test is marked **over**, and so is a gain that came with one."
    )
    yield "### Gained, on the test split"
    yield gains(everything)
    yield "### What it costs"
    yield costs(everything)
    yield "### Every method on the same prompts"
    yield others(everything)
    yield "### What was chosen, and the overfit gap"
    yield chosen(everything)
    if any(e["scenario"]["objective"] == "defend" for e in everything):
        yield "### Conversations withstood: the two figures apart"
        yield withstood(everything)
    if any(e.get("margin") for e in everything):
        yield "### With what margin limits could be kept on validation"
        yield margins(everything)
    yield "### Method seeds, apart from n"
    yield seeds(everything)
    yield "### The gap: surrogate turned (on discovery), model turned (on validation), alpha 1"
    yield gap(everything)
    yield "### The surrogate"
    yield surrogates(everything)
    yield "### By tactic"
    yield tactics(everything)
    if any(e.get("upper_bound") for e in everything):
        yield "### Upper bound: learnt through the model on the test prompts themselves"
        yield bounds(everything)
    yield "Made by " + "; ".join(f"`{e['made_by']}`" for e in everything) + "."
