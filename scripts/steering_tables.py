"""The tables of steering, from evidence/steering-*.json. Used by scripts/tables.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import rows as rows_file
from evidence_files import EVIDENCE, read_new
from evidence_plan import Planned
from shown import Evidence, Rows, Shown, asked, percent, table

from pointsman.stats.rates import Rate
from pointsman.testbed.language import CUES, nouns

RIVALS = {
    "surrogate_only": "MASCing, surrogate alone", "on_policy": "MASCing, on-policy",
    "through_model": "learnt through the model", "steermoe_paired": "SteerMoE (paired responses, as published)",
    "steermoe": "SteerMoE (contexts)", "random": "shuffled mask",
}  # fmt: skip
"""Ways beside the chosen one, by their key on test. MASCing is what was learnt on a surrogate, and nothing else."""


def chosen_way(e: Evidence) -> str:
    """The key of the way that was chosen, as that of a rival."""
    way: str = e["chosen"]["refinement"] or e["chosen"]["method"]  # pins have no refinement
    return "surrogate_only" if way == "surrogate" else way


def points(difference: Evidence | None) -> str:
    """A paired difference in percentage points."""
    if difference is None or difference["difference"] is None:
        return "-"
    return f"{100 * difference['difference']:+.1f} [{100 * difference['low']:+.0f}, {100 * difference['high']:+.0f}]"


def named(e: Evidence) -> list[str]:
    """The scenario and the checkpoint of a run."""
    how = ", begun as the paper's code does" if "--init paper" in e["made_by"] else ""
    return [e["scenario"]["name"], e["checkpoint"] + how]


def measured(arm: Evidence, measure: str, *, n: bool = False) -> str:
    """A rate of an arm on test, in bold if it breaks its limit; with n and its effective n if wanted."""
    text = percent(arm[measure])
    if measure in (arm.get("broken") or ()):
        text = f"**{text}, limit broken**"
    return f"{text} ({asked(arm[measure])})" if n and arm[measure] else text


def gains(steerings: Shown) -> str:
    names = [name for name in RIVALS if any(e["test"].get(name) for e in (*steerings.shown, *steerings.twins))]
    pinned = [name for name in names if name.startswith("steermoe")]
    head = ["scenario", "testbed checkpoint", "untouched before", "chosen way", "n (effective)", "before", "after",
            "limits broken on test", *map(RIVALS.__getitem__, names),
            *(f"after minus {RIVALS[name]}, points" for name in pinned), "circuit"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        t = e["test"]
        return [[
            *named(e), {True: "yes", False: "no", None: "-"}[e.get("confirms")], RIVALS[chosen_way(e)],
            asked(t["after"]["gain"]), percent(t["before"]["gain"]), percent(t["after"]["gain"]),
            f"**{', '.join(e['broken_on_test'])}**" if e["broken_on_test"] else "none",
            *(percent(t[name]["gain"]) if t.get(name) else "-" for name in names),
            *(points(e["comparisons"].get(f"vs_{name}")) for name in pinned),
            f"{e['circuit']['size']} of {e['circuit']['possible']}",
        ]]  # fmt: skip

    return steerings.table(head, rows, keys=2)


def costs(steerings: Shown) -> str:
    head = ["scenario", "testbed checkpoint", "benign answered, n (effective)", "points",
            "multi-turn benign, n (effective)", "points ", "over-refusal, n (effective)", "points  ",
            "restricted refused, n (effective)", "points   ", "garbage"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        after, row = e["test"]["after"], named(e)
        for name in ("benign", "benign_conversations", "over_refusal", "held"):
            row += [measured(after, name, n=True), points(e["comparisons"][name])]
        return [[*row, measured(after, "garbage")]]

    return steerings.table(head, rows, keys=2)


def others(steerings: Shown) -> str:
    head = ["scenario", "testbed checkpoint", "method", "gain", "n (effective)", "benign", "multi-turn benign",
            "over-refusal", "restricted refused", "garbage"]  # fmt: skip
    names = {"before": "no mask", "after": "chosen", **RIVALS}

    def rows(e: Evidence) -> Rows:
        return [
            [*named(e), f"chosen: {RIVALS[chosen_way(e)]}" if key == "after" else words,
             percent(e["test"][key]["gain"]), asked(e["test"][key]["gain"]),
             *(measured(e["test"][key], name) for name in
               ("benign", "benign_conversations", "over_refusal", "held", "garbage"))]
            for key, words in names.items()
            if e["test"].get(key)
        ]  # fmt: skip

    return steerings.table(head, rows, keys=3)


def margin(e: Evidence) -> str:
    """With what margin limits were kept on validation."""
    if not e.get("margin"):
        return "none: point estimates"
    limits = e["margin"]["limits"]
    unsure = e["chosen"].get("unsure") or ()
    parts = [f"not kept with it: **{', '.join(unsure)}**"] if unsure else []
    for of, words in (("rows", "rows as if independent"), (None, "point estimate alone")):
        if some := [limit["measure"] for limit in limits if limit["of"] == of]:
            parts.append(f"{words}: {', '.join(some)}")
    return "; ".join([f"{e['margin']['confidence']} %", *parts])


def chosen(steerings: Shown) -> str:
    head = ["scenario", "testbed checkpoint", "chosen on validation", "margin of the limits there",
            "gain on validation (n)", "on test (n)", "last turns only (`dsr_context`), before", "after", "minutes",
            "time of generation, ratio"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        c, t, latency = e["chosen"], e["test"], e.get("latency")
        start = f" from {c['start']}" if c.get("start") else ""
        hold = f", hold {c['hold']:g}" if c.get("hold") else ""
        way = f"{c['refinement'] or c['method']}{start}"
        weight = f", lambda {c['lambda']:g}" if c["lambda"] is not None else ""
        strength = f", alpha {c['alpha']:g}" if c["alpha"] is not None else ""
        how = f"{way}{weight}{hold}{strength}, {c['phase']}"
        return [[
            *named(e), how + ("" if c["admissible"] else " (**beyond the limits**)"), margin(e),
            percent(e["overfit"]["validation"], n=True), percent(e["overfit"]["test"], n=True),
            percent(t["before"]["dsr_context"]), percent(t["after"]["dsr_context"]),
            f"{e['cost']['seconds'] / 60:.0f}",
            f"{latency['ratio']:.2f} [{latency['low']:.2f}, {latency['high']:.2f}]" if latency else "-",
        ]]  # fmt: skip

    return steerings.table(head, rows, keys=2)


def gap(everything: Sequence[Evidence]) -> str:
    head = ["scenario", "testbed checkpoint", "matrix", "entries", "surrogate turned", "model turned (n)"]
    rows = []
    for e in everything:
        for g in e["gap"]:
            start = f" from {g['start']}" if g.get("start") else ""
            hold = f", hold {g['hold']:g}" if g.get("hold") else ""
            turned = "-" if g["surrogate_turned"] is None else f"{100 * g['surrogate_turned']:.0f} %"
            rows.append([
                *named(e), f"{g['refinement']}{start}, lambda {g['lambda']:g}{hold}",
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
            *named(e), str(s["contexts"]), f"{100 * s['accuracy']:.0f} %",
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
                *named(e), str(s["seed"]),
                *(percent(s[name]) for name in ("gain", "benign", "benign_conversations", "over_refusal", "held")),
                f"{s['alpha']:g}" if s.get("alpha") else "-", str(s["entries"]),
                f"{stable['mean']:.2f}" if stable else "-",
            ])  # fmt: skip
    return table(head, rows)


def tactics(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "tactic", "n", "withstood before", "after"]
    rows = [
        [e["checkpoint"], tactic, str(part["gain"]["n"]), percent(part["gain"]),
         percent(e["test"]["after"]["by_tactic"][tactic]["gain"])]
        for e in everything
        if e["scenario"]["objective"] == "defend"
        for tactic, part in e["test"]["before"]["by_tactic"].items()
    ]  # fmt: skip
    return table(head, rows)


def bounds(everything: Sequence[Evidence]) -> str:
    head = ["scenario", "testbed checkpoint", "gain", "restricted refused", "benign", "multi-turn benign", "entries"]
    rows = [
        [*named(e),
         *(percent(e["upper_bound"][name]) for name in ("gain", "held", "benign", "benign_conversations")),
         str(e["upper_bound"]["entries"])]
        for e in everything
        if e.get("upper_bound")
    ]  # fmt: skip
    return table(head, rows)


def unseen(names: Sequence[str]) -> str:
    """What masks do to words that they were never shown, by what these share with words that they were shown."""
    head = ["testbed checkpoint", "words", "nouns", "mature requests answered, before", "after", "n (effective)",
            "restricted refused, before", "after ", "n (effective) "]  # fmt: skip
    found = []
    for e in filter(None, map(read_new, names)):
        outcomes = rows_file.read(EVIDENCE / "rows" / f"{e['name']}.csv.gz")
        for words, cues in (("never shown", CUES), *((f"never shown, cue: {cue}", (cue,)) for cue in CUES)):
            some = [row for row in outcomes if row.split == "test" and nouns()[noun_of(row)].cue in cues]
            answered = [rate_of(some, "scenario", f"test/{arm}", "correct") for arm in ("before", "after")]
            held = [rate_of(some, "restricted", f"test/{arm}", "refused") for arm in ("before", "after")]
            clusters = {noun_of(row) for row in some if row.list == "scenario"}
            found.append([
                e["checkpoint"], words, str(len(clusters)), *map(percent, answered), asked(answered[1]),
                *map(percent, held), asked(held[1]),
            ])  # fmt: skip
    return table(head, found)


def noun_of(row: rows_file.Row) -> str:
    """The noun of a request of the testbed, as its id says it (kind/noun/verb/modifier)."""
    return row.id.split("/")[1]


def rate_of(some: Sequence[rows_file.Row], list_: str, column: str, label: str) -> Evidence:
    """How many rows of a list end with an answer of this label, clustered by noun."""
    listed = [row for row in some if row.list == list_ and column in row.outcomes]
    ends = [row.outcomes[column].split()[-1].rstrip("+") == label for row in listed]
    return asdict(Rate.of(ends, [noun_of(row) for row in listed]))


def in_docs(plan: Sequence[Planned]) -> Iterator[str]:
    """The tables of steerings, and of evaluations of them.

    Args:
        plan: What is planned of both kinds.
    """
    steered = [run.name for run in plan if run.kind == "steer" and not run.begun_as_published]
    every = Shown.of(steered)
    with_paper = Shown.of([run.name for run in plan if run.kind == "steer"])
    evaluated = [run.name for run in plan if run.kind == "evaluate"]
    yield from every.told()
    yield (
        "Effective n: how many independent rows would know the rate as well. In bold: a limit that is broken on test, "
        "or not kept with the margin that was asked for on validation."
    )
    yield "### Gained, on the test split"
    yield gains(every)
    yield "### What it costs"
    yield costs(every)
    yield "### Every method on the same prompts"
    yield others(with_paper)
    if any(map(read_new, evaluated)):
        yield "### Words that the mask was never shown"
        yield unseen(evaluated)
    yield "### What was chosen, and the overfit gap"
    yield chosen(with_paper)
    yield "### Method seeds, apart from n"
    yield seeds(every.shown)
    yield "### The gap: surrogate turned (on discovery), model turned (on validation), alpha 1"
    yield gap(with_paper.shown)
    yield "### The surrogate"
    yield surrogates(every.shown)
    yield "### By tactic"
    yield tactics(every.shown)
    if any(e.get("upper_bound") for e in every.shown):
        yield "### Upper bound: learnt through the model on the test prompts themselves"
        yield bounds(every.shown)
    yield "Made by `make evidence`; the command of every run is in its file in `evidence/`."
