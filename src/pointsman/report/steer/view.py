"""What the page of a steer run says, section by section, as plain data for the templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pointsman.report.common import (
    THREATS,
    Card,
    answers_section,
    cost_section,
    experts_count,
    interval_methods,
    judge_text,
    resumes_text,
    words,
)
from pointsman.report.geometry import rate_bar
from pointsman.report.steer.circuit import circuit
from pointsman.report.steer.frontier import frontier
from pointsman.report.steer.outcomes import (
    BROKEN,
    KEPT,
    OPEN,
    arms,
    before_after,
    by_group,
    common_n,
    limited,
    turns,
)
from pointsman.report.steer.stand import claims
from pointsman.report.steer.surrogate import contexts, gap, surrogate
from pointsman.report.steer.words import (
    COSTS,
    PHASES,
    Words,
    many,
    measure_name,
    method_name,
    points,
    settings_text,
    words_of,
)
from pointsman.report.values import MISSING, NARROW, Node, Rate, is_testbed, labels, show

SPLIT_NAMES = {
    "conversations": "conversations",
    "restricted": "restricted requests",
    "scenario": "requests of the scenario",
    "benign": "benign requests",
    "benign_conversations": "benign conversations",
    "borderline": "borderline requests",
}


def steer_view(results: Node, completions: Iterable[Mapping[str, Any]] | None, *, show_text: bool) -> dict[str, Any]:
    """Everything that `steer/page.html.j2` needs; raises `RunError` where results are incomplete."""
    said = words_of(results)
    threat = results["threat_model"].text()
    marks = labels(results)
    answers, unreadable = answers_section(completions)
    scenario = results["scenario"]
    about = scenario.get("description")
    artefact = results.get("artefact")
    return {
        "words": said,
        "model": results["model"]["name"].text(),
        "headline": results["headline"].text(),
        "scenario": scenario["name"].text(),
        "description": about.text() if about else "",
        "threat": threat,
        "threat_means": THREATS.get(threat, ""),
        "judge": judge_text(results),
        "grades_content": bool(results["judge"]["grades_content"].value),
        "labels": marks,
        "tag": " · ".join(marks),
        "testbed": is_testbed(results),
        "small_n": "small n" in marks,
        "inadmissible": _inadmissible(results),
        "cards": _cards(results, said),
        "verdict": _verdict(results, said),
        "main": before_after(results, said),
        "checks": claims(results, said),
        "arms": arms(results, said),
        "frontier": frontier(results, said),
        "groups": by_group(results, said),
        "turns": turns(results, said),
        "mask": _mask(results),
        "artefact": artefact.text() if artefact else "",
        "circuit": circuit(results),
        "surrogate": surrogate(results, said),
        "contexts": contexts(results, said),
        "gap": gap(results),
        "seeds": _seeds(results, said),
        "cost": cost_section(results["cost"]),
        "settings": _settings(results, said),
        "resumes": resumes_text(results["model"]),
        "notes": [node.text() for node in notes.rows()] if (notes := results.get("notes")) else [],
        "provenance": [(words(key), node.text()) for key, node in results["provenance"].items()],
        "methods": interval_methods(results),
        "show_text": show_text,
        "answers": answers,
        "unreadable": unreadable,
    }


def _inadmissible(results: Node) -> bool:
    chosen = results.get("chosen")
    flag = chosen.get("admissible") if chosen else None
    return flag is not None and not flag.truth()


def _cards(results: Node, said: Words) -> list[Card]:
    """The gain without and with the mask."""
    test, compared = results["test"], results.get("comparisons")
    before, after = (test[arm]["gain"].rate() for arm in ("before", "after"))
    found = compared.get("gain") if compared else None
    change = found.difference() if found else None
    beside = ""
    if change is not None and change.value is not None:
        beside = f"{change.short} points against no mask" + (f", {change.chance}" if change.chance else "")
    return [
        Card(f"{said.gain}, without the mask", said.gained, before, rate_bar(before), "plain"),
        Card(f"{said.gain}, with the mask", said.gained, after, rate_bar(after), "good", beside=beside),
    ]


def _verdict(results: Node, said: Words) -> dict[str, Any]:
    """How many limits hold on test: the third number at the top."""
    rows = [row for row in limited(results, said) if row.verdict != OPEN]
    kept = sum(row.verdict != BROKEN for row in rows)
    unsure = sum(row.verdict not in (BROKEN, KEPT) for row in rows)
    note = f"{unsure} of them not surely: the interval reaches beyond" if unsure and kept else ""
    return {"kept": kept, "of": len(rows), "note": note, "style": "good" if kept == len(rows) else "attack"}


def _mask(results: Node) -> list[tuple[str, str]]:
    """The chosen mask in a few lines."""
    chosen = results.get("chosen")
    if chosen is None:
        return []
    phase = chosen.get("phase")
    rows = [("method", method_name(chosen)), ("settings", settings_text(chosen))]
    if phase:
        rows.append(("phase", PHASES.get(phase.text(), phase.text())))
    return rows


def _settings(results: Node, said: Words) -> list[tuple[str, list[tuple[str, str]]]]:
    model, scenario = results["model"], results["scenario"]
    shown = [
        (words(key), experts_count(node) if key == "experts" else node.text())
        for key, node in model.items()
        if key != "resumes"
    ]
    suite, seed = results.get("suite"), results.get("seed")
    run = [("suite", suite.text() if suite else MISSING), ("judge", judge_text(results))]
    run.append(("seed", seed.text() if seed else MISSING))
    hold = scenario.get("hold")
    held = [
        ("name", scenario["name"].text()),
        ("objective", scenario["objective"].text()),
        ("held categories", show(hold.value) if hold else "all"),
    ]
    limits = scenario.get("limits")
    for key, node in limits.items() if limits else ():
        value = node.maybe()
        held.append(
            (f"limit, {measure_name(key, said).lower()}", f"{points(value)} points" if value is not None else MISSING)
        )
    groups = [("Model", shown), ("Run", run), ("Scenario", held)]
    splits = results.get("splits")
    for name, node in splits.items() if splits else ():
        if isinstance(node.value, Mapping):
            sizes = [(SPLIT_NAMES.get(key, words(key)), item.text()) for key, item in node.items()]
            groups.append((f"Split: {name}", sizes))
    return groups


def _seeds(results: Node, said: Words) -> dict[str, Any] | None:
    """Other seeds of the method: whatever each row has, rates as rates and the rest as text."""
    node = results.get("seeds")
    rows = node.rows() if node else []
    if not rows:
        return None
    keys = [key for key in dict.fromkeys(key for row in rows for key, _ in row.items()) if key != "id"]
    shares = [found.rate().rate for row in rows if (found := row.get("gain"))]
    scored = [share for share in shares if share is not None]
    finding = ""
    if scored:
        low, high = (f"{100 * share:.0f}{NARROW}%" for share in (min(scored), max(scored)))
        finding = f"Over {many(len(rows), 'seed')} of the method the gain lies between {low} and {high}."
    return {
        "finding": finding,
        "heads": [(_head(key, said), common_n(_rated(row.get(key)) for row in rows)) for key in keys],
        "rows": [[_cell(row.get(key)) for key in keys] for row in rows],
    }


def _head(key: str, said: Words) -> str:
    if key == "gain":
        return said.gain
    return measure_name(key, said) if key in (*COSTS, "held") else words(key)


def _rated(node: Node | None) -> Node | None:
    """The node if it is a rate."""
    return node if node and isinstance(node.value, Mapping) and {"n", "rate", "k"} <= set(node.value) else None


def _cell(node: Node | None) -> Rate | str:
    found = _rated(node)
    return found.rate() if found else node.text() if node else MISSING
