"""The page and the summary of steering: complete, true to their results, and calm about what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pointsman.jobs.steer.claims import conclude
from pointsman.jobs.steer.job import from_steer_1
from pointsman.jobs.steer.page import page, summary
from pointsman.jobs.steer.results import CircuitFacts, Contrasted, MaskFacts, Method, SteerResults, TurnCount
from pointsman.jobs.steer.sections.drawings import LossAxis
from pointsman.jobs.steer.sections.frontier import worst_loss
from pointsman.jobs.steer.wording import mask_name
from pointsman.report import text
from pointsman.report.answers import Kept
from pointsman.report.html import render
from pointsman.report.sections.answers import with_answers
from pointsman.report.terminal import table
from pointsman.routing.low_rank import LowRank
from pointsman.runs.results import SCHEMA, Claim, Limit, read
from pointsman.stats.rates import Rate
from reader import ATTACK, Reader

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
EMPTY = Rate(0, 0, None, 0.0, 1.0, "no rows", 0)


def said(results: SteerResults) -> str:
    """What the page says, with plain space."""
    return Reader(render(page(results))).words


def spoken(words: str) -> str:
    return re.sub(r"[\s\u202f]+", " ", words)


def written(results: SteerResults, width: int = 80) -> str:
    """What the terminal says."""
    out = StringIO()
    Console(file=out, width=width).print(table(summary(results)))
    return out.getvalue()


def golden(job: str) -> SteerResults:
    found = from_steer_1(json.loads((GOLDEN / job / "results.json").read_text(encoding="utf-8")))
    return conclude(read({**found, "schema": SCHEMA}, SteerResults))


@pytest.fixture
def defend() -> SteerResults:
    return golden("steer")


@pytest.fixture
def allow(defend: SteerResults) -> SteerResults:
    """The same figures as of a scenario whose requests shall be answered."""

    def asked(arm: Any) -> Any:
        return arm and replace(arm, dsr_replay=None, dsr_context=None, gsr=arm.gain, turns=(), by_tactic={})

    arms = {f.name: asked(getattr(defend.test, f.name)) for f in fields(defend.test)}
    return conclude(
        replace(defend, scenario=replace(defend.scenario, objective="allow"), test=replace(defend.test, **arms))
    )


@pytest.fixture(params=["defend", "allow"])
def either(request: pytest.FixtureRequest) -> SteerResults:
    results: SteerResults = request.getfixturevalue(request.param)
    return results


# ---------------------------------------------------------------------- what is said


def test_all_sections_in_order(defend: SteerResults) -> None:
    headings = [
        "Defended, with the mask",
        "Limits kept on test",
        "Before and after",
        "What it costs, against its limits",
        "Beside other ways",
        "Do the findings stand?",
        "What was tried",
        "Chosen on validation, scored on test",
        "Where it helps",
        "Defended by tactic",
        "The turn where safety falls",
        "The expert circuit",
        "Stability",
        "The surrogate",
        "Whom the mask turns",
        "Other seeds of the method",
        "How it works, and how to read it",
        "Cost",
        "Provenance and settings",
        "Responsible use",
    ]
    words, place = said(defend), 0
    for heading in headings:  # index raises where one is missing or out of order
        place = words.index(heading, place)


def test_allow_speaks_of_requests(allow: SteerResults) -> None:
    words = said(allow)
    for part in (
        "Answered, with the mask",
        "Answered: GSR",
        "gives in, whatever the content",
        "requests of the scenario that were refused",
        "Other restricted requests refused, by category",
        "what stays refused was measured on given prompts only",
    ):
        assert part in words, part
    for other in ("Defended", "turn where safety falls", "by tactic", "DSR"):
        assert other not in words


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        (None, "those where the model did as wanted"), ("topic", "requests of the scenario that the model answered"),
        ("target", "each read with the beginning of its own target"), ("benign", "benign ones among them"),
    ],
)  # fmt: skip
def test_what_refused_requests_were_held_against_is_said(
    allow: SteerResults, contrast: Contrasted | None, words: str
) -> None:
    shown = said(replace(allow, contrast=contrast))
    assert shown.count(words) == (1 if contrast is None else 2)  # beside the contexts, and among the terms


def test_numbers_equal_the_results(either: SteerResults) -> None:
    words, test, compared = said(either), either.test, either.comparisons
    for arm in (test.before, test.after, test.steermoe, test.random, test.surrogate_only):
        assert arm is not None
        assert spoken(f"{text.value(arm.gain)} {text.interval(arm.gain)}") in words
    for limit in either.limits:
        for arm in (test.before, test.after):
            rate = getattr(arm, limit.measure)
            shown = f"{text.value(rate, fine=True)} {text.interval(rate, fine=True)} ({text.rows_of(rate)})"
            assert spoken(shown) in words
        if limit.kind != "share":
            assert text.change_full(getattr(compared, limit.measure), 1) in words
    for name, group in test.after.by_category.items():
        without = text.full(test.before.by_category[name].gain)
        assert spoken(f"{name} {without} {text.full(group.gain)}") in words
    assert f"The mask moves {either.circuit.size} of {either.circuit.possible}" in words


def test_claims_are_those_of_the_results(defend: SteerResults) -> None:
    claims = [
        Claim("a", "It does something", "holds", "why so"),
        Claim("b", "It does more than luck", "fails", "random masks do as well"),
        Claim.not_measured("c", "It lasts", "no time was left"),
    ]
    words = said(replace(defend, claims=tuple(claims)))
    assert "Of 3 claims that one would doubt first, 1 holds, 1 fails, 1 was not measured." in words
    for part in ("It does more than luck fails", "random masks do as well", "no time was left"):
        assert part in words


def test_unscored_answers_and_broken_limits_are_said_of_each_method(defend: SteerResults) -> None:
    assert "No limit is broken under any of them." in said(defend)
    assert "could not be scored" not in said(defend)
    test = defend.test
    assert test.steermoe is not None
    steermoe = replace(test.steermoe, broken=("garbage", "over_refusal"), unscored=3)
    test = replace(test, steermoe=steermoe, before=replace(test.before, unscored=1))
    results = replace(defend, test=test, broken_on_test=("benign",))
    words = said(results)
    assert "chosen mask (benign requests answered); SteerMoE (contexts) (garbage and over-refusal)" in words
    assert (
        "Answers that could not be scored, and count as no success: 3 (SteerMoE (contexts)), 1 (without the mask)."
        in words
    )
    assert render(page(results)).count('class="rate hit"') == 3


def test_limits_are_said_with_their_verdicts(defend: SteerResults) -> None:
    limits = (
        Limit.of("benign", "loss", 0.02, 0.01, (0.0, 0.021)),
        Limit.of("benign_conversations", "loss", None, 0.01, (0.0, 0.02)),
        Limit.of("over_refusal", "rise", 0.03, 0.031, (0.01, 0.05)),
        Limit.of("held", "loss", 0.02, -0.3, (-0.4, -0.2)),
        Limit.of("garbage", "share", 0.03, 0.02, (0.01, 0.02)),
    )
    assert [limit.verdict for limit in limits] == ["kept, not surely", "not measured", "broken", "kept", "kept"]
    results = replace(defend, limits=limits)
    words = said(results)
    assert "It breaks 1 of 4 limits: over-refusal." in words
    assert "3 of 4" in words
    assert "rise ≤ 3.0" in words
    assert "≤ 3 OVER" in written(results)
    assert "It keeps the limit, though the interval of benign requests answered reaches beyond." in said(
        replace(defend, limits=limits[:1])
    )
    assert "It keeps all 2 limits." in said(replace(defend, limits=limits[3:]))


def test_losses_beyond_the_axis_are_drawn_at_its_end(defend: SteerResults) -> None:
    lost = Limit.of("benign", "loss", 0.02, 0.9, (0.8, 0.95))
    axis = LossAxis.of([lost, Limit.of("held", "loss", 0.02, 0.0, (-0.01, 0.01))])
    assert axis.x(100 * 0.9) == axis.x(100 * 0.95) == 99.0
    assert axis.x(0.0) < axis.x(100 * 0.02) < 99.0
    assert 'cx="99%"' in axis.strip(lost)


def test_no_admissible_mask_is_said_at_the_top(defend: SteerResults) -> None:
    candidates = tuple(replace(c, admissible=c.admissible and c.id != defend.chosen.id) for c in defend.candidates)
    results = replace(defend, chosen=replace(defend.chosen, admissible=False), candidates=candidates)
    words = said(results)
    assert "No mask kept every limit on validation. This page shows the best that broke one" in words
    assert "it does not keep every limit" in words
    assert "No mask kept every limit on validation." in written(results)


def test_turns(defend: SteerResults) -> None:
    many = tuple(TurnCount(turn, 100 - turn, 1) for turn in range(1, 31))
    none = tuple(replace(row, fallen=0) for row in many)
    test = replace(defend.test, before=replace(defend.test.before, turns=many))
    words = said(replace(defend, test=replace(test, after=replace(test.after, turns=none))))
    assert "18 later turns" in words
    assert "Without the mask 30 fall, most of them (1) at turn 1. With it none falls." in words
    assert "1 of 70" in words


# ---------------------------------------------------------------------- names


def test_a_mask_learnt_through_the_model_is_never_called_mascing(either: SteerResults) -> None:
    """Nor as published: of all that is said, only what names another method may use these words."""
    assert either.chosen.refinement == "through_model"
    for candidate in (either.chosen, *either.candidates):
        assert (candidate.method == "through_model") == (candidate.refinement == "through_model")
        assert candidate.id.startswith("mascing/") == (candidate.method == "mascing")
    results = with_every_arm(either)
    for words in (said(results), " ".join(written(results, 100).split()), said(either)):
        assert "learnt through the model" in words
        for other in OTHERS:
            words = words.replace(other, "")
        assert "mascing" not in words.lower()
        assert "as published" not in words


@pytest.mark.parametrize(
    ("method", "refinement", "name"),
    [
        ("mascing", "surrogate", "MASCing, surrogate alone"), ("mascing", "on_policy", "MASCing, on-policy"),
        ("through_model", "through_model", "learnt through the model"), ("given", None, "mask"),
        ("mascing", "through_model", "learnt through the model"), ("mascing", None, "mask"),
        ("steermoe", None, "SteerMoE (contexts)"), ("random", None, "random mask"),
        ("steermoe_paired", None, "SteerMoE (paired responses, as published)"),
    ],
)  # fmt: skip
def test_every_method_has_its_name_and_results_of_older_versions_too(
    method: Method, refinement: str | None, name: str
) -> None:
    facts = MaskFacts(id="x", method=method, refinement=refinement, phase="both", entries=1)
    assert mask_name(facts) == name


OTHERS = (
    "MASCing, surrogate alone", "MASCing, on-policy", "MASCing surrogate", "MASCing on-policy",
    "SteerMoE (paired responses, as published)", "Better than MASCing as published", "Better than MASCing on policy",
    "Better than SteerMoE as published", "After MASCing, arXiv 2604.27818 , and SteerMoE", 
    "by paired responses as published",
    "MASCing is the matrix of a surrogate: alone it is the paper’s own",
)  # fmt: skip
"""Where the words stand on a page, and of what."""


def with_every_arm(results: SteerResults) -> SteerResults:
    """All other ways asked on test, as SteerMoE on contexts was."""
    arms = ("on_policy", "steermoe_paired", "conditional")
    test = replace(results.test, **dict.fromkeys(arms, results.test.steermoe))
    compared = replace(results.comparisons, **{f"vs_{arm}": results.comparisons.vs_steermoe for arm in arms})
    return conclude(replace(results, test=test, comparisons=compared))


def test_every_way_has_a_row_on_the_page_and_in_the_terminal(defend: SteerResults) -> None:
    results = with_every_arm(defend)
    words, flat = said(results), " ".join(written(results).split())
    names = ["conditional mask", "MASCing, surrogate alone", "MASCing, on-policy",
             "SteerMoE (paired responses, as published)", "SteerMoE (contexts)", "random mask"]  # fmt: skip
    assert results.test.steermoe is not None
    gain = spoken(f"{text.value(results.test.steermoe.gain)} {text.interval(results.test.steermoe.gain)}")
    for name in names:
        assert re.search(rf"{re.escape(name)}\s+\d+ % \[", words), name
    assert words.count(gain) >= 3
    for short in (
        "conditional mask",
        "MASCing surrogate",
        "MASCing on-policy",
        "SteerMoE paired",
        "SteerMoE contexts",
        "random mask",
    ):
        assert f"{short} " in flat
    assert "Not run" not in flat
    assert "Not measured in this run" not in words
    assert [c.id for c in results.claims if "beats" in c.id] == [
        "mask_beats_random_masks", "mask_beats_conditional", "mask_beats_surrogate_only", "mask_beats_on_policy",
        "mask_beats_steermoe_paired", "mask_beats_steermoe",
    ]  # fmt: skip
    surrogate = replace(results, chosen=replace(results.chosen, method="mascing", refinement="surrogate"))
    assert "mask_beats_surrogate_only" not in [c.id for c in conclude(surrogate).claims]
    assert "MASCing, surrogate alone" in said(surrogate)


# ---------------------------------------------------------------------- candidates and circuit


def test_the_frontier_shows_every_candidate_and_marks_the_chosen(defend: SteerResults) -> None:
    tried = [c for c in defend.candidates if c.stage == "fine"]
    broke = replace(tried[-1], admissible=False, broken=("garbage",))
    results = replace(defend, candidates=tuple(broke if c is tried[-1] else c for c in defend.candidates))
    html = render(page(results))
    reader = Reader(html)
    marks = [found for name, tag in reader.tags if name == "svg" and tag.get("x") and (found := tag.get("class"))]
    assert len(marks) == len(tried) + 1
    assert sum("picked" in mark for mark in marks) == 1
    assert sum("broke" in mark for mark in marks) == 1
    assert {mark.split()[0] for mark in marks} == {"learnt", "steermoe", "random"}
    assert html.count('class="ring"') == 1
    for candidate in defend.candidates:
        assert f'title="{candidate.id}"' in html
    words = reader.words
    screened = len(defend.candidates) - len(tried)
    said_first = f"Of {len(tried)} settings that answered the validation prompts, {len(tried) - 1} keep every limit"
    assert f"{said_first} ({screened} more were only screened)" in words
    for part in (
        f"All {len(tried)} settings",
        f"{screened} settings screened",
        "hollow: breaks one",
        "breaks: garbage",
    ):
        assert part in words


def test_worst_loss_is_that_of_the_measure_that_suffers_most(defend: SteerResults) -> None:
    base = defend.baseline_validation
    assert base is not None
    assert base.benign is not None
    assert base.held is not None
    candidate = replace(
        defend.candidates[0], benign=replace(base.benign, rate=0.95), held=replace(base.held, rate=0.75)
    )
    assert worst_loss(candidate, base) == ("held", 0.25)
    assert worst_loss(candidate, None) is None


def test_a_conditional_mask_shows_how_far_it_moves_every_expert(defend: SteerResults) -> None:
    """At the strength that was chosen, beside the router's own weight; and no empty circuit below it."""
    rng = np.random.default_rng(0)
    one = LowRank(np.eye(2, 6), rng.normal(0, 1, (4, 2)))
    bent = LowRank(np.eye(1, 6), [[0.0], [0.0], [3.0], [0.0]], [0.5])
    zero, sigma = [np.zeros(4)] * 3, (1.0,) * 3
    circuit = CircuitFacts.of(zero, sigma, maps={2: bent, 0: one}, norms=(2.0, 1.0, 4.0))
    assert circuit.conditional is not None
    first, last = circuit.conditional
    assert (first.layer, first.rank, first.threshold, last.threshold) == (0, 2, False, True)
    assert last.experts == (0.0, 0.0, 0.75, 0.0)
    np.testing.assert_allclose(first.norm, np.linalg.norm(one.product) / (2.0 * 4**0.5))
    results = replace(defend, circuit=circuit, chosen=replace(defend.chosen, method="conditional", alpha=0.5))
    html = render(page(results))
    Reader(html)
    assert "to the logits of 2 routers" in html
    assert "The circuit is empty" not in html
    assert html.count('class="heat up"') == 4 + 1  # the rows of B A that are not zero
    assert "Mask: conditional" in " ".join(written(results).split())
    both = replace(defend, circuit=replace(defend.circuit, conditional=circuit.conditional))
    assert "to the logits of 2 routers" in render(page(both))
    assert "raised" in render(page(both))


