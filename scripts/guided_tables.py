"""The tables of Guided, of universal routes and of the screen, from evidence/guided-*.json; for scripts/tables.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from audit_tables import claim, points
from evidence_files import newest
from shown import asked, percent, table

from pointsman.jobs.audit.claims import verdict_above_draws
from pointsman.stats.paired import AboveDraws
from pointsman.stats.rank_agreement import spearman

Evidence = dict[str, Any]


def found(names: Sequence[str]) -> list[Evidence]:
    """The runs that there are."""
    return [kept for name in names if (kept := newest(name))]


def side_by_side(runs: Sequence[Evidence]) -> str:
    """What one search of each finds."""
    head = ["testbed checkpoint", "untouched before", "n (effective)", "Guided: correct content", "F-SOUR@1",
            "Guided less F-SOUR (points)", "Guided: any compliance", "F-SOUR@1: any compliance",
            "random routes of Guided's size", "natural experts forced there", "the claim"]  # fmt: skip
    rows = []
    for e in runs:
        guided, fsour, controls = e["guided"], e["fsour"], e["guided"]["controls"]
        rows.append([
            e["checkpoint"], "yes" if e["confirms"] else "no", asked(guided["asr"]), percent(guided["asr"]),
            percent(fsour["asr"]), points(e["side_by_side"]["difference"]), percent(guided["any_compliance"]),
            percent(fsour["any_compliance"]), percent(controls["random"]["asr"]), percent(controls["natural"]["asr"]),
            claim(guided["difference_random"]),
        ])  # fmt: skip
    return table(head, rows)


def costs(runs: Sequence[Evidence]) -> str:
    """What one search of each takes, and what F-SOUR finds with what Guided takes."""
    head = ["testbed checkpoint", "forwards, median: Guided", "F-SOUR@1", "ratio", "pairs, median: Guided",
            "F-SOUR@1", "seconds a prompt: Guided", "F-SOUR@1", "ratio ",
            "at Guided's most forwards: Guided", "F-SOUR"]  # fmt: skip
    rows = []
    for e in runs:
        guided, fsour = e["side_by_side"]["guided"], e["side_by_side"]["fsour"]
        (at,) = (each for each in e["side_by_side"]["budgets"] if each["budget"] == "guided_most")
        rows.append([
            e["checkpoint"], f"{guided['forwards']:.0f}", f"{fsour['forwards']:.0f}",
            f"1/{fsour['forwards'] / guided['forwards']:.0f}", f"{guided['pairs']:.0f}", f"{fsour['pairs']:.0f}",
            f"{guided['seconds']:.3f}", f"{fsour['seconds']:.3f}", f"1/{fsour['seconds'] / guided['seconds']:.1f}",
            percent(at["guided"]), f"{percent(at['fsour'])} ({at['forwards']:.0f} forwards)",
        ])  # fmt: skip
    return table(head, rows)


def universal(runs: Sequence[Evidence]) -> str:
    """One route for all prompts."""
    head = ["testbed checkpoint", "pairs of layer and place", "found on", "forwards", "n (effective)",
            "correct content, test", "any compliance", "random sets at the same places (draws that reach it)",
            "natural experts forced there", "above random sets"]  # fmt: skip
    rows = []
    for e in runs:
        u, above = e["universal"], e["universal"]["difference_random"]
        rows.append([
            e["checkpoint"], str(len(u["places"])), str(u["prompts"]), f"{u['forwards']:,.0f}", asked(u["asr"]),
            percent(u["asr"]), percent(u["any_compliance"]),
            f"{percent(u['random']['asr'])} ({above['reached']} of {above['draws']})", percent(u["natural"]["asr"]),
            str(verdict_above_draws(AboveDraws(**above))),
        ])  # fmt: skip
    return table(head, rows)


def screen(runs: Sequence[Evidence]) -> str:
    """How alike the screen and RoSais rank the routers of a checkpoint, each on its own discovery prompts."""
    head = ["testbed checkpoint", "screen, prompts", "RoSais, prompts", "Spearman, first token",
            "Spearman, whole target", "same first router", "split-half Spearman of the screen"]  # fmt: skip
    rows = []
    for e in runs:
        ranked = newest(e["checkpoint"])
        if ranked is None or len(ranked["rosais"]) != len(e["rosais"]):
            continue
        ours, theirs = (sorted(of["rosais"], key=lambda router: router["layer"]) for of in (e, ranked))
        first, target = (
            spearman([of(router) for router in ours], [of(router) for router in theirs])
            for of in (lambda router: router["mean"], lambda router: router["target"]["mean"])
        )
        half = e["rosais_settings"]["stability"]["split_half"]
        tops = [next(router["layer"] for router in of if router["rank"] == 1) for of in (ours, theirs)]
        rows.append([
            e["checkpoint"], str(e["rosais_settings"]["prompts"]), str(ranked["rosais_settings"]["prompts"]),
            f"{first:.2f}", f"{target:.2f}", "yes" if tops[0] == tops[1] else f"no ({tops[0]} and {tops[1]})",
            f"{half['mean']:.2f} [{half['low']:.2f}, {half['high']:.2f}]",
        ])  # fmt: skip
    return table(head, rows)


def in_docs(names: Sequence[str]) -> Iterator[str]:
    runs = found(names)
    yield (
        "Testbed, test split, exact judge, greedy, one search of each attack a prompt, 95 % intervals clustered by "
        "restricted object. Untouched before: Guided had not been run on the checkpoint before the plan was committed."
    )
    yield side_by_side(runs)
    yield (
        "A gradient counts 3 forwards, the pass of all experts by its arithmetic. Seconds are of one thread with "
        "another run beside it."
    )
    yield costs(runs)
    yield "### One route for all prompts"
    yield universal(runs)
    yield "### The screen beside RoSais"
    yield screen(runs)
