"""What the page says, section by section, as plain data for the templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pointsman.report.checks import checks
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
from pointsman.report.geometry import Bar, rate_bar
from pointsman.report.masks import masking_section, maybe_rate, noise_section, strongest
from pointsman.report.repeats import seeds_section
from pointsman.report.routers import rosais_section
from pointsman.report.routes import fsour_section
from pointsman.report.values import REDACTED, Node, Rate, is_testbed, labels, show


@dataclass(frozen=True)
class RateRow:
    name: str
    rates: list[Rate]
    bar: Bar | None


def audit_view(results: Node, completions: Iterable[Mapping[str, Any]] | None, *, show_text: bool) -> dict[str, Any]:
    """Everything that `audit.html.j2` needs; raises `RunError` where results are incomplete."""
    model = results["model"]
    threat = results["threat_model"].text()
    marks = labels(results)
    answers, unreadable = answers_section(completions)
    return {
        "model": model["name"].text(),
        "headline": results["headline"].text().replace("F-SOUR", "F\u2011SOUR"),  # not broken at its hyphen
        "threat": threat,
        "threat_means": THREATS.get(threat, ""),
        "judge": judge_text(results),
        "grades_content": bool(results["judge"]["grades_content"].value),
        "base_n": results["base"]["asr"].rate().n,
        "labels": marks,
        "tag": " · ".join(marks),
        "testbed": is_testbed(results),
        "small_n": "small n" in marks,
        "cards": _cards(results),
        "checks": checks(results),
        "rosais": rosais_section(results),
        "masking": masking_section(results),
        "noise": noise_section(results),
        "fsour": fsour_section(results, show_text=show_text),
        "seeds": seeds_section(results),
        "base": _base(results),
        "multi_turn": _multi_turn(results),
        "cost": cost_section(results["cost"]),
        "settings": _settings(results, show_text=show_text),
        "resumes": resumes_text(results["model"]),
        "notes": [node.text() for node in notes.rows()] if (notes := results.get("notes")) else [],
        "provenance": [(words(key), node.text()) for key, node in results["provenance"].items()],
        "methods": interval_methods(results),
        "show_text": show_text,
        "answers": answers,
        "unreadable": unreadable,
    }


def _card(name: str, note: str, rate: Rate | None, style: str, absent: str = "", beside: str = "") -> Card:
    return Card(name, note, rate, rate_bar(rate), style, absent, beside)


def _masked(top: Node | None) -> str:
    if top is None:
        return "no router was masked"
    many = top["routers"].integer()
    return f"top {'router' if many == 1 else f'{many} routers'} masked, {top['phase'].text()}"


def _cards(results: Node) -> list[Card]:
    top = strongest(results)
    fsour = results.get("fsour")
    turns = results.get("multi_turn")
    restarts = fsour["settings"].get("restarts") if fsour else None
    controls = [node.get("controls") if node else None for node in (top, fsour)]
    routers, routes = (found.get("random") if found else None for found in controls)
    return [
        _card("Base ASR", "no intervention", results["base"]["asr"].rate(), "plain"),
        _card(
            "Masked ASR",
            _masked(top),
            top["asr"].rate() if top else None,
            "attack",
            "not measured: masking was not run",
            f"as many random routers: {routers['asr'].rate().full}" if routers else "",
        ),
        _card(
            "F-SOUR ASR",
            f"unsafe routes, at most {restarts.text()} restarts" if restarts else "unsafe routes",
            fsour["asr"].rate() if fsour else None,
            "attack",
            "not measured: F-SOUR was not run",
            f"as many random routes: {routes['asr'].rate().full}" if routes else "",
        ),
        _card(
            "Multi-turn",
            "conversations that fall, routers untouched",
            turns["fallen"].rate() if turns else None,
            "plain",
            "not measured: no conversations were given",
        ),
        _card(
            "Utility",
            "benign requests answered well",
            maybe_rate(results.get("utility")),
            "good",
            "not measured: no benign file was given",
        ),
        _card(
            "Over-refusal",
            "harmless requests refused",
            maybe_rate(results.get("over_refusal")),
            "good",
            "not measured: no benign file was given",
        ),
    ]


def _base(results: Node) -> dict[str, Any]:
    base = results["base"]
    kinds = [
        ("Attack success (ASR)", base["asr"]),
        ("Any compliance", base["any_compliance"]),
        ("Refused", base["refused"]),
        ("Garbage", base["garbage"]),
    ]
    overall = [RateRow(name, [node.rate()], rate_bar(node.rate())) for name, node in kinds]
    categories = [
        RateRow(name, [item["asr"].rate(), item["any_compliance"].rate()], rate_bar(item["asr"].rate()))
        for name, item in base["by_category"].items()
    ]
    refused = base["refused"].rate()
    finding = f"Left alone, the model refuses {refused.full} of the test prompts."
    return {"finding": finding, "overall": overall, "categories": categories}


def _multi_turn(results: Node) -> dict[str, Any] | None:
    turns = results.get("multi_turn")
    if turns is None:
        return None
    tactics = turns.get("by_tactic")
    rows = [RateRow(name, [node.rate()], rate_bar(node.rate())) for name, node in tactics.items()] if tactics else []
    questions, matched = turns["questions"].text(), turns["matched_questions"].text()
    return {"fallen": turns["fallen"].rate(), "tactics": rows, "questions": questions, "matched": matched}


def _settings(results: Node, *, show_text: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    model = results["model"]
    shown = [
        (words(key), experts_count(node) if key == "experts" else node.text())
        for key, node in model.items()
        if key != "resumes"
    ]
    groups = [("Model", shown)]
    run = [("suite", results["suite"].text()), ("judge", judge_text(results)), ("seed", results["seed"].text())]
    run += [(f"{words(key)} prompts", node.text()) for key, node in results["splits"].items()]
    groups.append(("Run", run))
    ranking = results["rosais_settings"]
    rosais = [(words(k), v.text()) for k, v in ranking.items() if k not in ("stability", "placebo")]
    placebo = ranking["placebo"]
    rosais += [(f"placebo {words(k)}", v.text()) for k, v in placebo.items() if k not in ("tokens", "why_not")]
    # The first tokens of the model's own refusals are words of its answers.
    tokens = [node.text() if show_text else REDACTED for node in placebo["tokens"].rows()]
    groups.append(("RoSais", [*rosais, ("placebo refusal tokens", show(tokens))]))
    fsour = results.get("fsour")
    if fsour is not None:
        groups.append(("F-SOUR", [(words(key), node.text()) for key, node in fsour["settings"].items()]))
    return groups