def test_layers_of_different_width(defend: SteerResults) -> None:
    found = defend.circuit
    width = max(entry.expert for entry in found.entries if entry.layer == 2) + 1
    matrix = tuple(row[:width] if layer == 2 else row for layer, row in enumerate(found.matrix))
    html = render(page(replace(defend, circuit=replace(found, matrix=matrix))))
    Reader(html)
    assert html.count('class="heat up"') + html.count('class="heat down"') == found.size + 2  # legend


# ---------------------------------------------------------------------- what is missing

MISSING: dict[str, tuple[Callable[[SteerResults], SteerResults], str]] = {
    "surrogate": (lambda r: replace(r, surrogate=None), "No surrogate was trained in this run."),
    "gap": (lambda r: replace(r, gap=()), "The gap between surrogate and model was not measured."),
    "upper bound": (lambda r: replace(r, upper_bound=None), "No upper bound was given."),
    "latency": (lambda r: replace(r, latency=None), "Latency was not measured."),
    "overfit": (lambda r: replace(r, overfit=None), "The gap between validation and test was not measured."),
    "candidates": (lambda r: replace(r, candidates=()), "No list of what was tried is in the results."),
    "baseline": (lambda r: replace(r, baseline_validation=None), "the rates without a mask, which losses"),
    "limits": (lambda r: replace(r, limits=()), "No limit could be checked."),
    "an arm": (
        lambda r: replace(r, test=replace(r.test, random=None)),
        "Not measured in this run: conditional mask; MASCing, on-policy; SteerMoE (paired responses, as published); "
        "random mask.",
    ),
    "stability": (
        lambda r: replace(r, circuit=replace(r.circuit, stability=None)),
        "One seed of the method: whether another finds the same circuit was not measured.",
    ),
    "matched pairs": (
        lambda r: replace(r, surrogate=r.surrogate and replace(r.surrogate, matched=None)),
        "There were no matched pairs to test it on",
    ),
    "seeds of the surrogate": (
        lambda r: replace(r, surrogate=r.surrogate and replace(r.surrogate, seeds=r.surrogate.seeds[:1])),
        "Other seeds of the surrogate were not trained.",
    ),
}


