"""Scenarios: every key is checked, files agree on their splits, and whatever contradicts itself is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.data import scenario as module
from pointsman.data import scenario_prompts
from pointsman.data.scenario import SCHEMA, Grid, Limits, Scenario, load_scenario, scenario_names
from pointsman.data.splits import SPLITS, cluster, split_together
from pointsman.data.templates import template, template_names
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.errors import DataError, PointsmanError, UnknownName, UsageError

HEAD = f"schema: {SCHEMA}\nname: mine\nobjective: defend\n"
SUITE = f"{HEAD}prompts: {{suite: testbed-steering}}\n"
PARTS = ("restricted", "benign", "borderline", "scenario", "conversations", "benign_conversations")


def yaml(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(call: Callable[[], Any], *words: str, error: type[PointsmanError] = DataError) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.remedy
    for word in words:
        assert word in message, message


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files(folder: Path, sources: int = 12, **replaced: list[dict[str, Any]]) -> dict[str, Path]:
    """Every kind of file, with `sources` questions each; those of restricted and conversations are the same."""
    rows: dict[str, list[dict[str, Any]]] = {
        "restricted": [{"id": f"q{i}", "goal": f"do {i}", "category": f"c{i % 2}"} for i in range(sources)],
        "scenario": [{"goal": f"tell {i}", "target": "Sure"} for i in range(sources)],
        "benign": [{"id": f"q{i}", "goal": f"bake {i}"} for i in range(sources)],
        "borderline": [{"prompt": f"kill {i}", "label": "safe"} for i in range(sources)],
        "conversations": [
            {"turns": [f"hi {j}", f"now {i} {j}"], "question_id": f"q{i}"} for i in range(sources) for j in range(3)
        ],
        "benign_conversations": [{"turns": ["hi", f"bake {i}"], "question_id": f"q{i}"} for i in range(sources)],
    }
    rows |= replaced
    return {name: lines(folder / f"{name}.jsonl", each) for name, each in rows.items()}


def defend(given: dict[str, Path], **fields: Any) -> Scenario:
    return Scenario("mine", "defend", files={k: v for k, v in given.items() if k != "scenario"}, **fields)


def allow(given: dict[str, Path], **fields: Any) -> Scenario:
    return Scenario("mine", "allow", files={k: v for k, v in given.items() if k != "conversations"}, **fields)


# ---------------------------------------------------------------------- reading prompts


@pytest.mark.parametrize("objective", ["defend", "allow"])
def test_all_lists_are_read_and_agree_on_their_splits(tmp_path: Path, objective: str) -> None:
    make = defend if objective == "defend" else allow
    suite = make(files(tmp_path), judge="testbed", max_new_tokens=9).read(3)
    assert (suite.name, suite.judge, suite.max_new_tokens) == ("mine", "testbed", 9)
    assert bool(suite.conversations) == (objective == "defend")
    assert bool(suite.scenario) == (objective == "allow")
    splits: dict[str, Any] = {}
    for name in PARTS:
        items = getattr(suite, name)
        assert len({i.id for i in items}) == len(items)
        for split in SPLITS if items else ():
            assert len({cluster(i) for i in items if i.split == split}) >= 2, (name, split)
        for item in items:
            assert splits.setdefault(cluster(item), item.split) == item.split
    if objective == "defend":
        by_question = {b.id: b.split for b in suite.restricted}
        assert all(by_question[c.source] == c.split for c in suite.conversations)
    benign = {b.source: b.split for b in suite.benign}
    assert set(benign) == {f"benign:q{i}" for i in range(12)}
    assert all(benign[c.source] == c.split for c in suite.benign_conversations)
    ids = [i.id for name in PARTS for i in getattr(suite, name)]
    assert len(ids) == len(set(ids)), "unique within the suite"


def test_the_seed_draws_the_splits(tmp_path: Path) -> None:
    scenario = defend(files(tmp_path, 30))
    assert scenario.read(0) == scenario.read(0)
    assert scenario.read(0) != scenario.read(1)


def test_six_source_questions_are_enough_and_five_are_not(tmp_path: Path) -> None:
    for seed in range(20):
        defend(files(tmp_path, 6)).read(seed)
    few = defend(files(tmp_path, 5))
    refused(
        lambda: few.read(0), f"conversations ({few.files['conversations']})", "(5 in all)", "2 are needed", "6 in all"
    )
    short = files(tmp_path, borderline=[{"prompt": f"kill {i}"} for i in range(4)])
    refused(lambda: defend(short).read(0), "borderline (", "(4 in all)")


def test_rows_with_one_prompt_are_one_source_question(tmp_path: Path) -> None:
    given = files(tmp_path, benign=[{"id": f"b{i}", "goal": "bake  A" if i % 2 else "Bake a"} for i in range(20)])
    refused(lambda: defend(given).read(0), "benign (", "0 source questions in the discovery", "(1 in all)")


def test_without_restricted_the_goals_of_the_conversations_stand_for_it(tmp_path: Path) -> None:
    talks = [
        {"turns": ["hi", "go"], "goal": f"do {i % 8}", "target": "Sure", "category": "c", "id": f"t{i}"}
        for i in range(16)
    ]
    given = files(tmp_path, conversations=talks)
    del given["restricted"]
    suite = defend(given).read(0)
    assert [b.goal for b in suite.restricted] == [f"do {i}" for i in range(8)], "each once"
    first = suite.restricted[0]
    assert (first.id, first.target, first.category) == ("goal:conversations:t0", "Sure", "c")
    assert {c.source for c in suite.conversations if c.goal == "do 0"} == {first.source}
    assert any("8 goals of the conversations" in note for note in suite.notes)
    without = {k: v for k, v in files(tmp_path).items() if k != "restricted"}
    refused(lambda: defend(without).read(0), "states no goals", "prompts.restricted")


def test_conversations_that_share_only_their_last_turn_stay_apart(tmp_path: Path) -> None:
    talks = [{"turns": [f"about {i}", "go on"], "id": f"t{i}"} for i in range(9)]
    suite = defend(files(tmp_path, conversations=talks)).read(0)
    assert len({c.source for c in suite.conversations}) == 9


def test_notes_of_the_files_are_kept(tmp_path: Path) -> None:
    rows = [{"prompt": f"kill {i}", "label": "safe"} for i in range(8)] + [{"prompt": "x", "label": "unsafe"}]
    notes = defend(files(tmp_path, borderline=rows)).read(0).notes
    assert any("1 unsafe contrast rows of the borderline file" in note for note in notes)
    assert any("state no goal" in note for note in notes)


def test_a_scenario_needs_targets(tmp_path: Path) -> None:
    given = files(tmp_path, scenario=[{"goal": f"tell {i}"} for i in range(12)])
    refused(lambda: allow(given).read(0), str(given["scenario"]), "no column target")
    given = files(tmp_path, scenario=[{"goal": f"tell {i}", "target": "Sure" if i else ""} for i in range(12)])
    refused(lambda: allow(given).read(0), str(given["scenario"]), "line 1", "target is empty")


def test_a_request_is_answered_or_refused_but_not_both(tmp_path: Path) -> None:
    rows = [{"goal": f"TELL  {i}"} for i in range(3)] + [{"goal": f"do {i}"} for i in range(9)]
    refused(
        lambda: allow(files(tmp_path, restricted=rows)).read(0),
        "scenario:row-1 of scenario (", "is also row-1 of restricted (", "(and 2 more)",
    )  # fmt: skip


@pytest.mark.parametrize("other", ["restricted", "scenario"])
@pytest.mark.parametrize("name", ["benign", "borderline"])
def test_a_harmless_request_is_no_restricted_one(tmp_path: Path, name: str, other: str) -> None:
    start = {"restricted": "do", "scenario": "tell"}[other]
    rows = [{"goal": f"some {i}"} for i in range(11)] + [{"goal": f"{start.upper()}   3"}]
    refused(
        lambda: allow(files(tmp_path, **{name: rows})).read(0),
        f"{name}:row-12 of {name} (", "is also", f" of {other} (", f"{name} requests are those that shall go on",
    )  # fmt: skip


def test_hold_names_categories_of_restricted_requests(tmp_path: Path) -> None:
    given = files(tmp_path)
    held = allow(given, hold=("c0",))
    held.read(0)
    assert held.holds("c0")
    assert not held.holds("c1")
    assert allow(given).holds("c1")
    refused(lambda: allow(given, hold=("c",)).read(0), "hold names 'c'", "Did you mean c", "Known: c0, c1")


def test_every_mistake_in_a_file_names_it(tmp_path: Path) -> None:
    given = files(tmp_path, conversations=[{"turns": []}])
    refused(lambda: defend(given).read(0), str(given["conversations"]), "line 1", "no user turn")
    given["benign"] = tmp_path / "none.csv"
    refused(lambda: defend(given).read(0), "none.csv does not exist")


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    given = files(tmp_path) | {"benign": tmp_path / "none.csv", "restricted": tmp_path / "nor.csv"}
    refused(
        lambda: defend(given).read(0),
        "2 files do not exist", f"restricted ({given['restricted']})", f"benign ({given['benign']})",
    )  # fmt: skip


# ---------------------------------------------------------------------- suites


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> dict[str, Suite]:
    """Registered suites, by name."""
    made: dict[str, Suite] = {}

    class Fake:
        def names(self) -> list[str]:
            return sorted(made)

        def __contains__(self, name: str) -> bool:
            return name in made

        def get(self, name: str) -> Callable[[], Suite]:
            return lambda: made[name]

    monkeypatch.setattr(module, "behaviors", Fake())
    monkeypatch.setattr(scenario_prompts, "behaviors", Fake())
    return made


def small() -> Suite:
    def rows(kind: str, target: str = "") -> tuple[Behaviour, ...]:
        return tuple(Behaviour(f"{kind}{i}", f"{kind} {i}", target, "c", split=SPLITS[i % 3]) for i in range(6))

    talks = tuple(Conversation(f"t{i}", ("a", "b"), "g", "", source=f"r{i}", split=SPLITS[i % 3]) for i in range(6))
    return Suite("small", rows("r"), rows("b"), conversations=talks, judge="testbed", max_new_tokens=7,
                 scenario=rows("s", "Sure"))  # fmt: skip


def test_a_suite_keeps_its_splits_and_drops_what_is_not_asked(suites: dict[str, Suite]) -> None:
    suites["small"] = suite = small()
    read = Scenario("mine", "defend", suite="small", judge="refusal").read(5)
    assert read == replace(suite, scenario=(), judge="refusal")
    read = Scenario("mine", "allow", suite="small", judge="testbed", max_new_tokens=3).read(5)
    assert read == replace(suite, conversations=(), max_new_tokens=3)


def test_a_suite_that_does_not_fit_is_refused(suites: dict[str, Suite]) -> None:
    suites["small"] = suite = small()
    scenario = Scenario("mine", "allow", suite="small")
    suites["small"] = replace(suite, scenario=())
    refused(lambda: scenario.read(0), "scenario of the suite small: there are none")
    suites["small"] = replace(suite, scenario=tuple(replace(b, target="") for b in suite.scenario))
    refused(lambda: scenario.read(0), "s0 has no target")
    suites["small"] = replace(suite, benign=tuple(replace(b, split="test") for b in suite.benign))
    refused(lambda: scenario.read(0), "benign of the suite small: 0 source questions in the discovery split (6 in all)")


def test_the_judge_of_a_suite_is_taken_if_none_is_named(tmp_path: Path, suites: dict[str, Suite]) -> None:
    suites["small"] = small()
    assert load_scenario(yaml(tmp_path, HEAD + "prompts: {suite: small}")).judge == "testbed"
    assert load_scenario(yaml(tmp_path, HEAD + "prompts: {suite: small}\njudge: refusal")).judge == "refusal"


# ---------------------------------------------------------------------- YAML


def test_every_key_of_a_file_is_read(tmp_path: Path) -> None:
    text = f"""
