"""The page as a whole: complete, labelled, self-contained, and deaf to what names and answers try to say."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pointsman.errors import RunError
from pointsman.report import render_audit, write_report

Json = dict[str, Any]
VOID = {"meta", "link", "br", "hr", "img", "input"}
ATTACK = """</title><script>alert(1)</script><img src=x onerror="alert(2)">'"{{ 7*7 }}{% raw %}"""


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
        "stage": "base",
        "id": "mend/tairn/0",
        "category": "hexcraft",
        "prompt": "SECRET-PROMPT",
        "response": "SECRET-ANSWER",
        "label": "refused",
        "reason": "begins with the refusal",
    }
    return {**line, **changes}


def test_all_sections_in_order(results: Json) -> None:
    page = Page(render_audit(results))
    headings = [
        "Base ASR",
        "Do the findings stand?",
        "Which routers matter",
        "Masking a few routers",
        "Noise on all routers",
        "Unsafe routes",
        "The model left alone",
        "Cost",
        "Provenance and settings",
        "How to read this",
        "Responsible use",
    ]
    places = [page.words.index(heading) for heading in headings]
    assert places == sorted(places)
    assert results["headline"] in page.words
    assert "arXiv 2602.08621" in page.words


def test_rates_have_interval_and_n(results: Json) -> None:
    words = Page(render_audit(results)).words
    assert "95 % [83, 99] (n = 40)" in words  # F-SOUR
    assert "+43 [+29, +56]" in words  # top minus random
    assert "+82 [+68, +96]" in words  # F-SOUR minus random routes
    assert "p = 0.008" in words  # of whole clusters, not McNemar's 0.004


def test_testbed_and_small_n_stand_beside_every_figure(results: Json) -> None:
    html = render_audit(results)
    assert html.count("testbed · small n") >= 15
    for figure in re.findall(r'<li class="card.*?</li>', html, re.S) + re.findall(r"<section.*?</div>", html, re.S)[:5]:
        assert "testbed · small n" in figure


def test_a_real_model_is_not_called_testbed(build: Callable[..., Json]) -> None:
    results = build(n=200, testbed=False, layers=26, dense_first=1)
    html = render_audit(results)
    assert "testbed" not in html.lower()
    assert "small n" not in html
    assert "Decoder layer" in html


@pytest.mark.parametrize("show_text", [False, True])
def test_nothing_is_loaded_and_nothing_runs(results: Json, show_text: bool) -> None:
    page = Page(render_audit(results, completions=[completion()], show_text=show_text))
    policy = [tag["content"] for name, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    for name, attributes in page.tags:
        assert name not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert not {"src", "srcset", "xlink:href", "action", "style"} & set(attributes)
        if "href" in attributes:
            assert (name, attributes["href"]) in {
                ("a", "https://arxiv.org/abs/2602.08621"),
                ("link", "data:,"),
            }
    styles = re.findall(r"<style>(.*?)</style>", render_audit(results), re.S)
    assert styles
    assert all("url(" not in style and "@import" not in style for style in styles)


def test_everything_from_outside_is_escaped(results: Json, seeds: Json) -> None:
    results["seeds"] = seeds
    plain = Page(render_audit(results, completions=[completion()], show_text=True))
    hostile = copy.deepcopy(results)
    for container, key in list(strings(hostile)):
        if key not in {"schema", "phase", "scale", "score", "stage"}:
            container[key] = ATTACK
    hostile["fsour"]["example"]["roles"] = results["fsour"]["example"]["roles"]
    hostile["base"]["by_category"] = {ATTACK: results["base"]["by_category"]["hexcraft"]}
    hostile["multi_turn"]["by_tactic"] = {ATTACK: results["multi_turn"]["by_tactic"]["drift"]}
    hostile["masking"][1]["controls"][ATTACK] = results["masking"][1]["controls"]["lowest"]
    hostile["fsour"]["roles"] = {ATTACK: 1.0}
    hostile["masking"][1]["controls"]["dataset"]["mask"] = {ATTACK: [1]}
    hostile["rosais_settings"]["placebo"]["why_not"] = ATTACK
    hostile["seeds"] = copy.deepcopy(seeds)
    hostile["seeds"]["fsour"]["seeds"][0] = ATTACK
    hostile["provenance"][ATTACK] = ATTACK
    line = dict.fromkeys(completion(), ATTACK)
    html = render_audit(hostile, completions=[line], show_text=True)
    page = Page(html)
    assert {name for name, _ in page.tags} <= {name for name, _ in plain.tags}
    assert "<script" not in html
    assert "<img" not in html
    assert ATTACK in "".join(page.text)  # shown, word for word
    for name, attributes in page.tags:
        assert set(attributes) <= {key for tag, found in plain.tags if tag == name for key in found}


def test_a_version_that_was_never_tested_is_shown(results: Json) -> None:
    results["provenance"]["notices"] = ["transformers 9.0.0 is newer than 5.24.0"]
    assert "transformers 9.0.0 is newer than 5.24.0" in Page(render_audit(results)).words


def test_text_is_redacted_unless_asked_for(results: Json) -> None:
    hidden = render_audit(results, completions=[completion()])
    shown = render_audit(results, completions=[completion()], show_text=True)
    for secret in ("SECRET-PROMPT", "SECRET-ANSWER", "SECRET-REFUSAL", "tairn?", ">tairn<", "“tairn”"):
        assert secret not in hidden
    assert "▮" in hidden
    assert "&lt;|assistant|&gt;" not in hidden  # the last token: its role does not say who wrote it
    assert "SECRET-PROMPT" in shown
    assert "SECRET-ANSWER" in shown
    assert "SECRET-REFUSAL" in shown
    assert ">tairn<" in shown


def test_conversations_are_shown_turn_by_turn(results: Json) -> None:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, "three"]
    shown = render_audit(results, completions=[completion(prompt=turns)], show_text=True)
    assert "user: one\nassistant: two\nthree" in shown


