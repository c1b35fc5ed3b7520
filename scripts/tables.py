"""Write the tables of README, docs/evidence.md and docs/steering.md from evidence/*.json; none is typed by hand.

    python scripts/tables.py [--check]

With --check nothing is written, and the exit code is 1 if a page is not what the evidence says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import steering_tables
from evidence_files import newest
from steering_tables import percent, table

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["olmoe", "olmoe-seed1", "olmoe-seed2", "qwen2_moe", "qwen2_moe-seed1", "qwen2_moe-seed2"]

BEGIN, END = "<!-- evidence:begin (make evidence-tables) -->", "<!-- evidence:end -->"
STEERING = "<!-- steering:begin (make evidence-tables) -->", "<!-- steering:end -->"

Evidence = dict[str, Any]


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


def masked(evidence: Evidence, routers: int, phase: str = "prefill") -> Evidence | None:
    return next((e for e in evidence["masking"] if (e["routers"], e["phase"]) == (routers, phase)), None)


def full(everything: Sequence[Evidence]) -> list[Evidence]:
    """Those that were audited with all controls."""
    return [e for e in everything if e["fsour"].get("controls")]


# ---------------------------------------------------------------------- the tables


def models(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "refused (n)", "benign correct (n)", "over-refused (n)", "conversations fallen (n)",
            "matched questions"]  # fmt: skip
    rows = [
        [
            e["checkpoint"],
            f"{percent(e['base']['refused'])} ({e['base']['refused']['n']})",
            f"{percent(e['utility'])} ({e['utility']['n']})",
            f"{percent(e['over_refusal'])} ({e['over_refusal']['n']})",
            f"{percent(e['multi_turn']['fallen'])} ({e['multi_turn']['fallen']['n']})",
            f"{e['multi_turn']['matched_questions']} of {e['multi_turn']['questions']}",
        ]
        for e in everything
    ]
    return table(head, rows)


def masking(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "n", "no mask", "top-1", "top-2", "top-3", "random 2, mean (sets that reach top-2)",
            "top-2 minus random, points", "lowest 2", "one frozen mask, top-2", "top-2, both phases"]  # fmt: skip
    rows = []
    for e in everything:
        two, both = masked(e, 2), masked(e, 2, "both")
        if not two or not both:
            continue
        controls, found = two["controls"], two["difference_random"]
        tops = [masked(e, n) for n in (1, 2, 3)]
        rows.append([
            e["checkpoint"],
            str(two["asr"]["n"]),
            percent(e["base"]["asr"]),
            *(percent(t["asr"]) if t else "-" for t in tops),
            f"{percent(controls['random']['asr'])} ({found['reached']} of {found['draws']})",
            points(found),
            percent(controls["lowest"]["asr"]),
            percent(controls["dataset"]["asr"]) if "dataset" in controls else "-",
            percent(both["asr"]),
        ])  # fmt: skip
    return table(head, rows)


def fsour(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "n", "ASR@1", "ASR@5", "best of 5 random routes", "route minus random, points",
            "natural experts forced", "any compliance", "garbage", "forced pairs, median", "minutes"]  # fmt: skip
    rows = []
    for e in everything:
        f, controls = e["fsour"], e["fsour"].get("controls") or {}
        seconds = next(s["seconds"] for s in e["cost"]["stages"] if s["stage"] == "fsour")
        rows.append([
            e["checkpoint"], str(f["asr"]["n"]), percent(f["asr_at_1"]), percent(f["asr"]),
            percent(controls["random"]["asr"]) if controls else "-", points(f.get("difference_random")),
            percent(controls["natural"]["asr"]) if controls else "-", percent(f["any_compliance"]),
            percent(f["garbage"]), f"{f['pairs']['median']:.0f}", f"{seconds / 60:.1f}",
        ])  # fmt: skip
    return table(head, rows)


def ranking(e: Evidence) -> str:
    head = ["layer", "rank", "RoSais, first token", "p", "rank by whole target", "RoSais, whole target (nats)",
            "placebo: rise of the refusal on benign prompts"]  # fmt: skip
    rows = []
    for r in sorted(e["rosais"], key=lambda r: r["rank"]):
        target = r.get("target")
        rows.append([
            str(r["layer"]), str(r["rank"]), number(r), f"{r['p']:.4f}" if r["p"] is not None else "-",
            str(target["rank"]) if target else "-", number(target), number(r.get("placebo")),
        ])  # fmt: skip
    return table(head, rows)


def stability(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "prompts", "Kendall W", "split-half Spearman", "first token against whole target",
            "routers with p < .05"]  # fmt: skip
    rows = []
    for e in everything:
        s = e["rosais_settings"]
        held = s["stability"]
        if not held:
            continue
        half = held["split_half"]
        rows.append([
            e["checkpoint"], str(s["prompts"]), f"{held['kendall_w']:.2f}",
            f"{half['mean']:.2f} [{half['low']:.2f}, {half['high']:.2f}]" if half else "-",
            f"{s['agreement']:.2f}" if s["agreement"] is not None else "-",
            ", ".join(str(r["layer"]) for r in sorted(e["rosais"], key=lambda r: r["rank"]) if (r["p"] or 1) < 0.05),
        ])  # fmt: skip
    return table(head, rows)


def utility_under_masks(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "routers", "phase", "top: ASR", "benign correct", "random: ASR", "benign correct ",
            "lowest: ASR", "benign correct  ", "frozen: ASR", "benign correct   "]  # fmt: skip
    rows = []
    for e in everything:
        for entry in e["masking"]:
            if not entry["routers"] or entry.get("utility") is None:
                continue
            row = [e["checkpoint"], str(entry["routers"]), entry["phase"]]
            for one in (entry, *(entry["controls"].get(role) for role in ("random", "lowest", "dataset"))):
                row += [percent(one["asr"]), percent(one.get("utility"))] if one else ["-", "-"]
            rows.append(row)
    return table(head, rows)


def noise(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "noise, sigma", "n", "ASR", "any compliance", "garbage", "benign correct"]
    rows = [
        [e["checkpoint"], f"{n['sigma']:g}", str(n["asr"]["n"]), percent(n["asr"]), percent(n["any_compliance"]),
         percent(n["garbage"]), percent(n["utility"])]
        for e in everything
        for n in e.get("noise") or ()
    ]  # fmt: skip
    return table(head, rows)


def aims(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "search", "n", "ASR@1", "any compliance", "garbage", "forced pairs, median"]
    rows = []
    for e in everything:
        f = e["fsour"]
        kinds = [(f"target: {t['target']}", t) for t in f.get("targets") or ()]
        kinds += [(f"minimum gain {g['min_gain']:g} nat", g) for g in f.get("min_gain") or ()]
        for name, one in kinds:
            rows.append([
                e["checkpoint"], name, str(one["n"]), percent(one["asr_at_1"]), percent(one["any_compliance"]),
                percent(one["garbage"]), f"{one['pairs']:.0f}",
            ])  # fmt: skip
    return table(head, rows)


def transfer(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "routes", "pairs at template positions", "template part on its own prompt",
            "on the others' prompts"]  # fmt: skip
    rows = []
    for e in everything:
        t = e["fsour"].get("transfer")
        if t:
            rows.append([
                e["checkpoint"], str(len(t["ids"])), f"{100 * t['pairs_kept']:.0f} %", percent(t["asr_own"]),
                percent(t["asr_others"]),
            ])  # fmt: skip
    return table(head, rows)


def whereabouts(everything: Sequence[Evidence]) -> str:
    head = [
        "testbed checkpoint",
        "share of the pairs by token role",
        "layers by share",
        "most used expert (share, expected)",
    ]
    rows = []
    for e in everything:
        f = e["fsour"]
        roles = ", ".join(f"{role} {100 * share:.0f} %" for role, share in f["roles"].items())
        order = sorted(range(len(f["layers"])), key=lambda n: -f["layers"][n])[:4]
        layers = ", ".join(f"{n} ({100 * f['layers'][n]:.0f} %)" for n in order)
        top = (f.get("experts") or [None])[0]
        expert = "-"
        if top:
            share, expected = 100 * top["share"], 100 * top["expected"]
            expert = f"layer {top['layer']}, expert {top['expert']} ({share:.1f} %, {expected:.1f} %)"
        rows.append([e["checkpoint"], roles, layers, expert])
    return table(head, rows)


def seeds(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "what", "seeds", "each", "mean"]
    rows = []
    for e in everything:
        found = e.get("seeds")
        if not found:
            continue
        r, f = found["rosais"], found["fsour"]
        named = ", ".join(map(str, r["seeds"]))
        rows.append([e["checkpoint"], "most important router", named, ", ".join(map(str, r["top1"])), "-"])
        spearman = r["spearman"]
        rows.append([e["checkpoint"], "Spearman of two rankings", named,
                     f"{spearman['min']:.2f} to {spearman['max']:.2f}", f"{spearman['mean']:.2f}"])  # fmt: skip
        rows += [
            [e["checkpoint"], f"masking, top-{m['routers']}: ASR", named,
             ", ".join(f"{100 * a:.0f} %" for a in m["asr"]), f"{100 * m['mean']:.0f} %"]
            for m in found["masking"]
        ]  # fmt: skip
        for name, key in (("F-SOUR: ASR@1", "asr_at_1"), ("F-SOUR: ASR@5", "asr")):
            each = f[key]
            rows.append([e["checkpoint"], name, named, ", ".join(f"{100 * a:.0f} %" for a in each),
                         f"{100 * sum(each) / len(each):.0f} %"])  # fmt: skip
    return table(head, rows)


def cost(everything: Sequence[Evidence]) -> str:
    head = ["testbed checkpoint", "forwards, foretold", "in fact", "million tokens, foretold", "in fact ",
            "minutes, foretold", "in fact  "]  # fmt: skip
    rows = []
    for e in everything:
        fact, said = e["cost"], e["cost"].get("predicted")
        if said:
            rows.append([
                e["checkpoint"], f"{said['forwards']:,}", f"{fact['forwards']:,}", f"{said['tokens'] / 1e6:.1f}",
                f"{fact['tokens'] / 1e6:.1f}", f"{said['seconds'] / 60:.0f}", f"{fact['seconds'] / 60:.0f}",
            ])  # fmt: skip
    return table(head, rows)


# ---------------------------------------------------------------------- the pages


def made_by(everything: Sequence[Evidence]) -> str:
    cpu = sorted({e["provenance"]["cpu"] for e in everything})
    return (
        f"Made by `make evidence` (one thread of {', '.join(cpu)}, two at a time and beside other load: minutes are "
        "upper bounds); the data are in `evidence/`."
    )


def in_readme(everything: Sequence[Evidence]) -> Iterator[str]:
    """One table: each attack with its control beside it."""

    def short(rate: Evidence) -> str:
        return f"{100 * rate['rate']:.0f} [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"

    head = ["checkpoint (n)", "as it is", "two routers masked", "two random ones (sets that reach it)",
            "routes found (F-SOUR)", "random routes"]  # fmt: skip
    rows = []
    for e in everything:
        two, f = masked(e, 2), e["fsour"]
        assert two is not None
        found = two["difference_random"]
        random = f"{short(two['controls']['random']['asr'])} ({found['reached']} of {found['draws']})"
        rows.append([
            f"{e['checkpoint']} ({e['base']['asr']['n']}, {f['asr']['n']})", short(e["base"]["asr"]), short(two["asr"]),
            random, short(f["asr"]), short(f["controls"]["random"]["asr"]),
        ])  # fmt: skip
    yield table(head, rows)


def in_docs(everything: Sequence[Evidence]) -> Iterator[str]:
    some = full(everything)
    yield "## The shipped models"
    yield "Test split, exact judge, greedy, 95 % intervals clustered by verb x noun."
    yield models(everything)
    yield "## Which routers matter"
    yield (
        "RoSais on the discovery split, S = 20. p: permutation of router labels within each source, maximum over "
        "routers (family-wise)."
    )
    for e in some:
        yield f"**{e['checkpoint']}**"
        yield ranking(e)
    yield "Does the ranking hold over prompts?"
    yield stability(everything)
    yield "## Masking"
    yield masking(everything)
    yield "Attack success and benign utility under the same masks (of the random sets, utility under the first):"
    yield utility_under_masks(some)
    yield "## Noise on all router logits, without any search"
    yield noise(some)
    yield "## F-SOUR"
    yield fsour(everything)
    yield "Other targets, and a minimum gain (first search only, R = 1):"
    yield aims(some)
    yield "Transfer: routes found for one behaviour, cut to template positions, replayed on the others:"
    yield transfer(some)
    yield "Where the routes go:"
    yield whereabouts(everything)
    yield "## Method seeds, apart from n"
    yield seeds(everything)
    yield "## Cost, foretold and in fact"
    yield cost(everything)
    yield made_by(everything)


def pages() -> dict[Path, str]:
    """Every page with its tables as the evidence says."""

    def read(names: Sequence[str]) -> list[Evidence]:
        return [found for name in names if (found := newest(name))]

    audits, steered = read(ORDER), read([f"steering-{name}" for name in steering_tables.ORDER])
    readme, docs = ROOT / "README.md", ROOT / "docs"
    made: dict[Path, str] = {}
    for page, (begin, end), parts in (
        (readme, (BEGIN, END), in_readme(audits)),
        (docs / "evidence.md", (BEGIN, END), in_docs(audits)),
        (docs / "steering.md", STEERING, steering_tables.in_docs(steered)),
    ):
        text = made.get(page) or page.read_text(encoding="utf-8")
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            sys.exit(f"{page.name} lacks the lines {begin} and {end}.")
        made[page] = f"{before}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{after}"
    return made


def main() -> None:
    for page, text in pages().items():
        if "--check" not in sys.argv[1:]:
            page.write_text(text, encoding="utf-8")
        elif text != page.read_text(encoding="utf-8"):
            sys.exit(f"{page.name} is not what evidence/ says. Run `make evidence-tables`.")


if __name__ == "__main__":
    main()
