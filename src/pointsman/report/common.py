"""What the pages of all runs share: threat models, stages, costs, prompts and answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.report.geometry import Bar
from pointsman.report.values import MISSING, Node, Rate, clean, count, duration, plain, show

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
ARMS = {
    "before": "without the mask",
    "after": "with the mask",
    "steermoe": "SteerMoE",
    "random": "random mask",
    "surrogate_only": "surrogate alone",
}
"""The second half of a stage's name in a steer run, as in ``test/before``."""


def stage_name(stage: str) -> str:
    """The name of a stage as people say it; one that this version does not know stays as it is."""
    first, *arms = stage.split("/")
    return ", ".join([STAGES.get(first, words(first)), *(ARMS.get(arm, words(arm)) for arm in arms)])


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
class Answer:
    stage: str
    id: str
    category: str
    prompt: str
    response: str
    label: str
    reason: str


def judge_text(results: Node) -> str:
    judge = results["judge"]
    grades = (
        "tells correct from wrong content"
        if judge["grades_content"].value
        else "cannot tell correct from wrong content"
    )
    parameters = judge.get("parameters")
    given = f" ({', '.join(f'{key} {node.text()}' for key, node in parameters.items())})" if parameters else ""
    return f"{judge['name'].text()} {judge['version'].text()}{given}, {grades}"


def words(key: str) -> str:
    return key.replace("_", " ")


def experts_count(node: Node) -> str:
    if not isinstance(node.value, list):
        return node.text()
    counts = node.integers()
    return str(counts[0]) if len(set(counts)) == 1 else show(counts)


def resumes_text(model: Node) -> str:
    """A sentence on what a search could reuse."""
    resumes = model.get("resumes")
    if resumes is None:
        return ""
    said = resumes.text()
    return f"{said[:1].upper()}{said[1:]}. This decides how long a search takes, and changes no result."


def cost_section(cost: Node) -> dict[str, Any]:
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
                "name": stage_name(name),
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


def interval_methods(results: Node) -> list[str]:
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


def answers_section(completions: Iterable[Mapping[str, Any]] | None) -> tuple[list[Answer] | None, int]:
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
                stage=stage_name(stage),
                id=show(record.get("id")),
                category=show(record.get("category")),
                prompt=_spoken(record.get("prompt", "")),
                response=_spoken(record["response"]),
                label=show(record.get("label")),
                reason=str(record.get("reason") or ""),
            )
        )
    return found, unreadable