@pytest.mark.parametrize("part", MISSING)
def test_a_missing_part_is_said(either: SteerResults, part: str) -> None:
    without, words = MISSING[part]
    assert words in said(without(either))
    assert "before" in written(without(either))


def test_everything_missing_at_once(either: SteerResults) -> None:
    results = either
    for without, _ in MISSING.values():
        results = without(results)
    test = replace(results.test, steermoe=None, random=None, surrogate_only=None)
    results = replace(results, test=test, seeds=None, contexts={}, artefact=None, splits={})
    words = said(results)
    assert (
        "Not measured in this run: conditional mask; MASCing, surrogate alone; MASCing, on-policy; SteerMoE (paired "
        "responses, as published); SteerMoE (contexts); random mask. No upper bound was given."
    ) in words
    assert "No other method was measured beside this mask." in words
    for section in ("a spread of its own", "What it learnt from", "The mask itself is in"):
        assert section not in words
    flat = " ".join(written(results).split())
    assert "Not run: 6 of 6 other ways." in flat


def test_measures_that_were_not_taken(either: SteerResults) -> None:
    """Of requests that shall be answered there are no conversations, and no time is taken of what was screened."""
    absent: dict[str, Any] = {"benign_conversations": None, "held": None}
    candidates = tuple(replace(c, **absent, norm1=None, seconds_per_answer=None) for c in either.candidates)
    arms = {
        f.name: arm and replace(arm, **absent) for f in fields(either.test) for arm in [getattr(either.test, f.name)]
    }
    results = conclude(
        replace(
            either,
            candidates=candidates,
            test=replace(either.test, **arms),
            gap=(replace(either.gap[0], surrogate_turned=None, lambda_=None),),
            seeds=tuple(replace(seed, **absent) for seed in either.seeds or ()),
        )
    )
    words = said(results)
    assert "the surrogate –, the model" in words
    assert "enign conversations answered" not in words.partition("Every setting")[0]
    assert "multi-turn" not in written(results)


