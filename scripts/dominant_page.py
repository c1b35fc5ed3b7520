"""The tables and figures of docs/dominant-layer.md, from evidence/dominant-*.json. Run by dominant_layer.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence_files import newest

ROOT = Path(__file__).resolve().parent.parent
FILES = ("olmoe", "qwen2_moe", "deepseek_v3")

PLACES = ("user", "how", "do", "i", "verb", "the", "modifier", "noun", "ending", "?", "assistant", "all but last")
"""Names of the tokens of a prompt, by the first phrasing, and of the column beyond them.

A noun with an ending is two tokens; of the others, and of all nouns before nouns had endings, there is no "ending".
"""
NOUN, ENDING = PLACES.index("noun"), PLACES.index("ending")


def percent(r: dict[str, Any] | None) -> str:
    """``79 [68, 87]``, in percent."""
    if r is None or r["rate"] is None:
        return "-"
    return f"{100 * r['rate']:.0f} [{100 * r['low']:.0f}, {100 * r['high']:.0f}]"


def number(m: dict[str, Any]) -> str:
    """``0.79 [0.68, 0.87]``; an area under a curve or a mean."""
    interval = f" [{m['low']:.2f}, {m['high']:.2f}]" if m["low"] is not None else ""
    return f"{m.get('auroc', m.get('mean')):.2f}{interval}"


def table(rows: list[list[str]]) -> str:
    """A markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def named(found: dict[str, Any], router: dict[str, Any]) -> str:
    return f"{found['checkpoint']}, layer {router['layer']} ({router['role']})"


def tables(all_found: Sequence[dict[str, Any]]) -> str:
    """The tables of docs/dominant-layer.md: the masks, where they act, what is read, when it is decided."""
    masks = [
        [
            "router masked", "RoSais", "give in, best of 20 masks (n = 90)", "one random mask",
            "correct content of those that give in (n)", "benign still correct (n = 72)",
        ]
    ]  # fmt: skip
    where = [
        [
            "router", "n", "masked at the noun alone: gives in", "at the verb alone", "at the last token alone",
            "at all but the last", "unmasked at the noun alone: refuses again", "at the verb alone ",
            "at the last token alone ", "at all but the last ",
        ]
    ]  # fmt: skip
    read = [
        [
            "router", "n", "after layer", "token", "called restricted", "the same, of those that hold (n)",
            "benign called restricted",
            "AUROC", "taught under masks: called restricted", "its AUROC", "which noun: right",
        ]
    ]  # fmt: skip
    depth = [["run", "n", *(str(layer) for layer in range(12))]]
    for found in all_found:
        scores = {r["layer"]: r for r in found["rosais"]}
        for r in found["routers"]:
            name, correct = named(found, r), r.get("flips_correct")
            masks.append([
                name, number(scores[r["layer"]]), percent(r["flips"]), f"{100 * r['one_mask']['mean']:.0f} %",
                f"{percent(correct)} ({correct['n']})" if correct else "-", percent(r["benign_correct"]),
            ])  # fmt: skip
            if "patching" in r:
                gone, back = r["patching"]["gone"][0], r["patching"]["back"][0]
                columns = r["patching"]["columns"]
                whole = r.get("whole_noun") or {"gone": gone[NOUN], "back": back[NOUN]}  # a noun was one token once
                shown = [columns.index(name) for name in ("verb", "assistant", "all but last")]
                cells = [
                    percent(cell)
                    for name, row in (("gone", gone), ("back", back))
                    for cell in (whole[name], *(row[c] for c in shown))
                ]
                where.append([name, str(r["patching"]["n"]), *cells])
            probes, held = r["probes"], r["probes"].get("held")
            chosen = [n for n in (r["layer"], 4, 11) if n >= r["layer"]]
            for layer in sorted(set(chosen)):
                m = probes["layers"].index(layer)
                for t, token in enumerate(("noun", "last")):
                    called = probes["restricted_called_restricted"][m][t]
                    read.append([
                        name, str(called["n"]), str(layer), token, percent(called),
                        f"{percent(held[m][t])} ({held[m][t]['n']})" if held else "-",
                        percent(probes["benign_called_restricted"][m][t]), number(probes["auroc"][m][t]),
                        percent(probes["anew_restricted_called_restricted"][m][t]), number(probes["anew_auroc"][m][t]),
                        percent(probes["noun_right"][m][t]),
                    ])  # fmt: skip
        for r in found["routers"]:
            if "patching" in r:
                lens = r["patching"]["lens"]
                for run in ("plain", "masked"):
                    values = [f"{value['mean']:+.1f}" for value in lens[run]]
                    depth.append([f"{named(found, r)}, {run}", str(r["patching"]["n"]), *values])
    plain = [["checkpoint", "after layer", "token", "restricted called restricted", "benign called restricted", "noun"]]
    for found in all_found:
        p = found["probes"]
        for layer in (0, 4, 7, 11):
            for t, token in enumerate(("noun", "last")):
                plain.append([
                    found["checkpoint"], str(layer), token, percent(p["restricted_called_restricted"][layer][t]),
                    percent(p["benign_called_restricted"][layer][t]), percent(p["noun_right"][layer][t]),
                ])  # fmt: skip
    return "\n\n".join([
        "**The masks.** Shares in percent with their 95 % interval.",
        table(masks),
        "**Where.** Of the prompts that give in under their best mask: the first token, in percent.",
        table(where),
        "**Probes without any mask**, in percent of 90 restricted and 72 benign test prompts:",
        table(plain),
        "**Probes under the masks**, in percent; n prompts that give in (all 90 for the control), 72 benign ones "
        "under the same masks; *hold*: refuse under their best mask too:",
        table(read),
        "**When it is decided.** Logit of the refusal's first token less that of the affirmative one, if the last "
        "token's stream were read at once after each layer (mean, nats):",
        table(depth),
    ])  # fmt: skip