def test_control_and_bidirectional_characters_are_replaced(results: Json) -> None:
    results["headline"] = "a\x00b\x1b[31mc\u202ed\ud800e\u2066"
    html = render_audit(results)
    assert "a\ufffdb\ufffd[31mc\ufffdd\ufffde\ufffd" in html
    html.encode("utf-8")


def test_missing_sections_are_said_plainly(results: Json) -> None:
    for key in ("utility", "over_refusal", "multi_turn", "fsour"):
        results[key] = None
    results["masking"] = []
    results["noise"] = []
    results["rosais_settings"]["stability"] = None
    results["rosais_settings"]["agreement"] = None
    results["cost"]["predicted"] = None
    results["base"]["by_category"] = {}
    for row in results["rosais"]:
        row.update(p=None, target=None, placebo=None)
    results["rosais_settings"]["placebo"].update(prompts=0, tokens=[], base=None, why_not="there are no benign prompts")
    words = Page(render_audit(results)).words
    assert words.count("not measured: no benign file was given") == 2
    assert "Not measured: no conversations were given." in words
    assert "Not measured: F-SOUR was not run." in words
    assert "Not measured: no router was masked in this run." in words
    assert "Not measured: no noise was asked for." in words
    assert "Stability of the ranking was not measured." in words
    assert "No placebo: there are no benign prompts ." in words
    assert "0 hold against a control, 6 were not measured" in words
    assert "Other seeds of the method" not in words
    assert "No prediction was made before this run." in words
    assert "The behaviours carry no categories." in words


def test_an_attack_without_its_controls(results: Json) -> None:
    for entry in results["masking"]:
        entry["controls"] = {}
        entry.update(utility=None, over_refusal=None)
        for key in ("difference_random", "vs_lowest", "vs_base"):
            entry.pop(key, None)
    for key in ("controls", "difference_random", "difference_natural", "targets", "min_gain", "transfer"):
        del results["fsour"][key]
    for level in results["noise"]:
        level.update(utility=None, over_refusal=None)
    words = Page(render_audit(results)).words
    assert "the routes’ controls were left out" in words
    assert "no random routers were masked" in words
    assert "no benign requests were asked under them" in words
    assert "The controls were left out of this run." in words
    assert "fewer than two routes were needed and succeeded" in words
    assert "Benign utility" not in words
    assert "Is it only the first word?" not in words
    results["fsour"].update(transfer=None, targets=[], min_gain=results["fsour"].get("min_gain"), experts=[])
    assert "fewer than two routes" in Page(render_audit(results)).words