def test_nothing_scored(either: SteerResults) -> None:
    test = replace(
        either.test,
        before=replace(either.test.before, benign=EMPTY),
        after=replace(either.test.after, gain=EMPTY),
    )
    candidates = (replace(either.candidates[0], gain=EMPTY, benign=EMPTY), *either.candidates[1:])
    nothing = either.comparisons.gain and replace(either.comparisons.gain, difference=None, low=-1.0, high=1.0)
    overfit = either.overfit and replace(either.overfit, test=EMPTY)
    results = replace(
        either,
        test=test,
        candidates=candidates,
        overfit=overfit,
        comparisons=replace(either.comparisons, gain=nothing),
    )
    words = said(results)
    assert "nothing could be scored (n = 0)" in words
    assert not re.search(r"\b(nan|NaN|None)\b", words)
    written(results)


def test_results_that_contradict_themselves_break_nothing(defend: SteerResults) -> None:
    """A results file may come from a stranger, and its types are all that reading checks."""
    found, surrogate = defend.circuit, defend.surrogate
    assert found.stability is not None
    assert surrogate is not None
    stability = replace(found.stability, jaccard=())
    for circuit in (
        replace(found, sigma=(), layers=(), stability=stability),
        replace(found, matrix=(), entries=(), possible=0),
    ):
        said(replace(defend, circuit=circuit))
    said(replace(defend, surrogate=replace(surrogate, calibration=replace(surrogate.calibration, bins=()))))
    strange = replace(
        defend, limits=(Limit.of("__class__", "loss", 0.1, 0.0, (0.0, 0.0)),), broken_on_test=("__doc__",)
    )
    assert "No limit could be checked." in said(strange)
    written(strange)