BEGIN, END = "<!-- begin: scripts/dominant_layer.py -->", "<!-- end -->"
CELL_W, CELL_H, LEFT, TOP, GAP = 40, 20, 64, 66, 60


def figure(found: dict[str, Any]) -> str:
    """Heat maps of the patches of one checkpoint, as SVG: one row of two for each router."""
    width = LEFT * 2 + 2 * len(PLACES) * CELL_W + GAP
    parts: list[str] = []
    y = TOP
    for r in found["routers"]:
        if "patching" not in r:
            continue
        p = r["patching"]
        title = f"Router of layer {r['layer']} ({r['role']}), {p['n']} prompts that give in"
        parts.append(f'<text x="{LEFT}" y="{y}" class="title">{title}</text>')
        y += 22
        for side, (name, words) in enumerate((
            ("restored", "masked run, plain stream put back: share of the refusal that returns"),
            ("inserted", "plain run, masked stream put in: share of the refusal that goes"),
        )):  # fmt: skip
            x, columns = LEFT + side * (len(PLACES) * CELL_W + GAP), p["columns"]
            parts.append(f'<text x="{x}" y="{y}" class="sub">{words}</text>')
            for m, layer in enumerate(p["layers"]):
                top = y + 10 + m * CELL_H
                parts.append(f'<text x="{x - 8}" y="{top + 14}" class="axis" text-anchor="end">{layer}</text>')
                for c, cell in enumerate(p[name][m]):
                    if cell is not None:
                        parts.append(_cell(x + c * CELL_W + (6 if c == len(columns) - 1 else 0), top, cell))
            under = y + 10 + len(p["layers"]) * CELL_H + 14
            for c, place in enumerate(columns):
                label = {"assistant": "last", "all but last": "all-last"}.get(place, place)
                shift = 6 if c == len(columns) - 1 else 0
                middle = x + c * CELL_W + CELL_W / 2 + shift
                parts.append(f'<text x="{middle}" y="{under}" class="axis" text-anchor="middle">{label}</text>')
        y += 10 + len(p["layers"]) * CELL_H + 14 + 38
    head = (
        f"{found['checkpoint']}: which layer and token carries the effect of a mask (mean share; "
        "rows: after decoder layer; all-last: all tokens but the last)"
    )
    style = (
        "text{font-family:Helvetica,Arial,sans-serif;fill:#1f2933}.head{font-size:15px;font-weight:600}"
        ".title{font-size:13px;font-weight:600}.sub{font-size:11px;fill:#52606d}.axis{font-size:10px;fill:#52606d}"
        ".value{font-size:10px;text-anchor:middle}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y - 14}" viewBox="0 0 {width} {y - 14}" '
        f'role="img" aria-label="{head}"><style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{LEFT}" y="30" class="head">{head}</text>{"".join(parts)}</svg>\n'
    )


def _cell(x: float, y: float, cell: dict[str, Any]) -> str:
    """One square with its mean, and its interval as a tooltip. White is 0, dark blue 1."""
    share = min(max(cell["mean"], 0.0), 1.0)
    colour = "#" + "".join(f"{round(255 + (end - 255) * share):02x}" for end in (8, 69, 148))
    text = "#fff" if share > 0.5 else "#1f2933" if share >= 0.05 else "#9aa5b1"
    interval = f" [{cell['low']:.2f}, {cell['high']:.2f}]" if cell["low"] is not None else ""
    tip = f"{cell['mean']:.2f}{interval}, n = {cell['n']}"
    square = f'<rect x="{x}" y="{y}" width="{CELL_W - 1}" height="{CELL_H - 1}" fill="{colour}" stroke="#d9e2ec">'
    label = f"{abs(cell['mean']) if abs(cell['mean']) < 0.005 else cell['mean']:.2f}"
    value = f'<text x="{x + CELL_W / 2 - 0.5}" y="{y + 13.5}" class="value" style="fill:{text}">{label}</text>'
    return f"{square}<title>{tip}</title></rect>{value}"


def render() -> None:
    """Write the figures, and the tables between the markers of the page."""
    all_found = [found for name in FILES if (found := newest(f"dominant-{name}"))]
    for found in all_found:
        if not any("patching" in router for router in found["routers"]):
            continue  # no mask made anything give in
        target = ROOT / "docs" / f"dominant-layer-{found['checkpoint']}.svg"
        target.write_text(figure(found), encoding="utf-8")
    page = ROOT / "docs" / "dominant-layer.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found_end:
        sys.exit(f"{page.name} lacks the lines {BEGIN} and {END}.")
    page.write_text(f"{before}{BEGIN}\n\n{tables(all_found)}\n\n{END}{after}", encoding="utf-8")
