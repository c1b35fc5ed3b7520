"""The page of an audit and its summary: complete, true to their results, and calm about what is missing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pointsman.errors import RunError
from pointsman.jobs.audit.claims import conclude
from pointsman.jobs.audit.page import page, summary
from pointsman.jobs.audit.results import AuditResults, Masked, Rise, RouterScore, ScreenAgreement
from pointsman.jobs.finished import read_results, write_report
from pointsman.report.html import render
from pointsman.report.terminal import table
from pointsman.report.text import NARROW
from pointsman.runs.results import Claim, ModelFacts, dump
from pointsman.stats.rates import Rate
from reader import ATTACK, Reader

EMPTY = Rate(0, 0, None, 0.0, 1.0, "no rows", 0)
SECRET = "SECRET"


def html(results: AuditResults, *, show_text: bool = False) -> str:
    return render(page(results, show_text=show_text))


def said(results: AuditResults, *, show_text: bool = False) -> str:
    return Reader(html(results, show_text=show_text)).words


def written(results: AuditResults, width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width).print(table(summary(results)))
    return out.getvalue()


def each_mask(results: AuditResults, change: Callable[[Masked], Masked]) -> AuditResults:
    return replace(results, masking=tuple(map(change, results.masking)))


def each_router(results: AuditResults, change: Callable[[RouterScore], RouterScore]) -> AuditResults:
    return replace(results, rosais=tuple(map(change, results.rosais)))


def of_testbed(results: AuditResults) -> AuditResults:
    return replace(results, suite="testbed", model=replace(results.model, name="testbed:olmoe"))


def without_controls(results: AuditResults) -> AuditResults:
    bare = each_mask(
        results,
        lambda row: replace(
            row, controls={}, utility=None, over_refusal=None, vs_base=None, vs_lowest=None, difference_random=None,
            utility_vs_base=None,
        ),
    )  # fmt: skip
    fsour = replace(
        results.fsour, controls=None, difference_random=None, difference_natural=None, targets=(), min_gain=(),
        transfer=None, experts=(),
    )  # fmt: skip
    noise = tuple(replace(level, utility=None, over_refusal=None) for level in results.noise)
    return replace(bare, fsour=fsour, noise=noise)


def hostile(found: Any, *, keep: tuple[str, ...] = ("phase", "scale", "score", "threat_model", "verdict")) -> Any:
    """Results in which every name is an attack."""
    if isinstance(found, str):
        return ATTACK
    if isinstance(found, Mapping):
        return {ATTACK if key in ("hexcraft", "story") else key: hostile(item) for key, item in found.items()}
    if isinstance(found, tuple):
        return tuple(map(hostile, found))
    if is_dataclass(found) and not isinstance(found, type):
        names = [f.name for f in fields(found) if f.name not in keep]
        return replace(found, **{name: hostile(getattr(found, name)) for name in names})
    return found


# ---------------------------------------------------------------------- the page


def test_all_sections_in_order(results: AuditResults) -> None:
    words = said(results)
    headings = [
        "Base ASR", "Do the findings stand?", "Which routers matter", "Masking a few routers", "Noise on all routers",
        "Unsafe routes", "Other seeds of the method", "The model left alone", "Cost", "Provenance and settings",
        "How to read this", "Responsible use",
    ]  # fmt: skip
    body = words[words.index("Key rates") :]  # behind the list of contents
    places = [body.index(heading) for heading in headings]
    assert places == sorted(places)
    assert results.headline.replace("F-SOUR", "F\u2011SOUR") in words
    assert "arXiv 2602.08621" in words


def test_testbed_and_small_n_stand_beside_every_figure(results: AuditResults) -> None:
    found = html(of_testbed(results))
    cards = re.findall(r'<li class="card.*?</li>', found, re.S)
    sections = re.findall(r"<section.*?</div>", found, re.S)
    assert (len(cards), len(sections)) == (6, 10)
    told = [figure for figure in (*cards, *sections) if "testbed · small n" in figure]
    assert len(told) == 14  # all but provenance and how to read
    assert "Testbed." in found
    many = html(replace(results, small_n=False))
    assert "small n" not in many
    assert "testbed" not in many.lower()


def test_only_papers_are_linked(results: AuditResults) -> None:
    links = [found["href"] for _, found in Reader(html(results)).tags if "href" in found]
    outside = [link for link in links if link is None or not link.startswith("#")]
    assert outside == ["data:,", "https://arxiv.org/abs/2602.08621"]


def test_names_from_outside_are_escaped(results: AuditResults) -> None:
    plain, attacked = Reader(html(results, show_text=True)), html(hostile(results), show_text=True)
    found = Reader(attacked)
    assert {name for name, _ in found.tags} <= {name for name, _ in plain.tags}
    assert "".join(found.text).count(ATTACK) > 100
    allowed = {(name, key) for name, attributes in plain.tags for key in attributes}
    assert {(name, key) for name, attributes in found.tags for key in attributes} <= allowed
    written(hostile(results))


def test_text_is_redacted_unless_asked_for(results: AuditResults) -> None:
    example = results.fsour.example
    assert example is not None
    roles = ("template", "content", "last", *example.roles[3:])
    tokens = ("TEMPLATE", f"{SECRET}-1 \n", f"{SECRET}-2", *(SECRET for _ in example.tokens[3:]))
    placebo = replace(results.rosais_settings.placebo, tokens=(f"{SECRET}-3",))
    told = replace(
        results,
        fsour=replace(results.fsour, example=replace(example, tokens=tokens, roles=roles)),
        rosais_settings=replace(results.rosais_settings, placebo=placebo),
    )
    hidden, shown = html(told), html(told, show_text=True)
    assert SECRET not in hidden.replace("TEMPLATE", "")
    assert "TEMPLATE" in hidden
    assert "▮" in hidden
    for secret in (f"{SECRET}-1␣⏎", f"{SECRET}-2", f"{SECRET}-3"):
        assert secret in shown
    assert "handle it accordingly" in shown


def test_missing_sections_are_said_plainly(results: AuditResults) -> None:
    placebo = replace(results.rosais_settings.placebo, prompts=0, tokens=(), base=None, why_not="there are none")
    bare = replace(
        each_router(results, lambda row: replace(row, p=None, target=None, placebo=None)),
        utility=None, over_refusal=None, multi_turn=None, masking=(), noise=(), seeds=None,
        base=replace(results.base, by_category={}),
        cost=replace(results.cost, predicted=None),
        rosais_settings=replace(results.rosais_settings, agreement=None, placebo=placebo),
        fsour=replace(results.fsour, example=None, transfer=None),
        model=replace(results.model, resumes=None),
    )  # fmt: skip
    words = said(bare)
    assert words.count("not measured: no benign file was given") == 2
    for part in (
        "Not measured: no conversations were given.", "Not measured: no router was masked in this run.",
        "not measured: masking was not run", "Not measured: no noise was asked for.", "No placebo: there are none.",
        "No prediction was made before this run.", "The behaviours carry no categories.",
        "No example route is in the results.", "fewer than two routes were needed and succeeded",
    ):  # fmt: skip
        assert part in words, part
    for part in ("Other seeds of the method", "Predicted", "resumed", "Target score and placebo"):
        assert part not in words, part
    assert "Not measured: no RoSais scores are in the results." in said(replace(bare, rosais=()))


def test_an_attack_without_its_controls(results: AuditResults) -> None:
    words = said(without_controls(results))
    assert "The controls were left out of this run." in words
    for part in (
        "Benign utility",
        "Is it only the first word?",
        "How few pairs",
        "as many random routes",
        "frozen mask, 1",
    ):
        assert part not in words, part


def test_few_prompts_have_no_intervals(results: AuditResults) -> None:
    stability = replace(results.rosais_settings.stability, kendall_w=None, split_half=None)
    few = replace(
        each_router(results, lambda row: replace(row, low=None, high=None)),
        rosais_settings=replace(results.rosais_settings, stability=stability),
    )
    words = said(few)
    assert "[no interval]" in words
    assert "Router 2 among the first 2" in words
    assert "Kendall’s W" not in words


def test_a_router_counts_as_top_where_p_is_small(results: AuditResults) -> None:
    assert "that may be chance" in said(results)
    sure = each_router(results, lambda row: replace(row, p=0.01 if row.rank == 1 else row.p))
    found = html(sure)
    assert "that may be chance" not in found
    assert found.count('<span class="star">*</span>') == 1
    dense = each_router(results, lambda row: replace(row, decoder_layer=row.layer + 1))
    assert "Decoder layer" in said(dense)


def test_claims_are_those_of_the_results(results: AuditResults) -> None:
    one = Claim.not_measured("id", "It flies", "nobody asked")
    words = said(replace(results, claims=(one,)))
    assert "It flies not measured nobody asked" in words
    assert "Of 1 claims that one would doubt first, 0 hold against a control, 1 was not measured." in words


def test_what_could_not_be_scored_is_said_where_there_is_any(results: AuditResults) -> None:
    assert "could not be scored" not in said(results)
    controls = results.fsour.controls
    assert controls is not None
    told = each_mask(results, lambda row: replace(row, unscored=2 if row.routers == 1 else 0))
    told = replace(
        told,
        base=replace(told.base, unscored=3),
        noise=tuple(replace(level, unscored=int(level.sigma == 1)) for level in told.noise),
        fsour=replace(
            told.fsour, unscored=4, controls=replace(controls, natural=replace(controls.natural, unscored=5))
        ),
    )
    words = said(told)
    for part in (
        "no success: 3.", "no success: 2 (top routers by RoSais, 1).", "no success: 1 (1 σ).",
        "no success: 4 (F-SOUR), 5 (natural top\u2011k).",
    ):  # fmt: skip
        assert part in words, part


def test_one_phase_needs_no_heading(results: AuditResults) -> None:
    one = replace(results, masking=tuple(row for row in results.masking if row.phase == "prefill"))
    found = html(one)
    assert "<h3>Masks in force" not in found
    assert found.count('aria-label="Legend"') == 1
    two = html(results)
    assert two.count("<h3>Masks in force") == two.count('aria-label="Legend"') == 2


def test_controls_of_other_names_are_shown(results: AuditResults) -> None:
    named = each_mask(results, lambda row: replace(row, controls={f"by_{key}": c for key, c in row.controls.items()}))
    words = said(named)
    assert "by random, 2 masked" in words
    assert "by dataset" in words


def test_the_best_of_many_numbers(results: AuditResults) -> None:
    transfer, seeds = results.fsour.transfer, results.seeds
    assert transfer is not None
    assert seeds is not None
    assert seeds.fsour is not None
    matrix = tuple(tuple(row == column or row == 0 for column in range(12)) for row in range(12))
    told = replace(
        results,
        fsour=replace(results.fsour, transfer=replace(transfer, matrix=matrix)),
        seeds=replace(seeds, fsour=replace(seeds.fsour, min=0.9, max=0.975)),
    )
    found = html(told)
    assert found.count('class="heatcell hit"') == 23
    assert found.count('class="heatcell own"') == 12
    assert found.count('class="placebo" d="M0') == 6
    assert found.count("Doubt it if") >= 7
    assert "F-SOUR’s ASR lies between 90 % and 98 % over 2 seeds." in Reader(found).words


def test_edges_of_the_numbers(results: AuditResults) -> None:
    example = results.fsour.example
    assert example is not None
    edges = replace(
        each_router(
            each_mask(results, lambda row: replace(row, asr=EMPTY if row.routers == 1 else row.asr)),
            lambda row: replace(row, mean=0.0, low=0.0, high=0.0),
        ),
        base=replace(results.base, asr=EMPTY),
        fsour=replace(
            results.fsour, example=replace(example, cells=(), trajectory=()), layers=(0.0,) * 6,
            behaviours=tuple(replace(row, log_prob_before=-1e300, forwards=10**18) for row in results.fsour.behaviours),
        ),
        cost=replace(results.cost, seconds=1e9, forwards=10**15, stages=()),
    )  # fmt: skip
    found = html(edges)
    assert "nothing could be scored" in Reader(found).words
    assert "unscored" in written(edges)
    assert not re.search(r"\b(nan|inf)\b", found.lower())


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(results: AuditResults, number: float) -> None:
    data = dump(results)
    data["base"]["asr"]["low"] = number
    with pytest.raises(RunError, match=r"`base.asr.low`: input should be a finite number"):
        read_results(data)


def test_a_pair_outside_the_route_is_refused(results: AuditResults) -> None:
    example = results.fsour.example
    assert example is not None
    outside = replace(example.cells[0], layer=99)
    endless = replace(example, layers=20_000)  # each is drawn; the results may come from a stranger
    for broken in (replace(example, cells=(outside,)), replace(example, roles=example.roles[1:]), endless):
        with pytest.raises(RunError, match="outside its layers or tokens"):
            html(replace(results, fsour=replace(results.fsour, example=broken)))


def test_a_matrix_that_is_not_square_is_refused(results: AuditResults) -> None:
    transfer = results.fsour.transfer
    assert transfer is not None
    broken = replace(transfer, matrix=((True,), *transfer.matrix[1:]))
    with pytest.raises(RunError, match="has not one row and column for each of its ids"):
        html(replace(results, fsour=replace(results.fsour, transfer=broken)))


def test_versions_that_were_never_tested_are_shown(results: AuditResults) -> None:
    notices = ("transformers 9.0.0 is newer than 5.24.0",)
    assert notices[0] in said(replace(results, provenance=replace(results.provenance, notices=notices)))


def test_models_whose_layers_differ(results: AuditResults) -> None:
    facts: ModelFacts = replace(results.model, experts=(8, 16), top_k=(1, 2))
    assert "experts 8, 16 top k 1, 2" in said(replace(results, model=facts))


def test_two_searches_stand_side_by_side(both: AuditResults) -> None:
    words = said(both).replace(NARROW, " ").replace("\u2011", "-")
    for part in (
        "With at most 57 forwards a prompt Guided finds more, 100 % against 0 %.",
        "F-SOUR at equal forwards at most 57 a prompt, as Guided",
        "the most that Guided takes 100 % [76, 100]",
        "what F-SOUR takes, median",
        "Guided 100 % [76, 100]",
        "a random route 17 % [5, 45]",
        "The pairs came in together",
        "Search of unsafe routes by the gradient",
        "iterations 12",
    ):  # fmt: skip
        assert part in words, part
    assert words.rindex("Two searches side by side") < words.rindex("Unsafe routes by the gradient")
    assert both.headline.replace("F-SOUR", "F\u2011SOUR") in said(both)


def test_cards_fill_rows_and_long_headlines_are_set_smaller(results: AuditResults, both: AuditResults) -> None:
    """Rows of three and of four: the style sheet knows these numbers."""
    found = [html(each) for each in (results, both)]
    assert [each.count('<li class="card') for each in found] == [6, 8]
    assert ['<h1 class="long">' in each for each in found] == [False, True]
    assert "100\u00a0% against 0\u00a0% (T1" in found[1]


@pytest.mark.parametrize("name", ["guided", "fsour"])
def test_one_search_alone(both: AuditResults, name: str) -> None:
    gone = {"guided": "fsour", "fsour": "guided"}[name]
    alone = conclude(replace(both, side_by_side=None, seeds=None, **{gone: None}))  # type: ignore[arg-type]
    words, told = said(alone), written(alone)
    assert "side by side" not in words
    assert ("Unsafe routes by the gradient" in words) == ("Guided ASR" in told) == (name == "guided")
    assert ("Does a route open other prompts?" in words) == ("F-SOUR ASR" in told) == (name == "fsour")
    assert {c.id for c in alone.claims} & {"guided_opens_more", "guided_opens_more_at_equal_forwards"} == set()
    assert ("F-SOUR" in alone.headline) == (name == "fsour")


def test_a_pair_outside_the_route_of_guided_is_refused(both: AuditResults) -> None:
    assert both.guided is not None
    assert both.guided.example is not None
    broken = replace(both.guided.example, roles=both.guided.example.roles[1:])
    with pytest.raises(RunError, match=r"`guided.example` has pairs outside"):
        html(replace(both, guided=replace(both.guided, example=broken)))


# ---------------------------------------------------------------------- the file


def test_write_report(tmp_path: Path, results: AuditResults) -> None:
    (tmp_path / "results.json").write_text(json.dumps(dump(results)))
    assert "Router audit of golden" in write_report(tmp_path).read_text(encoding="utf-8")


def test_results_that_are_incomplete_name_the_entry(tmp_path: Path, results: AuditResults) -> None:
    data = dump(results)
    del data["masking"][1]["asr"]["n"]
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(RunError, match=r"`masking\[1\].asr.n`: field required"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("schema", ["pointsman.audit/1", "other/9", None])
def test_another_schema_is_refused(tmp_path: Path, results: AuditResults, schema: str | None) -> None:
    (tmp_path / "results.json").write_text(json.dumps({**dump(results), "schema": schema}))
    with pytest.raises(RunError, match="Pointsman version that wrote it"):
        write_report(tmp_path)


# ---------------------------------------------------------------------- the terminal


def test_the_summary_of_the_testbed(results: AuditResults) -> None:
    told = " ".join(written(of_testbed(results)).split())
    for part in ("testbed:olmoe · threat model T1 · testbed · small n", "Testbed: says nothing of a real model."):
        assert part in told
    router = next(row for row in results.rosais if row.rank == 1)
    sure = each_router(results, lambda row: replace(row, p=0.0001 if row is router else row.p, placebo=None))
    assert "Top router 2: RoSais 0.21, p < 0.001, no placebo." in written(sure)


def test_the_summary_fits_a_small_screen(results: AuditResults) -> None:
    garbled = replace(results.fsour, garbage=replace(results.fsour.garbage, k=1))
    lines = written(replace(of_testbed(results), fsour=garbled)).splitlines()
    assert "Garbage under routes: F-SOUR 0 %." in " ".join(" ".join(lines).split())
    assert len(lines) <= 18
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in "".join(lines)


def test_the_summary_of_two_searches(both: AuditResults) -> None:
    lines = written(of_testbed(both)).splitlines()
    rows = [" ".join(line.split()) for line in lines]
    guided = rows.index("Guided ASR 100 [76, 100] 12 random routes 17 +83 [+58, +100] ✓")
    assert rows[guided + 1 : guided + 6] == [
        "natural top-k 0 +100 [+52, +100] ✓",
        "F-SOUR 100 0 [−24, +24] ?",
        "in 57 forwards 100 [76, 100] 12 F-SOUR 0 +100 [+52, +100] ✓",
        "F-SOUR ASR 100 [76, 100] 12 random routes 17 +83 [+58, +100] ✓",
        "natural top-k 0 +100 [+52, +100] ✓",
    ]
    assert not [row for row in rows if row.startswith("first search")]
    assert len(lines) <= 20  # a screen has 24, and the prompt needs some
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in "".join(lines)


def test_the_best_random_set_and_the_claim_stand_beside_the_attack(results: AuditResults) -> None:
    (line,) = [line for line in written(results).splitlines() if "top 2 masked, prefill" in line]
    assert re.search(r"random 8, best 17 +0 \[−25, \+25\] \?", line)
    words = said(results)
    assert "best of 2 sets 17 %, 1 as high as the top" in words.replace(NARROW, " ")
    assert "best 17 %, 1 reaches the top: in doubt" in words.replace(NARROW, " ")


def test_every_router_says_what_its_rank_means(results: AuditResults) -> None:
    placebo = Rise(0.0, 0.0, 0.0)
    sure = each_router(results, lambda row: replace(row, mean=0.5, low=0.4, high=0.6, p=0.001, placebo=placebo))
    assert "6 of 6 ranks mean something (2, 0, 4, 1, 3, 5)" in said(sure)
    assert "means nothing" not in said(sure)
    assert "Ranks that mean something: 6 of 6" in " ".join(written(sure).split())
    alike = each_router(sure, lambda row: replace(row, placebo=Rise(0.5, 0.4, 0.6)))
    assert said(alike).count("as large on benign prompts") == 6
    bare = each_router(sure, lambda row: replace(row, placebo=None))
    assert "What the rank means" not in said(bare)
    assert "Ranks that mean" not in " ".join(written(bare).split())


def test_the_summary_says_what_is_missing(results: AuditResults) -> None:
    told = written(replace(without_controls(results), utility=None, over_refusal=None, multi_turn=None))
    assert told.count("no benign file") == 2
    assert "not run" in told
    assert "random" not in told
    bare = written(replace(results, rosais=(), masking=()))
    assert "Top router" not in bare
    assert "masked" not in bare


def test_where_the_screen_ranked_nothing_says_that_rosais_did(results: AuditResults) -> None:
    agreement = ScreenAgreement(
        prompts=4, samples=20, spearman=0.731, low=0.5, high=0.864, kendall=None, top_n=2, same_top=1
    )
    settings = replace(
        results.rosais_settings, samples=0, scale="log_probability", screen=agreement,
        placebo=replace(results.rosais_settings.placebo, why_not="the screen has none"),
    )  # fmt: skip
    screened = each_router(replace(results, rosais_settings=settings), lambda row: replace(row, placebo=None))
    words, terminal = said(screened), written(screened)
    for part in (
        "Screen per router", "estimated by one backward pass a prompt", "to first order", "top routers by screen score",
        "lowest screen score", "Spearman ρ with RoSais 0.73 [0.50, 0.86]", "Kendall τ with RoSais –", "1 of 2",
        "on 4 prompts on which RoSais was measured too (20 masks)", "No placebo: the screen has none.",
    ):  # fmt: skip
        assert part in words, part
    assert "random masks on it alone" not in words
    assert "by RoSais" not in words
    assert "lowest RoSais" not in words
    assert "screen" in terminal
    assert "ρ to RoSais 0.73 (4 prompts)." in " ".join(terminal.split())
    usual = said(results)
    assert "screen" not in usual.lower().split("how to read this")[-1]
    assert "top routers by RoSais" in usual