# ---------------------------------------------------------------------- what comes from outside


def hostile(value: Any) -> Any:
    """The same with every free text replaced."""
    fixed = {"schema", "job", "threat_model", "method", "phase", "stage", "objective", "pinned", "verdict", "kind",
             "measure"}  # fmt: skip
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: hostile(getattr(value, f.name)) for f in fields(value) if f.name not in fixed})
    if isinstance(value, str):
        return ATTACK
    if isinstance(value, Mapping):
        return {f"{ATTACK}{n}": hostile(item) for n, item in enumerate(value.values())}
    return tuple(map(hostile, value)) if isinstance(value, tuple) else value


def test_everything_from_outside_is_escaped(either: SteerResults) -> None:
    asked = [{"stage": "test/after", "id": "1", "prompt": "a", "response": "b", "label": "refused"}]
    asked.append({**asked[0], "stage": "test/before", "label": "correct"})  # the same words: in doubt
    known = Reader(render(with_answers(page(either, show_text=True), Kept(asked))))
    answers = [dict.fromkeys(asked[0], ATTACK)]
    html = render(with_answers(page(hostile(either), show_text=True), Kept(answers)))
    found = Reader(html)
    assert {name for name, _ in found.tags} <= {name for name, _ in known.tags}
    assert html.count("<script") == 1  # our own
    assert "<img" not in html
    assert ATTACK in "".join(found.text)  # shown, word for word
    for name, attributes in found.tags:
        assert set(attributes) <= {key for tag, seen in known.tags if tag == name for key in seen}


