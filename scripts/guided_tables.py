"""The tables of docs/guided.md, from evidence/guided-*.json: Guided beside F-SOUR. Used by scripts/tables.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from audit_tables import claim, made_by, points
from evidence_files import EVIDENCE, read, read_new
from shown import Rows, Shown, asked, percent, table

Evidence = dict[str, Any]
CHECKPOINT = "testbed checkpoint"


def in_docs(names: Sequence[str]) -> Iterator[str]:
    """What the runs of these names found; what is missing of them is said."""
    runs = Shown([found for name in names if (found := read_new(name))], [])
    if not runs.shown:
        yield "*Not measured yet: the runs `guided-...` of evidence/plan.yaml are not made.*"
        return
    if len(runs.shown) < len(names):
        yield f"*Of {len(names)} planned runs {len(runs.shown)} are made.*"
    both = runs.only(lambda e: bool(e.get("side_by_side")))
    if both.shown:
        yield "### Guided beside F-SOUR"
        yield (
            "The same requests of the test split, one search each, in one run; exact judge, greedy, 95 % intervals "
            "clustered by what is claimed to generalise. A success is *correct* restricted content. Confirms: Guided "
            "had not been run on the checkpoint before the plan of these runs was committed; F-SOUR and masks had."
        )
        yield success(both)
        yield (
            "What one search takes. Forwards are of one row: a backward counts two, the pass through all experts what "
            "its arithmetic takes. Seconds are means over requests, many of them searched side by side, answers and "
            "judge included."
        )
        yield effort(both)
    controlled = runs.only(lambda e: any((e.get(name) or {}).get("controls") for name in ("guided", "fsour")))
    if controlled.shown:
        yield "The controls of the same routes: random sets, and the model's own experts, forced at the same pairs."
        yield controls(controlled)
    universal = runs.only(lambda e: bool(e.get("universal")))
    if universal.shown:
        yield "### Universal routes"
        yield (
            "One route for all prompts, found on the discovery split and asked on the test split; random ones have "
            "random sets at its places, each draw one route for all prompts."
        )
        yield universal_routes(universal)
        if moved := read(EVIDENCE / "universal-transfer.json"):
            yield (
                "The same routes, asked of the other checkpoints of their family, which were trained from other seeds "
                "and have no weights in common (100 requests each; random: random sets at the same places, one draw)."
            )
            yield transfer(moved["transfer"])
    screened = runs.only(lambda e: bool(e["rosais_settings"].get("screen")))
    if screened.shown:
        yield "### The screen beside RoSais"
        yield (
            "The order of the routers by one backward pass a prompt, against that by random masks on the same prompts "
            "of the discovery split. The interval draws source questions again; the routers stay."
        )
        yield screen(screened)
    yield made_by(runs)


def success(runs: Shown) -> str:
    head = [CHECKPOINT, "confirms", "n (effective)", "without a route", "F-SOUR, one search", "Guided",
            "Guided less F-SOUR, points", "opened, but answered wrongly: F-SOUR, Guided",
            "reached log tau: F-SOUR, Guided"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        ours, theirs = e["guided"], e["fsour"]
        return [[
            e["checkpoint"], "yes" if e["confirms"] else "no", asked(ours["asr"]), percent(ours["base"]),
            percent(theirs["asr_at_1"]), percent(ours["asr_at_1"]), _difference(e),
            *(f"{theirs[what]}, {ours[what]}" for what in ("answered_wrongly", "reached")),
        ]]  # fmt: skip

    return runs.table(head, rows)


def _difference(e: Evidence) -> str:
    """Paired; of searches with several restarts the difference is none of one search."""
    once = e["fsour"]["settings"]["restarts"] == e["guided"]["settings"]["restarts"] == 1
    return points(e["side_by_side"]["difference"]) if once else "-"


def effort(runs: Shown) -> str:
    head = [CHECKPOINT, "forwards, median: F-SOUR", "Guided", "F-SOUR / Guided", "forced pairs, median: F-SOUR",
            "Guided ", "seconds a request: F-SOUR", "Guided  ", "F-SOUR / Guided "]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        ours, theirs = e["side_by_side"]["guided"], e["side_by_side"]["fsour"]
        seconds = [_seconds(e, name) for name in ("fsour", "guided")]
        return [[
            e["checkpoint"], *_compared([theirs["forwards"], ours["forwards"]], lambda x: f"{x:,.0f}"),
            f"{theirs['pairs']:g}", f"{ours['pairs']:g}", *_compared(seconds, lambda x: f"{x:.3f}"),
        ]]  # fmt: skip

    return runs.table(head, rows)


def _seconds(e: Evidence, search: str) -> float:
    """Of one request, in the mean."""
    stage = next(stage for stage in e["cost"]["stages"] if stage["stage"] == search)
    return float(stage["seconds"]) / int(e[search]["asr"]["n"])


def _compared(pair: Sequence[float], said: Callable[[float], str]) -> list[str]:
    """Both, and how many times as large the first is."""
    theirs, ours = pair
    return [said(theirs), said(ours), f"{theirs / ours:.1f}" if ours else "-"]


def controls(runs: Shown) -> str:
    head = [CHECKPOINT, "search", "n (effective)", "its routes", "random routes", "route less random, points",
            "the claim", "natural experts forced", "the claim "]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        found = []
        for title, name in (("F-SOUR", "fsour"), ("Guided", "guided")):
            routes = e.get(name)
            if routes and routes["controls"]:
                random, natural = routes["difference_random"], routes["difference_natural"]
                found.append([
                    e["checkpoint"], title, asked(routes["asr"]), percent(routes["asr"]),
                    percent(routes["controls"]["random"]["asr"]), points(random), claim(random),
                    percent(routes["controls"]["natural"]["asr"]), claim(natural),
                ])  # fmt: skip
        return found

    return runs.table(head, rows, keys=2)


def universal_routes(runs: Shown) -> str:
    head = [CHECKPOINT, "places", "found on", "of these above log tau", "forwards", "n (effective), test",
            "without a route", "universal route", "any compliance", "random ones, mean", "best of them",
            "route less random, points", "the claim", "natural experts forced"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        found, draws = e["universal"], e["universal"]["draws"]
        return [[
            e["checkpoint"], str(len(found["places"])), str(found["prompts"]), str(found["reached"]["k"]),
            f"{found['forwards']:,.0f}", asked(found["asr"]), percent(e["base"]["asr"]), percent(found["asr"]),
            percent(found["any_compliance"]), percent(found["random"]["asr"]) if draws else "-",
            f"{100 * max(draws):.0f} % of {len(draws)}" if draws else "-", points(found["difference_random"]),
            claim(found["difference_random"]), percent(found["natural"]["asr"]),
        ]]  # fmt: skip

    return runs.table(head, rows)


def transfer(moved: Sequence[Evidence]) -> str:
    """What a route does to checkpoints that it was not found on."""
    head = ["found on", "asked of", "correct content", "any compliance", "random sets"]
    return table(head, [
        [one["found_on"], one["asked_of"], *(percent(one[rate]) for rate in ("asr", "any_compliance", "random"))]
        for one in moved if one["found_on"] != one["asked_of"]
    ])  # fmt: skip


def screen(runs: Shown) -> str:
    head = [CHECKPOINT, "prompts", "random masks", "Spearman", "Kendall tau", "top routers shared",
            "seconds a prompt: RoSais", "screen", "RoSais / screen"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        found, settings = e["rosais_settings"]["screen"], e["rosais_settings"]
        stages = {stage["stage"]: stage["seconds"] for stage in e["cost"]["stages"]}
        seconds = [stages["rosais"] / found["prompts"], stages["screen"] / settings["prompts"]]
        return [[
            e["checkpoint"], str(found["prompts"]), str(found["samples"]), _correlation(found),
            "-" if found["kendall"] is None else f"{found['kendall']:.2f}",
            f"{found['same_top']} of {found['top_n']}", *_compared(seconds, lambda x: f"{x:.3f}"),
        ]]  # fmt: skip

    return runs.table(head, rows)


def _correlation(found: Evidence) -> str:
    if found["spearman"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['spearman']:.2f}"
    return f"{found['spearman']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
