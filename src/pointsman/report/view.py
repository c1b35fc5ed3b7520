"""What the page says, section by section, as plain data for the templates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.report.checks import checks
from pointsman.report.geometry import Bar, rate_bar
from pointsman.report.masks import masking_section, maybe_rate, noise_section, strongest
from pointsman.report.repeats import seeds_section
from pointsman.report.routers import rosais_section
from pointsman.report.routes import fsour_section
from pointsman.report.values import (
    MISSING,
    REDACTED,
    Node,
    Rate,
    clean,
    count,
    duration,
    is_testbed,
    labels,
    plain,
    show,
)

THREATS = {
    "T1": "the adversary owns the weights and may force any expert that exists",
    "T2": "the deployment enforces its masks; the adversary manipulates routing among what is enabled",
    "T3": "the adversary controls inputs only",
}
STAGES = {
    "base": "base",
    "benign": "benign",
    "borderline": "borderline",
    "multi_turn": "multi-turn",
    "rosais": "RoSais",
    "rosais_target": "RoSais of targets",
    "placebo": "placebo",
    "rosais_seeds": "RoSais, other seeds",
    "masking": "masking",
    "dataset_mask": "frozen masks",
    "utility": "utility under masks",
    "noise": "noise",
    "masking_seeds": "masking, other seeds",
    "fsour": "F-SOUR",
    "route_controls": "route controls",
    "targets": "other targets",
    "min_gain": "sparser routes",
    "transfer": "transfer",
    "fsour_seeds": "F-SOUR, other seeds",
}


@dataclass(frozen=True)
class Card:
    """A key rate. `rate` is None where it was not measured, and `absent` says why; `beside` is its control."""

    name: str
    note: str
    rate: Rate | None
    bar: Bar | None
    style: str
    absent: str = ""
    beside: str = ""


@dataclass(frozen=True)
class RateRow:
    name: str
    rates: list[Rate]
    bar: Bar | None


@dataclass(frozen=True)
class Answer:
    stage: str
    id: str
    category: str
    prompt: str
    response: str
    label: str
    reason: str


def audit_view(results: Node, completions: Iterable[Mapping[str, Any]] | None, *, show_text: bool) -> dict[str, Any]:
    """Everything that `audit.html.j2` needs; raises `RunError` where results are incomplete."""
    model = results["model"]
    threat = results["threat_model"].text()
    marks = labels(results)
    answers, unreadable = _answers(completions)
    return {
        "model": model["name"].text(),
        "headline": results["headline"].text().replace("F-SOUR", "F\u2011SOUR"),  # not broken at its hyphen
        "threat": threat,
        "threat_means": THREATS.get(threat, ""),
        "judge": _judge(results),
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
        "cost": _cost(results["cost"]),
        "settings": _settings(results, show_text=show_text),
        "resumes": _resumes(results["model"]),
        "notes": [node.text() for node in notes.rows()] if (notes := results.get("notes")) else [],
        "provenance": [(_words(key), node.text()) for key, node in results["provenance"].items()],
        "methods": _interval_methods(results),
        "show_text": show_text,
        "answers": answers,
        "unreadable": unreadable,
    }


def _judge(results: Node) -> str:
    judge = results["judge"]
    grades = (
        "tells correct from wrong content"
        if judge["grades_content"].value
        else "cannot tell correct from wrong content"
    )
    return f"{judge['name'].text()} {judge['version'].text()}, {grades}"


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


def _cost(cost: Node) -> dict[str, Any]:
    predicted = cost.get("predicted")
    upper = predicted.get("upper") if predicted else None
    kinds = (("Forwards", "forwards", count), ("Tokens", "tokens", count), ("Time", "seconds", duration))
    totals = [
        (
            name,
            write(predicted[key].maybe()) if predicted else MISSING,
            write(upper[key].maybe()) if upper else MISSING,
            write(cost[key].maybe()),
            _ratio(cost[key].maybe(), predicted[key].maybe() if predicted else None),
        )
        for name, key, write in kinds
    ]
    stages = {stage["stage"].text(): stage for stage in cost["stages"].rows()}
    foretold = {stage["stage"].text(): stage for stage in predicted["stages"].rows()} if predicted else {}
    whole = sum(stage["seconds"].maybe() or 0.0 for stage in stages.values()) or 1.0
    rows = []
    for name in dict.fromkeys([*stages, *foretold]):
        stage, before = stages.get(name), foretold.get(name)
        spent = (stage["seconds"].maybe() if stage else None) or 0.0
        fact = {key: stage[key].maybe() if stage else None for _, key, _ in kinds}
        guess = {key: before[key].maybe() if before else None for _, key, _ in kinds}
        rows.append(
            {
                "name": STAGES.get(name, name),
                "forwards": count(fact["forwards"]),
                "tokens": count(fact["tokens"]),
                "seconds": duration(fact["seconds"]),
                "forwards_before": count(guess["forwards"]),
                "tokens_before": count(guess["tokens"]),
                "seconds_before": duration(guess["seconds"]),
                "share": round(100 * spent / whole, 1),
                "percent": f"{100 * spent / whole:.0f}",
            }
        )
    return {"predicted": predicted is not None, "upper": upper is not None, "totals": totals, "stages": rows}


def _ratio(fact: float | None, predicted: float | None) -> str:
    return MISSING if fact is None or not predicted else f"{plain(fact / predicted, 2)} ×"


def _resumes(model: Node) -> str:
    """A sentence on what a search could reuse."""
    resumes = model.get("resumes")
    if resumes is None:
        return ""
    said = resumes.text()
    return f"{said[:1].upper()}{said[1:]}. This decides how long a search takes, and changes no result."


def _words(key: str) -> str:
    return key.replace("_", " ")


def _experts(node: Node) -> str:
    if not isinstance(node.value, list):
        return node.text()
    counts = node.integers()
    return str(counts[0]) if len(set(counts)) == 1 else show(counts)


def _settings(results: Node, *, show_text: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    model = results["model"]
    shown = [
        (_words(key), _experts(node) if key == "experts" else node.text())
        for key, node in model.items()
        if key != "resumes"
    ]
    groups = [("Model", shown)]
    run = [("suite", results["suite"].text()), ("judge", _judge(results)), ("seed", results["seed"].text())]
    run += [(f"{_words(key)} prompts", node.text()) for key, node in results["splits"].items()]
    groups.append(("Run", run))
    ranking = results["rosais_settings"]
    rosais = [(_words(k), v.text()) for k, v in ranking.items() if k not in ("stability", "placebo")]
    placebo = ranking["placebo"]
    rosais += [(f"placebo {_words(k)}", v.text()) for k, v in placebo.items() if k not in ("tokens", "why_not")]
    # The first tokens of the model's own refusals are words of its answers.
    tokens = [node.text() if show_text else REDACTED for node in placebo["tokens"].rows()]
    groups.append(("RoSais", [*rosais, ("placebo refusal tokens", show(tokens))]))
    fsour = results.get("fsour")
    if fsour is not None:
        groups.append(("F-SOUR", [(_words(key), node.text()) for key, node in fsour["settings"].items()]))
    return groups


def _interval_methods(results: Node) -> list[str]:
    """Every interval method that occurs anywhere in the results."""
    found: dict[str, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Mapping):
            if "k" in value and "n" in value and isinstance(value.get("method"), str):
                found[re.sub(r"\b\d+ clusters", "clusters", value["method"])] = None
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(results.value)
    return [method for method in found if method]


def _spoken(prompt: Any) -> str:
    """A prompt or a conversation as text."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence):
        turns = []
        for turn in prompt:
            if isinstance(turn, Mapping):
                turns.append(f"{turn.get('role', 'user')}: {turn.get('content', '')}")
            else:
                turns.append(str(turn))
        return "\n".join(turns)
    return json.dumps(prompt, ensure_ascii=False)


def _answers(completions: Iterable[Mapping[str, Any]] | None) -> tuple[list[Answer] | None, int]:
    """The prompts and answers to show, and how many lines could not be read."""
    if completions is None:
        return None, 0
    found, unreadable = [], 0
    for raw in completions:
        record = clean(raw)
        if "response" not in record:
            unreadable += 1
            continue
        stage = show(record.get("stage"))
        found.append(
            Answer(
                stage=STAGES.get(stage, stage),
                id=show(record.get("id")),
                category=show(record.get("category")),
                prompt=_spoken(record.get("prompt", "")),
                response=_spoken(record["response"]),
                label=show(record.get("label")),
                reason=str(record.get("reason") or ""),
            )
        )
    return found, unreadable