def test_nothing_is_loaded_and_nothing_runs(either: SteerResults) -> None:
    html = render(page(either))
    for name, attributes in Reader(html).tags:
        assert name not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert not {"src", "srcset", "xlink:href", "action", "style"} & set(attributes)
        if "href" in attributes and not (attributes["href"] or "").startswith("#h-"):
            assert attributes["href"] in {
                "https://arxiv.org/abs/2604.27818",
                "https://arxiv.org/abs/2509.09660",
                "data:,",
            }


def test_answers_say_whose_they_are(defend: SteerResults) -> None:
    asked = {"stage": "test/after", "id": "1", "prompt": "SECRET", "response": "b", "label": "refused"}
    kept = Kept([asked, {**asked, "stage": "test/surrogate_only"}])
    shown = render(with_answers(page(defend, show_text=True), kept))
    assert "SECRET" in shown
    for stage in ("test, with the mask", "test, MASCing, surrogate alone"):
        assert stage in shown


# ---------------------------------------------------------------------- the terminal


def test_the_summary_has_every_method_and_its_limits(either: SteerResults) -> None:
    shown = written(replace(either, model=replace(either.model, name="testbed:olmoe")), width=100)
    assert len(shown.splitlines()) <= 20
    assert "…" not in shown
    flat = " ".join(shown.split())
    for arm in ("after", "steermoe", "random", "surrogate_only"):
        gain = getattr(either.test, arm).gain
        assert f"{text.number(gain)} {text.interval(gain)}" in flat
    for part in ("testbed:olmoe", "T3", "over-refusal", "≤ 10 kept?", "learnt through the model", "real model"):
        assert part in flat


def test_the_summary_takes_no_markup_and_no_escape_codes(defend: SteerResults) -> None:
    name = "testbed [red]x[/red] [/] \x1b]0;gotcha\x07"
    shown = written(replace(defend, model=replace(defend.model, name=name)))
    assert "[red]x[/red] [/]" in shown
    assert "\x1b" not in shown