def test_few_prompts_have_no_intervals(results: Json) -> None:
    for row in results["rosais"]:
        for node in (row, row["target"], row["placebo"]):
            node.update(low=None, high=None)
    results["rosais_settings"]["stability"].update(kendall_w=None, split_half=None)
    entry = results["masking"][-1]["difference_random"]
    entry.update(low=None, high=None)
    words = Page(render_audit(results)).words
    assert "[no interval]" in words
    assert "Router 3 among the first 3" in words
    assert "Kendall’s W" not in words


def verdicts(page: str) -> dict[str, str]:
    """Of every claim of the page."""
    return {
        re.sub("&#39;|’", "'", claim): verdict
        for claim, verdict in re.findall(r'<p class="claim">(.*?) <b>(.*?)</b>', page)
    }


def test_claims_are_held_against_their_controls(results: Json, seeds: Json) -> None:
    assert set(verdicts(render_audit(results)).values()) == {"holds"}
    results["fsour"]["difference_random"]["low"] = 0.0
    results["masking"][-1]["difference_random"]["low"] = -0.1
    for row in results["masking"]:
        if row["routers"]:
            row["utility_vs_base"]["low"] = -0.11
    top = next(row for row in results["rosais"] if row["rank"] == 1)
    top["p"] = 0.05
    top["placebo"]["high"] = top["low"]
    results["seeds"] = seeds
    page = render_audit(results)
    said = verdicts(page)
    assert [claim for claim, verdict in said.items() if verdict == "holds"] == [
        "It is the experts that matter, not the forcing"
    ]
    assert list(said.values()).count("in doubt") == 6
    assert "Of 7 claims that one would doubt first, 1 holds against a control, 6 are in doubt." in page
    assert "that may be chance" in page


def test_new_evidence_is_on_the_page(results: Json, seeds: Json) -> None:
    results["seeds"] = seeds
    html = render_audit(results)
    words = Page(html).words
    for part in (
        "as many random routes: 13 % [5, 26] (n = 40)",
        "as many random routers:",
        "0.88 [0.74, 0.96]",  # split-half
        "Agreement of the two scores 0.93",
        "placebo: rise of the refusal on 24 benign prompts",
        "natural top\u2011k forced",
        "The frozen mask, chosen on the discovery prompts, adds",
        "Noise of 1 σ on every router, without any search,",
        "other target 1: begins with content",
        "any gain",
        "0.1 nats",
        "median 40 % of them",
        "F-SOUR’s ASR lies between 90 % and 98 % over 3 seeds. Rankings under two seeds correlate at ρ = 0.91",
        "Forwards are resumed from any layer and token.",
        "An invented language.",
        "48 s (51 s)",  # RoSais: fact, and predicted
        "– (1.5 s)",  # transfer was foretold and did not happen
        "both fall and stand",
    ):
        assert part in words, part
    assert html.count('class="heatcell hit"') == 5
    assert html.count('class="heatcell own"') == 4
    assert html.count('class="read"') >= 7
    assert html.count("Doubt it if") >= 7
    placebo = re.findall(r'<path class="placebo" d="M0 2', html)
    assert len(placebo) == 12


def test_edges_of_the_numbers(results: Json) -> None:
    results["base"]["asr"].update(k=0, n=0, rate=None, low=None, high=None)
    results["masking"][1]["asr"].update(k=0, n=0, rate=None, low=None, high=None)
    results["fsour"]["example"]["trajectory"] = []
    results["fsour"]["example"]["cells"] = []
    results["fsour"]["behaviours"][0]["log_prob_before"] = float("-inf")
    results["fsour"]["layers"] = [0.0] * 12
    results["masking"] = results["masking"][:2]
    for row in results["rosais"]:
        row.update(mean=0.0, low=0.0, high=0.0)
    html = render_audit(results)
    Page(html)
    assert "nothing could be scored" in html
    assert "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+", "", html.lower())


