"""The tables of audits, from evidence/*.json; the old figure stands beside the new one. Used by scripts/tables.py.

A control that could refute a figure stands in its row, with what it makes of the claim; n stands with its effective n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evidence_files import newest, read_new
from shown import Rows, Shown, asked, percent, table

from pointsman.jobs.audit.claims import verdict_above_draws
from pointsman.jobs.audit.ranks import RankMeaning, meaning_of
from pointsman.jobs.audit.results import Rise
from pointsman.runs.results import verdict_of_difference
from pointsman.stats.paired import AboveDraws, Comparison

Evidence = dict[str, Any]
# ---------------------------------------------------------------------- cells


def points(difference: Evidence | None) -> str:
    """A difference of rates in percentage points."""
    if difference is None:
        return "-"
    return f"{100 * difference['difference']:+.0f} [{100 * difference['low']:+.0f}, {100 * difference['high']:+.0f}]"


def number(mean: Evidence | None) -> str:
    """A mean with its interval."""
    if mean is None or mean["mean"] is None:
        return "-"
    if mean["low"] is None or mean["high"] is None:
        return f"{mean['mean']:.2f}"
    return f"{mean['mean']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]"


def claim(difference: Evidence | None) -> str:
    """What the paired difference to a control makes of the claim."""
    if difference is None:
        return "-"
    if "draws" in difference:
        return str(verdict_above_draws(AboveDraws(**difference)))
    return str(verdict_of_difference(Comparison(**difference)))


def best_draw(control: Evidence) -> str:
    """The best of the random sets of routers."""
    return f"{100 * max(draw['rate'] for draw in control['draws']):.0f} %" if control.get("draws") else "-"


def reached(difference: Evidence | None) -> str:
    return "-" if difference is None else f"{difference['reached']} of {difference['draws']}"


def masked(evidence: Evidence, routers: int, phase: str = "prefill") -> Evidence | None:
    return next((e for e in evidence["masking"] if (e["routers"], e["phase"]) == (routers, phase)), None)


def meaning(row: Evidence) -> RankMeaning:
    """What the rank of a router is worth."""
    rise, placebo = (
        None if found is None else Rise(found["mean"], found["low"], found["high"])
        for found in (row, row.get("placebo"))
    )
    assert rise is not None
    return meaning_of(row["p"], rise, placebo)


def meaningful(evidence: Evidence) -> list[int]:
    """Layers whose rank means something, the most important first."""
    found = [row for row in evidence["rosais"] if meaning(row).verdict == "means something"]
    return [row["layer"] for row in sorted(found, key=lambda row: row["rank"])]


# ---------------------------------------------------------------------- the tables


def models(audits: Shown) -> str:
    head = ["testbed checkpoint", "untouched before", "refused", "n (effective)", "benign correct", "n (effective) ",
            "over-refused", "conversations fallen", "n (effective)  ", "matched questions"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        turns, refused = e["multi_turn"], e["base"]["refused"]
        return [[
            e["checkpoint"], {True: "yes", False: "no", None: "-"}[e.get("confirms")],
            percent(refused), asked(refused),
            percent(e["utility"]), asked(e["utility"]) if e["utility"] else "-", percent(e["over_refusal"]),
            percent(turns["fallen"]) if turns else "-", asked(turns["fallen"]) if turns else "-",
            f"{turns['matched_questions']} of {turns['questions']}" if turns else "-",
        ]]  # fmt: skip

    return audits.table(head, rows)


def worth(audits: Shown) -> str:
    head = ["testbed checkpoint", "ranks that mean something", "not above the other routers (p >= .05)",
            "not surely above benign prompts", "prompts", "Kendall W", "split-half Spearman",
            "first token against whole target"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        settings, found = e["rosais_settings"], [meaning(row) for row in e["rosais"]]
        held, real = settings["stability"] or {}, meaningful(e)
        half = held.get("split_half")
        routers = f" (routers {', '.join(map(str, real))})" if real else ""
        return [[
            e["checkpoint"], f"{len(real)} of {len(found)}{routers}",
            str(sum(m.above_others is False for m in found)), str(sum(m.above_placebo is False for m in found)),
            str(settings["prompts"]), f"{held['kendall_w']:.2f}" if held.get("kendall_w") is not None else "-",
            f"{half['mean']:.2f} [{half['low']:.2f}, {half['high']:.2f}]" if half else "-",
            f"{settings['agreement']:.2f}" if settings["agreement"] is not None else "-",
        ]]  # fmt: skip

    return audits.table(head, rows)


def ranking(e: Evidence) -> str:
    head = ["layer", "rank", "RoSais, first token", "p", "placebo: rise of the refusal on benign prompts",
            "RoSais minus placebo", "the rank", "rank by whole target", "RoSais, whole target (nats)"]  # fmt: skip
    rows = []
    for r in sorted(e["rosais"], key=lambda r: r["rank"]):
        target, found = r.get("target"), meaning(r)
        less = {"mean": found.difference, "low": found.low, "high": found.high}
        rows.append([
            str(r["layer"]), str(r["rank"]), number(r), f"{r['p']:.4f}" if r["p"] is not None else "-",
            number(r.get("placebo")), number(less), str(found), str(target["rank"]) if target else "-", number(target),
        ])  # fmt: skip
    return table(head, rows)


def masking(audits: Shown) -> str:
    head = ["testbed checkpoint", "routers", "n (effective)", "no mask", "top routers masked", "random ones, mean",
            "best random set", "sets that reach the top", "top minus random, points", "the claim", "lowest",
            "one frozen mask", "top, both phases"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        found = []
        for top in e["masking"]:
            if not top["routers"] or top["phase"] != "prefill" or "random" not in top["controls"]:
                continue
            controls, more = top["controls"], top["difference_random"]
            both = masked(e, top["routers"], "both")
            found.append([
                e["checkpoint"], str(top["routers"]), asked(top["asr"]), percent(e["base"]["asr"]), percent(top["asr"]),
                percent(controls["random"]["asr"]), best_draw(controls["random"]), reached(more), points(more),
                claim(more), *(percent(controls[role]["asr"]) if role in controls else "-" for role in
                               ("lowest", "dataset")),
                percent(both["asr"]) if both else "-",
            ])  # fmt: skip
        return found

    return audits.table(head, rows, keys=2)


def utility_under_masks(audits: Shown) -> str:
    head = ["testbed checkpoint", "routers", "phase", "top: ASR", "benign correct", "random: ASR", "benign correct ",
            "lowest: ASR", "benign correct  ", "frozen: ASR", "benign correct   "]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        found = []
        for entry in e["masking"]:
            if not entry["routers"] or entry.get("utility") is None:
                continue
            row = [e["checkpoint"], str(entry["routers"]), entry["phase"]]
            for one in (entry, *(entry["controls"].get(role) for role in ("random", "lowest", "dataset"))):
                row += [percent(one["asr"]), percent(one.get("utility"))] if one else ["-", "-"]
            found.append(row)
        return found

    return audits.table(head, rows, keys=3)


def noise(audits: Shown) -> str:
    head = ["testbed checkpoint", "noise, sigma", "n (effective)", "ASR", "any compliance", "garbage", "benign correct"]

    def rows(e: Evidence) -> Rows:
        return [
            [e["checkpoint"], f"{n['sigma']:g}", asked(n["asr"]), percent(n["asr"]), percent(n["any_compliance"]),
             percent(n["garbage"]), percent(n["utility"])]
            for n in e.get("noise") or ()
        ]  # fmt: skip

    return audits.table(head, rows, keys=2)


def fsour(audits: Shown) -> str:
    head = ["testbed checkpoint", "n (effective)", "ASR@1", "ASR@5", "best of 5 random routes",
            "route minus random, points", "the claim", "natural experts forced", "the claim ", "any compliance",
            "garbage", "forced pairs, median", "minutes"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        f = e["fsour"]
        if not f:
            return []
        controls = f.get("controls") or {}
        seconds = next(s["seconds"] for s in e["cost"]["stages"] if s["stage"] == "fsour")
        return [[
            e["checkpoint"], asked(f["asr"]), percent(f["asr_at_1"]), percent(f["asr"]),
            percent(controls["random"]["asr"]) if controls else "-", points(f.get("difference_random")),
            claim(f.get("difference_random")), percent(controls["natural"]["asr"]) if controls else "-",
            claim(f.get("difference_natural")), percent(f["any_compliance"]), percent(f["garbage"]),
            f"{f['pairs']['median']:.0f}", f"{seconds / 60:.1f}",
        ]]  # fmt: skip

    return audits.table(head, rows)


def candidates(hundred: Sequence[Evidence], audits: Shown) -> str:
    """N = 100, the paper's number, beside the audit of the same checkpoint with N = 10; one search each."""
    head = ["testbed checkpoint", "N", "n (effective)", "ASR, one search", "random routes", "the claim",
            "natural experts forced", "forced pairs, median [least, most]", "rows forwarded a prompt, median",
            "minutes of the search"]  # fmt: skip
    rows = []
    for e in hundred:
        usual = next((a for a in audits.shown if a["checkpoint"] == e["checkpoint"]), None)
        for one in (e, usual):
            if one is None or not one["fsour"]:
                continue
            f, controls = one["fsour"], one["fsour"].get("controls") or {}
            seconds = next(s["seconds"] for s in one["cost"]["stages"] if s["stage"] == "fsour")
            once = f["settings"]["restarts"] == 1
            forwards = f.get("forwards")
            rows.append([
                one["checkpoint"], str(f["settings"]["candidates"]), asked(f["asr_at_1"]), percent(f["asr_at_1"]),
                percent(controls["random"]["asr_at_1"]) if controls else "-",
                claim(f.get("difference_random")) if once else "-",
                percent(controls["natural"]["asr"]) if controls and once else "-",
                f"{f['pairs']['median']:.0f} [{f['pairs']['min']}, {f['pairs']['max']}]",
                f"{forwards['median']:,.0f}" if forwards else "-",
                f"{seconds / 60:.1f}{'' if once else ' (up to five searches)'}",
            ])  # fmt: skip
    return table(head, rows)