schema: {SCHEMA}
name: mine
objective: allow
description: >
  Two
  lines.
prompts: {{scenario: s.csv, restricted: sub/r.csv, benign: /abs/b.csv}}
judge: testbed
hold: [a, b, a]
limits: {{benign: 0.5, held: 1e-1}}
splits: {{discovery: 0.4, validation: 0.3, test: 0.3}}
grid: {{lambda: 1e-5, alpha: [1, 8], phase: decode, refinement: [through_model, surrogate]}}
max_new_tokens: 12
system: be brief
"""
    read = load_scenario(yaml(tmp_path, text))
    assert read == Scenario(
        "mine", "allow", "Two lines.",
        files={"scenario": tmp_path / "s.csv", "restricted": tmp_path / "sub/r.csv", "benign": Path("/abs/b.csv")},
        judge="testbed", hold=("a", "b"), limits=Limits(benign=0.5, held=0.1),
        grid=Grid((1e-5,), (1.0, 8.0), ("decode",), ("through_model", "surrogate")),
        fractions=(0.4, 0.3, 0.3), max_new_tokens=12, system="be brief",
    )  # fmt: skip
    assert Scenario.from_json(json.loads(json.dumps(read.to_json()))) == read


def test_defaults(tmp_path: Path) -> None:
    read = load_scenario(str(yaml(tmp_path, SUITE)))
    assert read == Scenario("mine", "defend", suite="testbed-steering", judge="testbed")
    assert Scenario.from_json(read.to_json()) == read
    assert read.grid.alphas == tuple(i / 4 for i in range(1, 9))
    empty = SUITE + "limits:\ngrid:\nsplits:\nhold:\nsystem:\ndescription:\njudge:\nmax_new_tokens:\n"
    assert load_scenario(yaml(tmp_path, empty)) == read, "empty keys are left out"


def test_relative_paths_become_absolute_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = defend({name: Path(f"{name}.jsonl") for name in ("conversations", "benign")})
    again = Scenario.from_json(scenario.to_json())
    assert again.files == {name: tmp_path / f"{name}.jsonl" for name in ("conversations", "benign")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("is not a table",)),
        ("- a", ("is not a table",)),
        ("name: x", ("has no schema", SCHEMA)),
        ("schema: pointsman.scenario/2", ("schema 'pointsman.scenario/2'",)),
        (f"schema: {SCHEMA}\nname: x\nobjective: defend", ("prompts is missing",)),
        (HEAD + "prompts: 3", ("prompts is not a table",)),
        (HEAD + "prompts: {}", ("neither a suite nor files",)),
        (HEAD + "prompts: {suite: testbed-steering, benign: b.csv}", ("both a suite and files",)),
        (HEAD + "prompts: {suite: testbed-stering}", ("'testbed-stering'", "Did you mean testbed-steering")),
        (HEAD + "prompts: {suite: 3}", ("prompts.suite is 3, not a text",)),
        (HEAD + "prompts: {benign: b.csv}", ("defend needs prompts.conversations",)),
        (HEAD + "prompts: {conversations: c.csv}", ("defend needs prompts.benign",)),
        (HEAD + "prompts: {conversations: c.csv, scenario: b.csv}", ("prompts.scenario is not asked",)),
        (HEAD + "prompts: {conversation: c.csv}", ("unknown key prompts.'conversation'", "Did you mean conversations")),
        (HEAD + "prompts: {conversations: ' '}", ("prompts.conversations is empty",)),
        (SUITE + "limit: {}", ("unknown key 'limit'", "Did you mean limits")),
        (SUITE + "1: 2", ("unknown key 1",)),
        (SUITE + "limits: {benin: 1}", ("unknown key limits.'benin'", "Did you mean benign")),
        (SUITE + "limits: {benign: 2}", ("limits.benign is 2, not a share", "0.02 for two points")),
        (SUITE + "limits: {benign: -0.1}", ("limits.benign is -0.1",)),
        (SUITE + "limits: {benign: .nan}", ("limits.benign is nan",)),
        (SUITE + "limits: {benign: yes}", ("limits.benign is True, not a number",)),
        (SUITE + "limits: {benign: 2%}", ("limits.benign is '2%', not a number",)),
        (SUITE + "limits: {benign: }", ("limits.benign is empty, not a number",)),
        (SUITE + "grid: {lambda: -1}", ("grid.lambda holds -1",)),
        (SUITE + "grid: {lambda: .inf}", ("grid.lambda holds inf",)),
        (SUITE + "grid: {lambda: []}", ("grid.lambda is empty",)),
        (SUITE + "grid: {lambda: [1e-5, 0.00001]}", ("grid.lambda names a value twice",)),
        (SUITE + "grid: {lambda: [[1]]}", ("grid.lambda is a list, not a number",)),
        (SUITE + f"grid: {{lambda: {'9' * 400}}}", ("grid.lambda is too large",)),
        (SUITE + "grid: {alpha: [0]}", ("grid.alpha holds 0", "above 0 and up to 8")),
        (SUITE + "grid: {alpha: 8.5}", ("grid.alpha holds 8.5",)),
        (SUITE + "grid: {phase: prefil}", ("grid.phase is 'prefil'", "Did you mean prefill")),
        (SUITE + "grid: {phase: on}", ("grid.phase is True, not a text", "YAML reads yes, no, on and off")),
        (SUITE + "grid: {refinement: onpolicy}", ("Did you mean on_policy",)),
        (SUITE + "splits: {discovery: 1}", ("leaves out validation and test",)),
        (SUITE + "splits: {discovery: 0.5, validation: 0.5, test: 0}", ("splits are 0.5, 0.5, 0", "sum to 1")),
        (SUITE + "splits: {discovery: 0.5, validation: 0.5, test: 0.5}", ("sum to 1",)),
        (SUITE + "hold: [hexcraft]", ("hold names categories", "hold: all")),
        (SUITE + "judge: refusl", ("'refusl'", "Did you mean refusal")),
        (SUITE + "max_new_tokens: 0", ("max_new_tokens is 0",)),
        (SUITE + "max_new_tokens: 1.5", ("max_new_tokens is 1.5, not a whole number",)),
        (SUITE + "max_new_tokens: true", ("not a whole number",)),
        (SUITE + "system: [a]", ("system is a list, not a text",)),
        (SUITE.replace("defend", "defence"), ("objective is 'defence'", "Did you mean defend")),
        (SUITE.replace("mine", "no"), ("name is False, not a text",)),
        (SUITE.replace("mine", "../mine"), ("'../mine' is not one word",)),
        (SUITE + "name: again", ("line 5", "'name' stands twice")),
        (SUITE + "limits: {benign: 0, benign: 1}", ("line 5", "'benign' stands twice")),
        (SUITE + "grid: {alpha: &a [1], lambda: *a}", ("line 5", "an alias (*a)")),
        (SUITE + "system: !!python/object/apply:os.system [ls]", ("line 5", "malformed YAML", "constructor")),
        (SUITE + "system: 'open", ("malformed YAML",)),
        (SUITE + "\tx: 1", ("line 5", "malformed YAML")),
        (SUITE + "system: a\0b", ("malformed YAML", "character")),
        (SUITE + "system: 2026-13-45", ("malformed YAML",)),
        (SUITE + "system: " + "[" * 5000 + "]" * 5000, ("malformed YAML (too deep)",)),
        (SUITE + "system: " + "[" * 20 + "]" * 20, ("line 5: malformed YAML (too deep)",)),
        (SUITE + "system: [" + "1, " * 5000 + "]", ("malformed YAML (more than 4096 values)",)),
        (SUITE + "system: " + "a " * 40_000, ("more than 64 KiB",)),
        (SUITE + "--- {}", ("malformed YAML",)),
        (SUITE + "? [a]\n: b", ("malformed YAML",)),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = yaml(tmp_path, text)
    refused(lambda: load_scenario(path), str(path), *words)


def test_allow_needs_its_own_files_and_may_hold_nothing_but_names(tmp_path: Path) -> None:
    head = HEAD.replace("defend", "allow")
    for text, words in (
        ("prompts: {restricted: r.csv, benign: b.csv}", ("allow needs prompts.scenario",)),
        ("prompts: {scenario: s.csv, benign: b.csv}", ("allow needs prompts.restricted",)),
        ("prompts: {scenario: s.csv, restricted: r.csv}", ("allow needs prompts.benign",)),
        ("prompts: {conversations: s.csv}", ("prompts.conversations is not asked",)),
        ("prompts: {suite: testbed-steering}\nhold: []", ("hold is empty",)),
        ("prompts: {suite: testbed-steering}\nhold: [no]", ("hold is False, not a text",)),
    ):
        path = yaml(tmp_path, head + text)
        refused(lambda path=path: load_scenario(path), *words)


def test_bad_places(tmp_path: Path) -> None:
    refused(lambda: load_scenario(tmp_path), "is a folder")
    refused(lambda: load_scenario(tmp_path / "none.yaml"), "none.yaml does not exist", "scenario init")
    refused(lambda: load_scenario("./none"), "does not exist")
    refused(lambda: load_scenario(tmp_path / ("long" * 100 + ".yaml")), "cannot be read")
    (tmp_path / "latin.yaml").write_bytes(b"name: f\xfcr")
    refused(lambda: load_scenario(tmp_path / "latin.yaml"), "not UTF-8")
    refused(lambda: load_scenario("mature"), "Unknown scenario 'mature'", "mature_content", ".yaml", error=UnknownName)
    refused(lambda: Scenario.from_json({"schema": SCHEMA}), "The scenario: name is missing")


def test_dataclasses_check_what_python_gives_them() -> None:
    for make, word in (
        (lambda: Limits(benign=math.inf), "limits.benign"),
        (lambda: Grid(alphas=(math.nan,)), "grid.alpha"),
        (lambda: Grid(phases=()), "grid.phase"),
        (lambda: Scenario("x", "defend"), "neither"),
        (lambda: Scenario("x", "defend", files={"benig": Path("x")}), "benig"),
        (lambda: Scenario("x", "defend", suite="s", fractions=(math.nan, 0.5, 0.5)), "splits"),
    ):
        refused(make, word, error=UsageError)


def test_other_packages_register_texts_or_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, Any] = {"text": SUITE, "path": yaml(tmp_path, SUITE), "number": 3}
    monkeypatch.setattr(module.scenarios, "get", lambda name: lambda: registered[name])
    assert load_scenario("text") == load_scenario("path")
    refused(lambda: load_scenario("number"), "is registered as int")


def test_the_templates_for_real_models_are_complete(tmp_path: Path) -> None:
    assert template_names() == ["mature_content", "multi_turn_defence"]
    for name in template_names():
        scenario = load_scenario(template(name))
        same = Scenario(name, scenario.objective, scenario.description, files=scenario.files, max_new_tokens=512)
        assert scenario == same, "what the file says is the default"
        assert {p.parent for p in scenario.files.values()} == {template(name).parent}
    assert set(template_names()) <= set(scenario_names())
    refused(lambda: template("mature"), "Did you mean mature_content", error=UnknownName)


# ---------------------------------------------------------------------- splits of several lists


@settings(deadline=None, max_examples=60)
@given(first=st.integers(6, 40), second=st.integers(6, 40), shared=st.booleans(), seed=st.integers(0, 999))
def test_enough_sources_always_suffice(first: int, second: int, shared: bool, seed: int) -> None:
    parts = {
        "a": [Behaviour(f"a{i}", "g", "t", source=f"q{i}") for i in range(first)],
        "b": [Behaviour(f"b{i}", "g", "t", source=f"q{i}" if shared else f"p{i}") for i in range(second)],
        "none": [],
    }
    chosen = split_together(parts, seed)
    for items in parts.values():
        for split in SPLITS if items else ():
            assert sum(chosen[b.source] == split for b in items) >= 2
    assert chosen == split_together({k: v[::-1] for k, v in parts.items()}, seed)


def test_only_what_is_short_is_moved() -> None:
    from pointsman.data.splits import assign_splits

    rows = [Behaviour(f"a{i}", "g", "t") for i in range(300)]
    assert split_together({"a": rows}, 4) == {b.id: b.split for b in assign_splits(rows, 4)}