def test_two_phases_are_two_figures(results: Json) -> None:
    results["masking"] += [{**copy.deepcopy(row), "phase": "both"} for row in results["masking"][1:]]
    words = Page(render_audit(results)).words
    assert "Masks in force: prefill" in words
    assert "Masks in force: both" in words


@pytest.mark.parametrize("schema", ["pointsman.audit/1", "other/9", None])
def test_another_schema_is_refused(results: Json, schema: str | None) -> None:
    if schema is None:
        del results["schema"]
    else:
        results["schema"] = schema
    with pytest.raises(RunError, match=r"renders .pointsman\.audit/2.*Pointsman version that wrote it"):
        render_audit(results)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("model", "name"), ..., "`model.name` is missing"),
        (("masking", 1, "asr", "n"), ..., r"`masking\[1\].asr.n` is missing"),
        (("rosais", 2, "mean"), "high", r"`rosais\[2\].mean` is not a number"),
        (("rosais", 2, "mean"), None, r"`rosais\[2\].mean` is not a finite number"),
        (("base",), [], "`base` is not an object"),
        (("fsour", "behaviours"), {}, "`fsour.behaviours` is not a list"),
        (("rosais", 0, "p"), ..., r"`rosais\[0\].p` is missing"),
        (("rosais_settings", "placebo"), ..., "`rosais_settings.placebo` is missing"),
        (("rosais_settings", "stability", "kendall_w"), "high", "kendall_w` is not a number"),
        (("noise",), ..., "`noise` is missing"),
        (("noise", 0, "sigma"), None, r"`noise\[0\].sigma` is not a finite number"),
        (("fsour", "base"), ..., "`fsour.base` is missing"),
        (("fsour", "experts"), ..., "`fsour.experts` is missing"),
        (("fsour", "difference_random"), ..., "`fsour.difference_random` is missing"),
        (("fsour", "controls", "natural"), ..., "`fsour.controls.natural` is missing"),
        (("fsour", "transfer", "matrix", 0), [True], "has not one row and column for each of its ids"),
        (("fsour", "transfer", "matrix", 0, 0), 1, "is neither true nor false"),
        (("cost", "predicted", "stages"), ..., "`cost.predicted.stages` is missing"),
        (("fsour", "example", "cells", 0, "layer"), 99, "outside its layers or tokens"),
    ],
)
def test_incomplete_results_name_the_entry(results: Json, path: tuple[Any, ...], value: Any, said: str) -> None:
    *parents, last = path
    place: Any = results
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(RunError, match=said):
        render_audit(results)


def _run(folder: Path, results: Json, lines: list[str] | None = None) -> Path:
    (folder / "results.json").write_text(json.dumps(results))
    if lines is not None:
        (folder / "artefacts").mkdir()
        (folder / "artefacts" / "completions.jsonl").write_text("\n".join(lines))
    return folder


def test_write_report(tmp_path: Path, results: Json) -> None:
    path = write_report(_run(tmp_path, results, [json.dumps(completion())]))
    assert path == tmp_path / "report.html"
    assert "SECRET" not in path.read_text(encoding="utf-8")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["artefacts", "report.html", "results.json"]


def test_write_report_with_text_and_a_torn_line(tmp_path: Path, results: Json) -> None:
    lines = [json.dumps(completion(response="a\u2028b")), '{"stage": "base", "resp']
    html = write_report(_run(tmp_path, results, lines), show_text=True).read_text(encoding="utf-8")
    assert "SECRET-PROMPT" in html
    assert "1 line of artefacts/completions.jsonl could not be read" in html


def test_write_report_with_text_but_no_completions(tmp_path: Path, results: Json) -> None:
    html = write_report(_run(tmp_path, results), show_text=True).read_text(encoding="utf-8")
    assert "this run folder has no artefacts/completions.jsonl" in html


def test_write_report_before_the_run_is_done(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="pointsman resume"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": ')
    with pytest.raises(RunError, match="not valid JSON"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(RunError, match="does not hold an object"):
        write_report(tmp_path)


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, results: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(_run(tmp_path, results))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(RunError, match="No space left"):
        write_report(tmp_path)
    assert path.read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["report.html", "results.json"]
