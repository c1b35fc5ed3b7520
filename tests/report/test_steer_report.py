"""The page of a steer run: complete, self-contained, true to its numbers, and calm about what is missing."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from steer_results import steer_results

from pointsman.errors import RunError
from pointsman.report import render_audit, render_steer, summary_table, write_report
from pointsman.report.common import stage_name
from pointsman.report.steer.frontier import chosen_of, loss
from pointsman.report.steer.outcomes import BROKEN, KEPT, OPEN, UNSURE, limited, strips
from pointsman.report.steer.words import words_of
from pointsman.report.values import STEER, Difference, Node, Rate, check_schema

Json = dict[str, Any]
VOID = {"meta", "link", "br", "hr", "img", "input"}
ATTACK = """</title><script>alert(1)</script><img src=x onerror="alert(2)">'"{{ 7*7 }}{% raw %}"""
OPTIONAL = (
    "surrogate", "gap", "circuit", "upper_bound", "latency", "seeds", "overfit", "comparisons", "contexts", "splits",
    "baseline_validation", "chosen", "candidates", "artefact", "notes", "suite", "seed", "small_n",
)  # fmt: skip


class Page(HTMLParser):
    """A strict reader: tags must nest; text and attributes are collected."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"[\s\u202f]+", " ", " ".join(self.text))


def said(results: Json, **options: Any) -> str:
    return Page(render_steer(results, **options)).words


def spoken(text: str) -> str:
    return text.replace("\u202f", " ")


def strings(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every string in a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        if isinstance(item, str):
            yield value, key
        else:
            yield from strings(item)


def completion(**changes: Any) -> Json:
    line = {
        "stage": "test/after",
        "id": "mend/tairn/0",
        "category": "hexcraft",
        "prompt": [{"role": "user", "content": "SECRET-PROMPT"}],
        "response": "SECRET-ANSWER",
        "label": "refused",
        "reason": "begins with the refusal",
    }
    return {**line, **changes}


@pytest.fixture(params=["defend", "allow"])
def either(request: pytest.FixtureRequest) -> Json:
    return steer_results(request.param)


@pytest.fixture
def defend() -> Json:
    return steer_results()


def test_all_sections_in_order(defend: Json) -> None:
    words = said(defend)
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
    place = 0
    for heading in headings:  # index raises where one is missing or out of order
        place = words.index(heading, place)
    for part in (defend["headline"], "arXiv 2604.27818", "arXiv 2509.09660", "the adversary controls inputs only"):
        assert part in words


def test_allow_speaks_of_requests(either: Json) -> None:
    words = said(either)
    if either["scenario"]["objective"] == "allow":
        assert "Answered, with the mask" in words
        assert "Answered: GSR" in words
        assert "requests of the scenario that were refused" in words
        assert "Other restricted requests refused, by category" in words
        for other in ("Defended", "turn where safety falls", "by tactic", "DSR"):
            assert other not in words
    else:
        assert "Defended: DSR, the whole conversation played again" in words
        assert "GSR" not in words


def test_numbers_equal_the_results(either: Json) -> None:
    words, node = said(either), Node(either)
    test, compared = node["test"], node["comparisons"]
    for arm in ("before", "after", "steermoe", "random", "surrogate_only"):
        rate = test[arm]["gain"].rate()
        assert f"{rate.percent} {rate.interval}".replace("\u202f", " ") in words
    for key in ("benign", "over_refusal", "held", "garbage"):
        for arm in ("before", "after"):
            rate = test[arm][key].rate()
            assert spoken(f"{rate.fine} ({rate.count})") in words, key
    for key in ("benign", "over_refusal", "held"):
        assert compared[key].difference().fine in words, key
    for key in ("gain", "vs_random", "vs_steermoe"):
        assert compared[key].difference().short in words, key
    for name, found in test["after"]["by_category"].items():
        assert name in words
        assert spoken(found["gain"].rate().full) in words
    size, possible = node["circuit"]["size"].integer(), node["circuit"]["possible"].integer()
    assert f"The mask moves {size} of {possible}" in words
    assert "AUROC 0.95 [0.93, 0.97] on" in words
    assert "matched pairs, which share question, tactic and number of turns, 0.81 [0.71, 0.89]" in words
    assert "from length alone one would reach 0.77 [0.72, 0.82]" in words
    assert "Surrogate alone: the surrogate 100 %, the model 27 %" in words
    assert "An answer takes 1.01 × as long under the mask [1.00, 1.03], measured in 12 rounds" in words
    assert "share 57 % of their entries" in words
    assert "upper bound" in words


def test_turns_and_tactics(defend: Json) -> None:
    words = said(defend)
    for arm in ("before", "after"):
        for row in defend["test"][arm]["turns"]:
            assert f"{row['fallen']} of {row['reached']}" in words
    assert re.search(r"Without the mask \d+ fall, most of them \(\d+\) at turn 4\.", words)
    for arm in ("before", "after"):
        defend["test"][arm]["turns"] = [{"turn": t, "reached": 100 - t, "fallen": 1} for t in range(1, 31)]
    assert "18 later turns" in said(defend)
    for row in defend["test"]["after"]["turns"]:
        row["fallen"] = 0
    assert "With it none falls." in said(defend)


def test_the_frontier_shows_every_candidate_and_marks_the_chosen(either: Json) -> None:
    html = render_steer(either)
    page, candidates = Page(html), [item for item in either["candidates"] if item["stage"] == "fine"]
    screened = len(either["candidates"]) - len(candidates)
    shapes = [attributes.get("class") or "" for name, attributes in page.tags if name == "svg" and attributes.get("x")]
    marks = [style for style in shapes if style.startswith(("mascing", "steermoe", "random"))]
    assert len(marks) == len(candidates) + 1
    assert sum("picked" in style for style in marks) == 1
    assert sum("kept" in style for style in marks) == 1 + sum(item["admissible"] for item in candidates)
    assert {style.split()[0] for style in marks} == {"mascing", "steermoe", "random"}
    assert html.count('class="stairs') == 2
    assert html.count('class="ring"') == 1
    for legend in (
        "MASCing, on-policy",
        "MASCing, through the model",
        "filled: keeps every limit",
        "hollow: breaks one",
    ):
        assert legend in page.words
    assert f"All {len(candidates)} settings" in page.words
    assert f"{screened} settings screened without generating" in page.words
    for item in candidates:
        assert f'title="{item["id"]}"' in html
    kept = sum(item["admissible"] for item in candidates)
    assert f"Of {len(candidates)} settings that answered the validation prompts, {kept} keep every limit" in page.words
    assert f"({screened} more were only screened)" in page.words


def test_titles_hold_the_interval_and_what_breaks(defend: Json) -> None:
    found = next(item for item in defend["candidates"] if "garbage" in item["broken"])
    rate = Node(found)["gain"].rate()
    titles = re.findall(r"<title>(.*?)</title>", render_steer(defend))
    assert any(rate.full in title and "garbage" in title.rpartition("breaks: ")[2] for title in titles)


def test_worst_loss_is_that_of_the_measure_that_suffers_most(defend: Json) -> None:
    best, base = chosen_of(Node(defend)), Node(defend)["baseline_validation"]
    assert best is not None
    worst = loss(best, base)
    assert worst is not None
    signs = {"benign": -1, "benign_conversations": -1, "over_refusal": 1, "held": -1}
    drops = {key: sign * (best.value[key]["rate"] - base.value[key]["rate"]) for key, sign in signs.items()}
    assert worst == (max(drops, key=drops.__getitem__), max(drops.values()))


def test_limits_are_judged_by_point_and_interval(defend: Json) -> None:
    def verdicts() -> dict[str, str]:
        node = Node(defend)
        return {row.key: row.verdict for row in limited(node, words_of(node))}

    assert set(verdicts().values()) == {KEPT}
    compared = defend["comparisons"]
    compared["benign"].update(difference=-0.01, low=-0.021, high=0.0)
    compared["over_refusal"].update(difference=0.031, low=0.01, high=0.05)
    compared["held"].update(difference=0.3, low=0.2, high=0.4)  # refuses more: no loss
    defend["test"]["after"]["garbage"].update(rate=0.02, low=0.01, high=0.02)
    defend["scenario"]["limits"]["benign_conversations"] = None
    assert verdicts() == {
        "benign": UNSURE,
        "benign_conversations": OPEN,
        "over_refusal": BROKEN,
        "held": KEPT,
        "garbage": KEPT,
    }
    words = said(defend)
    assert "It breaks 1 of 4 limits: over-refusal." in words
    assert "3 of 4" in words
    assert "rise ≤ 3.0" in words
    assert "≤ 3 OVER" in written(summary_table(defend))


def test_losses_beyond_the_axis_are_drawn_at_its_end(defend: Json) -> None:
    defend["comparisons"]["benign"].update(difference=-0.9, low=-0.95, high=-0.8)
    node = Node(defend)
    placed, marks = strips(limited(node, words_of(node)))
    assert placed[0].at == placed[0].high == 99.0
    assert all(strip.limit is not None and strip.zero < strip.limit < 99 for strip in placed)
    assert len(marks) <= 8


def test_no_admissible_mask_is_said_at_the_top(defend: Json) -> None:
    defend["chosen"]["admissible"] = False
    next(item for item in defend["candidates"] if item["chosen"])["admissible"] = False
    words = said(defend)
    assert "No mask kept every limit on validation." in words
    assert "it does not keep every limit" in words
    assert "No mask kept every limit on validation." in written(summary_table(defend))


def test_claims(defend: Json) -> None:
    assert "Of 7 claims that one would doubt first, 7 hold." in said(defend)
    defend["comparisons"]["vs_steermoe"].update(difference=-0.02, low=-0.09, high=0.05, p_clustered=0.6)
    defend["surrogate"]["matched"]["auroc"].update(value=0.55, low=0.44)
    defend["overfit"]["validation"].update(rate=0.99)
    defend["seeds"][2]["gain"].update(rate=0.3, low=0.2)
    defend["test"]["random"] = None
    words = said(defend)
    assert "Of 7 claims that one would doubt first, 2 hold, 4 are in doubt, 1 was not measured." in words
    assert "random mask of the same size was not measured on the test split" in words


@pytest.mark.parametrize("gone", ["null", "absent"])
@pytest.mark.parametrize("key", OPTIONAL)
def test_a_missing_part_breaks_nothing(either: Json, key: str, gone: str) -> None:
    if gone == "null":
        either[key] = None
    else:
        del either[key]
    assert either["headline"] in said(either)
    assert "before" in written(summary_table(either))


def test_everything_optional_missing_at_once(either: Json) -> None:
    for key in OPTIONAL:
        either.pop(key, None)
    for arm in ("steermoe", "random", "surrogate_only"):
        either["test"][arm] = None
    for arm in ("before", "after"):
        kept = {key: either["test"][arm][key] for key in ("gain", "garbage")}
        either["test"][arm] = kept
    either["scenario"] = {key: either["scenario"][key] for key in ("name", "objective")}
    words = said(either)
    for part in (
        "No surrogate was trained in this run.",
        "The gap between surrogate and model was not measured.",
        "The chosen method has no steering matrix, so there is no circuit to show.",
        "Latency was not measured.",
        "Not measured in this run: SteerMoE, random mask, surrogate alone. No upper bound was given.",
        "The gap between validation and test was not measured.",
        "No list of what was tried is in the results.",
        "No limit could be checked.",
        "no limit could be checked",
        "No other method was measured beside this mask.",
    ):
        assert part in words, part
    for section in ("Where it helps", "The turn where", "Other seeds of the method", "What it learnt from"):
        assert section not in words
    assert "not run" in written(summary_table(either))


def test_nulls_inside_the_parts(defend: Json) -> None:
    defend["circuit"].update(stability=None, sigma=None, layers=None)
    defend["surrogate"].update(auroc=None, calibration=None, seeds=None, length_only=None)
    defend["surrogate"]["matched"]["auroc"] = None
    defend["baseline_validation"]["held"] = None
    for item in defend["candidates"]:
        item.update(held=None, seconds_per_answer=None, norm1=None, benign_conversations=None)
    defend["gap"][0].update(surrogate_turned=None)
    defend["gap"][0]["lambda"] = None
    defend["contexts"]["validation"] = None
    defend["upper_bound"]["what"] = None
    words = said(defend)
    assert "One seed of the method: whether another finds the same circuit was not measured." in words
    assert "Its accuracy was not measured." in words
    assert "Other seeds of the surrogate were not trained." in words
    assert "there were no matched pairs" in words
    assert "logits at α" not in words


def test_small_n_and_nothing_scored() -> None:
    results = steer_results(n=6)
    assert results["small_n"]
    words = said(results)
    assert "Small n. Fewer than 100 prompts" in words
    assert words.count("testbed · small n") >= 12
    empty = {"k": 0, "n": 0, "rate": None, "low": 0.0, "high": 1.0, "method": "no rows", "clusters": None}
    results["test"]["after"]["gain"] = results["test"]["before"]["benign"] = dict(empty)
    results["comparisons"]["gain"].update(difference=None, low=-1.0, high=1.0)
    results["candidates"][0].update(gain=dict(empty), benign=dict(empty))
    results["overfit"]["test"] = dict(empty)
    words = said(results)
    assert "nothing could be scored (n = 0)" in words
    assert not re.search(r"\bnan\b", words.lower())
    written(summary_table(results))


def test_a_real_model_with_layers_of_different_width() -> None:
    results = steer_results(testbed=False, layers=48, experts=128, n=200)
    results["circuit"]["matrix"][5] = results["circuit"]["matrix"][5][:64]
    results["model"]["experts"] = [128] * 5 + [64] + [128] * 42
    html = render_steer(results)
    Page(html)
    assert "testbed" not in html.lower()
    assert html.count('class="heat up"') + html.count('class="heat down"') == results["circuit"]["size"] + 2  # legend


def test_the_heat_map_says_each_entry(defend: Json) -> None:
    html = render_steer(defend)
    alpha = defend["chosen"]["alpha"]
    for item in defend["circuit"]["entries"]:
        logits = alpha * defend["circuit"]["sigma"][item["layer"]] * item["value"]
        sign = "+" if item["value"] > 0 else "\u2212"
        title = f"layer {item['layer']}, expert {item['expert']}: {sign}{abs(item['value']):.2f} σ"
        assert f"{title}, {sign}{abs(logits):.2f} logits at α = {alpha:g}" in html


@pytest.mark.parametrize("show_text", [False, True])
def test_nothing_is_loaded_and_nothing_runs(either: Json, show_text: bool) -> None:
    page = Page(render_steer(either, completions=[completion()], show_text=show_text))
    policy = [tag["content"] for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    for name, attributes in page.tags:
        assert name not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert not {"src", "srcset", "xlink:href", "action", "style"} & set(attributes)
        if "href" in attributes:
            assert (name, attributes["href"]) in {
                ("a", "https://arxiv.org/abs/2604.27818"),
                ("a", "https://arxiv.org/abs/2509.09660"),
                ("link", "data:,"),
            }
    styles = re.findall(r"<style>(.*?)</style>", render_steer(either), re.S)
    assert styles
    assert all("url(" not in style and "@import" not in style for style in styles)


def test_everything_from_outside_is_escaped(either: Json) -> None:
    plain = Page(render_steer(either, completions=[completion()], show_text=True))
    hostile = copy.deepcopy(either)
    for container, key in list(strings(hostile)):
        if key not in {"schema", "objective", "method"}:
            container[key] = ATTACK
    for arm in ("before", "after"):
        hostile["test"][arm]["by_category"] = {ATTACK: either["test"][arm]["by_category"]["hexcraft"]}
        hostile["test"][arm]["by_tactic"] = {ATTACK: {"gain": either["test"][arm]["gain"]}}
    hostile["scenario"]["limits"][ATTACK] = 0.1
    hostile["splits"][ATTACK] = {ATTACK: 1}
    hostile["contexts"][ATTACK] = either["contexts"]["test"]
    hostile["candidates"][0]["broken"] = [ATTACK]
    hostile["circuit"]["stability"]["seeds"][0] = ATTACK
    hostile["seeds"][0][ATTACK] = ATTACK
    hostile["provenance"][ATTACK] = ATTACK
    html = render_steer(hostile, completions=[dict.fromkeys(completion(), ATTACK)], show_text=True)
    page = Page(html)
    assert {name for name, _ in page.tags} <= {name for name, _ in plain.tags}
    assert "<script" not in html
    assert "<img" not in html
    assert ATTACK in "".join(page.text)  # shown, word for word
    for name, attributes in page.tags:
        assert set(attributes) <= {key for tag, found in plain.tags if tag == name for key in found}


def test_control_and_bidirectional_characters_are_replaced(defend: Json) -> None:
    defend["headline"] = "a\x00b\x1b[31mc\u202ed\ud800e\u2066"
    html = render_steer(defend)
    assert "a\ufffdb\ufffd[31mc\ufffdd\ufffde\ufffd" in html
    html.encode("utf-8")


def test_text_is_redacted_unless_asked_for(either: Json) -> None:
    hidden = render_steer(either, completions=[completion()])
    shown = render_steer(either, completions=[completion(), completion(stage="test/before")], show_text=True)
    assert "SECRET" not in hidden
    assert "SECRET-ANSWER" in shown
    assert "user: SECRET-PROMPT" in shown
    assert "test, with the mask" in shown
    assert "test, without the mask" in shown


def test_stage_names() -> None:
    assert stage_name("test/surrogate_only") == "test, surrogate alone"
    assert stage_name("fsour") == "F-SOUR"
    assert stage_name("on_policy/2") == "on policy, 2"


def test_write_report_picks_the_page_by_the_schema(tmp_path: Path, defend: Json) -> None:
    (tmp_path / "results.json").write_text(json.dumps(defend))
    (tmp_path / "artefacts").mkdir()
    (tmp_path / "artefacts" / "completions.jsonl").write_text(json.dumps(completion()))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<title>Steering of testbed:olmoe (testbed)</title>" in html
    assert "SECRET" not in html
    assert "SECRET-ANSWER" in write_report(tmp_path, show_text=True).read_text(encoding="utf-8")


def test_another_schema_is_refused(defend: Json) -> None:
    with pytest.raises(
        RunError, match=r"has schema .pointsman\.steer/1., and this page is that of .pointsman\.audit/2"
    ):
        render_audit(defend)
    defend["schema"] = "pointsman.steer/9"
    with pytest.raises(RunError, match=r"renders .pointsman\.audit/2. and .pointsman\.steer/1"):
        render_steer(defend)
    with pytest.raises(RunError, match=r"pointsman\.steer/9"):
        summary_table(defend)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("headline",), ..., "`headline` is missing"),
        (("scenario", "objective"), ..., "`scenario.objective` is missing"),
        (("test",), [], "`test` is not an object"),
        (("test", "after", "gain"), ..., "`test.after.gain` is missing"),
        (("test", "before", "benign", "n"), ..., "`test.before.benign.n` is missing"),
        (("test", "after", "turns"), {}, "`test.after.turns` is not a list"),
        (("test", "after", "turns", 0, "reached"), 1.5, r"`test.after.turns\[0\].reached` is not a whole number"),
        (("candidates", 3, "gain", "rate"), "high", r"`candidates\[3\].gain.rate` is not a number"),
        (("candidates", 3, "admissible"), "yes", r"`candidates\[3\].admissible` is neither true nor false"),
        (("circuit", "matrix", 1, 0), None, r"`circuit.matrix\[1\]\[0\]` is not a finite number"),
        (("comparisons", "benign", "low"), ..., "`comparisons.benign.low` is missing"),
        (("surrogate", "calibration", "bins", 0, "n"), ..., r"`surrogate.calibration.bins\[0\].n` is missing"),
        (("gap", 0, "model_turned"), ..., r"`gap\[0\].model_turned` is missing"),
        (("cost", "stages"), ..., "`cost.stages` is missing"),
    ],
)
def test_incomplete_results_name_the_entry(defend: Json, path: tuple[Any, ...], value: Any, problem: str) -> None:
    *parents, last = path
    place: Any = defend
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(RunError, match=problem):
        render_steer(defend)


def written(table: object, width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_summary_table_fits_eighty_columns(either: Json) -> None:
    text = written(summary_table(either))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(text.splitlines()) <= 20
    assert "…" not in text
    flat = " ".join(text.split())
    node = check_schema(either, STEER)
    for arm in ("after", "steermoe", "random", "surrogate_only"):
        rate = node["test"][arm]["gain"].rate()
        assert f"{rate.number} {rate.interval}" in flat
    for part in ("testbed:olmoe", "T3", "over-refusal", "≤ 3 kept", "MASCing, through the model", "real model"):
        assert part in flat


def test_summary_table_takes_no_markup_and_no_escape_codes(defend: Json) -> None:
    defend["model"]["name"] = "testbed [red]x[/red] [/] \x1b]0;gotcha\x07"
    text = written(summary_table(defend))
    assert "[red]x[/red] [/]" in text
    assert "\x1b" not in text


def test_fine_numbers_have_one_decimal() -> None:
    assert spoken(Rate(987, 1000, 0.987, 0.974, 0.994).fine) == "98.7 % [97.4, 99.4]"
    assert Rate(0, 0, None, None, None).fine == "nothing scored"
    assert Difference(-0.0067, -0.0132, 0.0).fine == "−0.7 [−1.3, 0.0]"
    assert Difference(None, None, None).fine == "–"