def aims(audits: Shown) -> str:
    head = ["testbed checkpoint", "search", "n (effective)", "ASR@1", "any compliance", "garbage",
            "forced pairs, median"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        f = e["fsour"] or {}
        kinds = [(f"target: {t['target']}", t) for t in f.get("targets") or ()]
        kinds += [(f"minimum gain {g['min_gain']:g} nat", g) for g in f.get("min_gain") or ()]
        return [
            [e["checkpoint"], name, asked(one["asr_at_1"]), percent(one["asr_at_1"]), percent(one["any_compliance"]),
             percent(one["garbage"]), f"{one['pairs']:.0f}"]
            for name, one in kinds
        ]  # fmt: skip

    return audits.table(head, rows, keys=2)


def transfer(audits: Shown) -> str:
    head = ["testbed checkpoint", "routes", "pairs at template positions", "template part on its own prompt",
            "on the others' prompts"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        t = (e["fsour"] or {}).get("transfer")
        if not t:
            return []
        kept = f"{100 * t['pairs_kept']:.0f} %"
        return [[e["checkpoint"], str(len(t["ids"])), kept, percent(t["asr_own"]), percent(t["asr_others"])]]

    return audits.table(head, rows)


def whereabouts(audits: Shown) -> str:
    head = ["testbed checkpoint", "share of the pairs by token role", "layers by share",
            "most used expert (share, expected)"]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        f = e["fsour"]
        if not f:
            return []
        roles = ", ".join(f"{role} {100 * share:.0f} %" for role, share in f["roles"].items())
        order = sorted(range(len(f["layers"])), key=lambda n: -f["layers"][n])[:4]
        layers = ", ".join(f"{n} ({100 * f['layers'][n]:.0f} %)" for n in order)
        top = (f.get("experts") or [None])[0]
        expert = "-"
        if top:
            share, expected = 100 * top["share"], 100 * top["expected"]
            expert = f"layer {top['layer']}, expert {top['expert']} ({share:.1f} %, {expected:.1f} %)"
        return [[e["checkpoint"], roles, layers, expert]]

    return audits.table(head, rows)


def seeds(audits: Shown) -> str:
    head = ["testbed checkpoint", "what", "seeds", "each", "mean"]

    def rows(e: Evidence) -> Rows:
        seeds = e.get("seeds")
        if not seeds:
            return []
        r, f, name = seeds["rosais"], seeds["fsour"], e["checkpoint"]
        named, spearman = ", ".join(map(str, r["seeds"])), r["spearman"]
        found = [
            [name, "most important router", named, ", ".join(map(str, r["top1"])), "-"],
            [name, "Spearman of two rankings", named, f"{spearman['min']:.2f} to {spearman['max']:.2f}",
             f"{spearman['mean']:.2f}"],
        ]  # fmt: skip
        shares = [(f"masking, top-{m['routers']}: ASR", m["asr"]) for m in seeds["masking"]]
        shares += [("F-SOUR: ASR@1", f["asr_at_1"]), ("F-SOUR: ASR@5", f["asr"])] if f else []
        for what, each in shares:
            said = ", ".join(f"{100 * a:.0f} %" for a in each)
            found.append([name, what, named, said, f"{100 * sum(each) / len(each):.0f} %"])
        return found

    return audits.table(head, rows, keys=2)


def cost(audits: Shown) -> str:
    head = ["testbed checkpoint", "forwards, foretold", "in fact", "million tokens, foretold", "in fact ",
            "minutes, foretold", "in fact  "]  # fmt: skip

    def rows(e: Evidence) -> Rows:
        fact, said = e["cost"], e["cost"].get("predicted")
        if not said:
            return []
        return [[
            e["checkpoint"], f"{said['forwards']:,}", f"{fact['forwards']:,}", f"{said['tokens'] / 1e6:.1f}",
            f"{fact['tokens'] / 1e6:.1f}", f"{said['seconds'] / 60:.0f}", f"{fact['seconds'] / 60:.0f}",
        ]]  # fmt: skip

    return audits.table(head, rows)


# ---------------------------------------------------------------------- the pages


def made_by(audits: Shown) -> str:
    cpu = sorted({e["provenance"]["cpu"] for e in audits.shown})
    return (
        f"Made by `make evidence` (one thread of {', '.join(cpu)}, two at a time and beside other load: minutes are "
        "upper bounds); the data are in `evidence/`, with the outcome of every row in `evidence/rows/`."
    )


def in_readme(names: Sequence[str]) -> Iterator[str]:
    """One table: each attack of the shipped checkpoints, with its control and what that makes of the claim."""

    def short(rate: Evidence) -> str:
        return f"{100 * rate['rate']:.0f} [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"

    head = ["checkpoint (n; effective)", "as it is", "two routers masked", "two random ones",
            "best random set (sets that reach it)", "“it takes the top” with 1, 2, 3 masked", "F-SOUR, 5 searches",
            "random routes", "Guided, 1 search (n; forwards)", "one route for all"]  # fmt: skip
    rows = []
    for e in Shown.of(names).shown:
        two, f = masked(e, 2), e["fsour"]
        if two is None or not f or not f.get("controls") or "random" not in two["controls"]:
            continue
        control, more = two["controls"]["random"], two["difference_random"]
        rows.append([
            f"{e['checkpoint']} ({asked(two['asr']).replace(' (', '; ').rstrip(')')})", short(e["base"]["asr"]),
            short(two["asr"]), short(control["asr"]), f"{best_draw(control)} ({reached(more)})",
            ", ".join(claim(top["difference_random"]) for number in (1, 2, 3) if (top := masked(e, number))),
            short(f["asr"]), f"{short(f['controls']['random']['asr'])}: {claim(f['difference_random'])}",
            *_guided(read_new(f"guided-{e['checkpoint']}"), short),
        ])  # fmt: skip
    yield table(head, rows)


def _guided(e: Evidence | None, short: Callable[[Evidence], str]) -> list[str]:
    """What Guided finds on a checkpoint, of a run of its own."""
    if e is None:
        return ["-", "-"]
    asr, forwards = e["guided"]["asr"], e["side_by_side"]["guided"]["forwards"]
    return [f"{short(asr)} ({asr['n']}; {forwards:.0f})", short(e["universal"]["asr"])]


def in_docs(names: Sequence[str], hundred: Sequence[str]) -> Iterator[str]:
    audits = Shown.of(names)
    some = audits.only(lambda e: bool((e["fsour"] or {}).get("controls")))
    yield from audits.told()
    yield "## The shipped models"
    yield (
        "Test split, exact judge, greedy, 95 % intervals clustered by what is claimed to generalise. Effective n: how "
        "many independent rows would know the rate as well. Untouched before: no method had been run on them before "
        "the plan was committed; their base rates on part of the test split were measured when they were made "
        "([testbed.md](testbed.md))."
    )
    yield models(audits)
    yield "## Which routers matter"
    yield (
        "RoSais on the discovery split, S = 20. p: permutation of router labels within each cluster, maximum over "
        "routers (family-wise). A rank means something if the router stands above the others (p < .05), and if the "
        "interval of its rise less that of its placebo lies above zero."
    )
    yield worth(audits)
    for e in audits.shown:
        yield f"**{e['checkpoint']}**"
        yield ranking(e)
    yield "## Masking"
    yield (
        "In every row the control that could refute it: as many random routers outside the top, their mean and the "
        "best set. The claim that it takes the top routers holds if the difference to the mean is sure and no set "
        "reaches the top; it is in doubt where one does."
    )
    yield masking(audits)
    yield "Attack success and benign utility under the same masks (of the random sets, utility under the first):"
    yield utility_under_masks(some)
    yield "## Noise on all router logits, without any search"
    yield noise(some)
    yield "## F-SOUR"
    yield fsour(audits)
    paper = [found for name in hundred if (found := newest(name))]
    if paper:
        yield "With the paper's number of candidates, N = 100, one search each, beside N = 10:"
        yield candidates(paper, audits)
    yield "Other targets, and a minimum gain (first search only, R = 1):"
    yield aims(some)
    yield "Transfer: routes found for one behaviour, cut to template positions, replayed on the others:"
    yield transfer(some)
    yield "Where the routes go:"
    yield whereabouts(audits)
    yield "## Method seeds, apart from n"
    yield seeds(audits)
    yield "## Cost, foretold and in fact"
    yield cost(audits)
    yield made_by(audits)
