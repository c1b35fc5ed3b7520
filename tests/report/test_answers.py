"""Prompts and answers: what is made of the artefacts of a run, and what a page shows of it, whatever stands in them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pointsman.report.answers import Answered, Kept, answered
from pointsman.report.blocks import Page, Section
from pointsman.report.html import LONGEST, render
from pointsman.report.sections.answers import with_answers
from pointsman.report.write import read_kept
from reader import ATTACK, Reader

PAGE = Page(
    "kind", "title", "headline", [], "", [], [], [Section("cost", "Cost", [], [])], show_text=True,
    stages={"base": "as it is", "fsour": "F-SOUR"},
)  # fmt: skip


def record(stage: str, response: str = "R", label: str = "refused", **more: Any) -> dict[str, Any]:
    about = {"stage": stage, "id": "i", "category": "c", "prompt": "how?"}
    return {**about, "response": response, "label": label, "reason": "why", **more}


def only(kept: Kept) -> Answered:
    (prompt,) = answered(kept)
    return prompt


def words(kept: Kept) -> str:
    return Reader(render(with_answers(PAGE, kept))).words


# ---------------------------------------------------------------------- what is made of the artefacts


def test_the_same_words_under_several_stages_are_one_answer() -> None:
    lines = [
        record("base"),
        record("noise-0.1"),
        record("masking-1-both", "S", "correct"),
        record("fsour", "S", "correct"),
    ]
    prompt = only(Kept(lines))
    assert [a.stages for a in prompt.answers] == [("base", "noise-0.1"), ("masking-1-both", "fsour")]
    assert prompt.worst.stages == ("masking-1-both", "fsour")
    said = words(Kept(lines))
    assert "i c how? as it is noise 0.1 refused · why R masking 1 both F-SOUR correct · why S" in said


def test_prompts_are_told_apart_by_id_and_words_and_each_can_be_linked_to() -> None:
    lines = [record("base"), record("base", prompt="why?"), record("base", id="i/é <b>"), record("base", id="")]
    assert [p.anchor for p in answered(Kept(lines))] == ["a-i", "a-i~2", "a-i/-b", "a-prompt"]


def test_what_completions_have_no_room_for_is_read_beside_them() -> None:
    about = {"stage": "base", "id": "i", "source": "s", "score": 0.25, "finished": False}
    prompt = only(Kept([record("base")], attempts=[about], judge="own"))
    assert (prompt.source, prompt.base.verdict.score, prompt.base.finished) == ("s", 0.25, False)
    assert prompt.base.doubts == ("own is torn: score 0.25",)
    old = only(Kept([record("base")]))
    assert (old.source, old.base.verdict.score, old.base.finished, old.base.route) == ("", None, None, None)
    assert old.base.doubt == 0


def test_conversations_show_every_turn_and_where_they_fall() -> None:
    turns = [
        {"asked": "one", "said": "two", "label": "refused", "score": 0.0, "reason": "r"},
        {"asked": "three", "said": "four", "label": "correct", "score": 1.0, "reason": "r"},
    ]
    played = {"stage": "base", "id": "i", "source": "s", "fallen": 1, "turns": turns}
    line = record("base", "four", "correct", prompt="one / three", tactic="t")
    prompt = only(Kept([line], conversations=[played]))
    assert (prompt.base.fallen, prompt.base.verdict.score, len(prompt.base.turns)) == (1, 1.0, 2)
    said = words(Kept([line], conversations=[played]))
    assert "one two refused score 0 · r three Falls here, in turn 2. four correct score 1 · r" in said
    assert "one / three as it is correct · why four" in words(Kept([line]))  # an older run: what there is


def test_tokens_are_tinted_by_how_much_is_forced_there() -> None:
    pairs = [{"layer": n, "position": 1, "experts": [n, 7]} for n in (0, 1, 2)] + [{"layer": 0, "position": 9}]
    route = {"stage": "fsour", "id": "i", "layers": 4, "tokens": ["a", "b\n", "c"], "roles": [], "pairs": pairs}
    prompt = only(Kept([record("base"), record("fsour")], routes=[route]))
    found = prompt.others[0].route
    assert found is not None
    assert [(t.token, t.shade) for t in found.tints] == [("a", 0), ("b⏎", 4), ("c", 0)]
    assert found.tints[1].title == "3 of 4 layers: 0 (experts 0, 7), 1 (experts 1, 7), 2 (experts 2, 7)"
    assert (found.places, found.tokens) == (1, 3)


@pytest.mark.parametrize(
    ("label", "other", "doubt", "disputed"),
    [
        ("correct", "complied", 0.0, False),  # one judge can tell right from wrong, and nothing else
        ("wrong", "complied", 0.6, True),
        ("refused", "complied", 1.0, True),
        ("refused", "garbage", 0.3, False),
        ("unscored", "complied", 1.1, False),
    ],
)
def test_judges_that_disagree_leave_a_doubt(label: str, other: str, doubt: float, disputed: bool) -> None:
    verdict = {"stage": "base", "id": "i", "judge": "second", "label": other, "score": None, "reason": ""}
    base = only(Kept([record("base", label=label)], verdicts={"file": [verdict]}, judge="first")).base
    assert [o.judge for o in base.opinions] == ["first", "second"]
    assert (base.doubt, base.disputed) == (doubt, disputed)


def test_doubtful_verdicts_are_named_before_all_others() -> None:
    lines = [record("base"), record("fsour", "S", "correct", id="j"), record("noise", "S", "wrong", id="j")]
    assert only(Kept(lines[1:])).base.doubts == ("the same words are called wrong in noise",)
    said = words(Kept(lines))
    assert (
        "1 prompt of 2 with a verdict in doubt. Read these first: j , F-SOUR: the same words are called wrong" in said
    )
    assert "No verdict is in doubt" in words(Kept(lines[:1]))
    cut = {"stage": "base", "id": "i", "finished": False}
    assert only(Kept([record("base", label="correct")], [cut])).base.doubt == 0.4
    assert only(Kept([record("base")], [cut])).base.doubt == 0


def test_the_own_judge_asked_again_is_one_opinion_unless_it_changed_its_mind() -> None:
    same = {"stage": "base", "id": "i", "judge": "own", "label": "refused"}
    assert len(only(Kept([record("base")], verdicts={"own": [same]}, judge="own")).base.opinions) == 1
    other = {**same, "label": "complied"}
    assert len(only(Kept([record("base")], verdicts={"own": [other]}, judge="own")).base.opinions) == 2


ANYTHING = [None, True, -1, 1e999, "x", [], [[]], {}, {"a": None}]


@pytest.mark.parametrize("value", ANYTHING)
def test_whatever_a_file_holds_a_page_is_made(value: Any) -> None:
    keys = ("stage", "id", "category", "tactic", "prompt", "response", "label", "reason")
    deep = ("layers", "tokens", "pairs", "turns", "fallen", "score", "finished", "source", "judge")
    about = {"stage": "base", "id": "i"}
    lines = [{**record("base"), key: value} for key in keys] + [{}]
    others = [{**about, **dict.fromkeys(deep, value)}] + [{**about, key: value} for key in deep]
    others += [{**about, "layers": 2, "tokens": [value], "pairs": [value, {"position": value, "layer": value}]}]
    others += [{**about, "turns": [value, {"asked": value, "said": value, "score": value}]}]
    for other in others:
        kept = Kept(lines, [other], [other], [other], {"f": [other]})
        Reader(render(with_answers(PAGE, kept)))


def test_files_are_read_where_there_are_any(tmp_path: Path) -> None:
    nothing = read_kept(tmp_path, "own")
    assert (nothing.completions, nothing.verdicts, nothing.judge) == (None, {}, "own")
    assert "this run folder has no artefacts/completions.jsonl" in words(Kept())
    assert "artefacts/completions.jsonl holds no answers" in words(Kept([]))
    (tmp_path / "artefacts/verdicts").mkdir(parents=True)
    (tmp_path / "artefacts/completions.jsonl").write_text(json.dumps(record("base")) + '\n{"stage": "base", "resp')
    (tmp_path / "artefacts/verdicts/second.jsonl").write_text('{"stage": "base", "id": "i", "label": "complied"}\n[[')
    kept = read_kept(tmp_path, "own")
    assert [o.judge for o in only(kept).base.opinions] == ["own", "second"]
    assert "1 line of artefacts/completions.jsonl could not be read." in words(kept)


# ---------------------------------------------------------------------- hostile text, without a browser


HOSTILE = (
    ATTACK,
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "javascript:document.title='owned'//",
    "[x](javascript:document.title='owned')",
    "\u202egnp.exe\u2066\u200f",
    "nul\x00 and \x1b[31mred",
    "</style><style>*{display:none}",
    "\" autofocus onfocus=\"document.title = 'owned'",
    "<!--",
    "]]>",
)


def hostile(text: str, **more: Any) -> Kept:
    """A run in which everything that can be a text is `text`."""
    first = {"stage": text, "id": text, "category": text, "tactic": text, "prompt": text, "label": text, "reason": text}
    about = {"stage": text, "id": text, "source": text, "score": 0.5, "finished": False}
    turn = {"asked": text, "said": text, "label": text, "score": 0.5, "reason": text}
    route = {**about, "layers": 1, "tokens": [text], "pairs": [{"layer": text, "position": 0, "experts": [1]}]}
    lines = [{**first, "response": text}, {**first, "response": text + " again"}]
    lines.append({key: value for key, value in lines[0].items() if key != "tactic"})
    return Kept(
        lines, [about], [{**about, "fallen": 0, "turns": [turn]}], [route], {text: [{**about, "judge": text}]}, text
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_makes_no_tag_no_attribute_and_no_link(text: str) -> None:
    plain, html = Reader(render(with_answers(PAGE, hostile("text")))), render(with_answers(PAGE, hostile(text)))
    found = Reader(html)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    assert [set(attributes) for _, attributes in found.tags] == [set(attributes) for _, attributes in plain.tags]
    for name, attributes in found.tags:
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert (attributes.get("href") or "#").startswith("#") or name == "link"
        for data in (key for key in attributes if key.startswith("data-") and key != "data-filter"):
            assert re.fullmatch(r"[0-9. ]*", attributes[data] or ""), data
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)


def test_the_only_script_is_ours_and_the_policy_knows_its_hash() -> None:
    html = render(with_answers(PAGE, hostile("</script>")))
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].split("; ")[:2] == ["default-src 'none'", f"script-src 'sha256-{digest}'"]
    assert not re.search("innerHTML|outerHTML|insertAdjacent|document.write|eval|Function|JSON|fetch|import", script)
    assert "<script" not in render(Page(**{**vars(PAGE), "show_text": False}))


def test_a_huge_answer_is_cut_and_the_page_says_so() -> None:
    html = render(with_answers(PAGE, Kept([record("base", "x" * 1_000_000)])))
    assert html.count("x" * 1000) == LONGEST // 1000
    assert "980" in Reader(html).words
    assert "more characters are in the artefacts of the run" in html


# ---------------------------------------------------------------------- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")


def drawn(html: str, folder: Path, at: str = "") -> str:
    """The document as Chromium has it once everything ran that may run."""
    page = folder / "page.html"
    page.write_text(html, encoding="utf-8", errors="replace")
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"{page.as_uri()}{at}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@browser
def test_hostile_text_does_nothing_in_a_browser(tmp_path: Path) -> None:
    kept = [hostile(text) for text in HOSTILE]
    lines = [line for k in kept for line in k.completions or ()] + [record("base", "y" * 1_000_000)]
    every = {name: [row for k in kept for row in getattr(k, name)] for name in ("attempts", "conversations", "routes")}
    dom = drawn(render(with_answers(PAGE, Kept(lines, **every))), tmp_path)
    assert "<title>title</title>" in dom
    assert dom.count("<script") == 1
    assert not re.search(r"<(img|iframe|object|base)\b", dom)
    assert re.search(r'class="count" role="status">\d+ of \d+ prompts', dom), "our own script has run"


@browser
def test_the_script_runs_because_of_its_hash_alone(tmp_path: Path) -> None:
    html = render(with_answers(PAGE, Kept([record("base")])))
    assert "1 of 1 prompts, 1 answers" in drawn(html, tmp_path)
    changed = html.replace('"use strict";', '"use strict"; ')
    assert changed != html
    assert "1 of 1 prompts" not in drawn(changed, tmp_path)


@browser
def test_filters_and_keys_do_what_they_say(tmp_path: Path) -> None:
    lines = [record("base"), record("fsour", "S", "correct"), record("base", "other words", id="j", category="d")]
    html = render(with_answers(PAGE, Kept(lines)))
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    trial = """<script>
    const set = (name, value) => { const n = document.querySelector(`[data-filter="${name}"]`); n.value = value;
      n.dispatchEvent(new Event("input", { bubbles: true })); };
    const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const said = () => document.querySelector(".count").textContent;
    const at = () => document.activeElement.id;
    const wait = () => new Promise((done) => setTimeout(done, 200));
    (async () => {
      const seen = [said()];
      set("search", "OTHER words"); await wait(); seen.push(said());
      press("Escape"); seen.push(said());
      set("Stage", "1"); await wait(); seen.push(said()); press("Escape");
      set("Category", "1"); await wait(); seen.push(said()); press("Escape");
      set("Verdict", "0"); await wait(); seen.push(said()); press("Escape");
      press("j"); seen.push(at()); press("j"); seen.push(at()); press("j"); seen.push(at());
      press("k"); seen.push(at());
      press("/"); seen.push(document.activeElement.dataset.filter);
      document.title = seen.join(" | ");
    })();
    </script>"""
    dom = drawn(policy.sub("", html).replace("</body>", f"{trial}</body>"), tmp_path)
    title = re.search("<title>(.*?)</title>", dom)
    assert title is not None
    assert title[1].split(" | ") == [
        "2 of 2 prompts, 3 answers", "1 of 2 prompts, 1 answers", "2 of 2 prompts, 3 answers",
        "1 of 2 prompts, 1 answers", "1 of 2 prompts, 1 answers", "1 of 2 prompts, 1 answers",
        "a-i", "a-j", "a-j", "a-i", "search",
    ]  # fmt: skip
