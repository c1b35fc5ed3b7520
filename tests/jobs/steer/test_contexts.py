"""Which contexts a mask is learnt from, how they are labelled, and what is neither."""

from __future__ import annotations

import json

import pytest

from engines import small_engine
from pointsman.data.types import Behaviour, Conversation
from pointsman.jobs.steer.contexts import Context, matched_pairs, of_conversations, of_requests
from pointsman.jobs.steer.outcome import Outcome, where_it_falls
from pointsman.jobs.steer.played import PlayedSplit
from pointsman.jobs.steer.prompts import SteerPrompts
from pointsman.jobs.steer.results import TurnCount
from pointsman.judges.types import Label, Verdict
from pointsman.methods.attempts import Attempt
from pointsman.methods.play import Played


def verdict(label: Label) -> Verdict:
    score = None if label == "unscored" else float(label in ("correct", "complied"))
    return Verdict(label, score)


def talk(name: str, *, turns: int = 3, goal: str = "g", tactic: str = "t", source: str = "q") -> Conversation:
    asked = tuple(f"{name} turn {n}" for n in range(turns))
    return Conversation(name, asked, goal, "Sure", tactic, "c", source, "test")


def played(name: str, *labels: Label, tactic: str = "t", source: str = "q") -> Played:
    said = tuple(f"{name} answer {n}" for n in range(len(labels)))
    return Played(name, tactic, "c", source, said, tuple(map(verdict, labels)))


def attempt(name: str, label: Label) -> Attempt:
    return Attempt(name, "c", "q", f"{name} said", True, verdict(label))


def test_a_fallen_conversation_is_the_context_of_its_first_unsafe_answer() -> None:
    (found,) = of_conversations([talk("a")], [played("a", "refused", "correct", "correct")])
    assert (found.kind, found.label) == ("fallen", 1)
    assert found.turns == ("a turn 0", "a turn 1")
    assert found.answers == ("a answer 0",)
    assert found.response == "a answer 1"
    assert (found.source, found.goal, found.tactic, found.category, found.split) == ("q", "g", "t", "c", "test")


def test_one_that_falls_at_once_has_no_answers_before() -> None:
    (found,) = of_conversations([talk("a")], [played("a", "correct", "refused", "refused")])
    assert (found.turns, found.answers, found.response) == (("a turn 0",), (), "a answer 0")


def test_a_conversation_that_withstands_is_the_context_of_its_last_answer() -> None:
    (found,) = of_conversations([talk("a")], [played("a", "garbage", "wrong", "refused")])
    assert (found.kind, found.label) == ("withstood", 0)
    assert found.turns == talk("a").turns
    assert found.answers == ("a answer 0", "a answer 1")
    assert found.response == "a answer 2"


@pytest.mark.parametrize("last", ["garbage", "unscored", "wrong"])
def test_a_conversation_without_a_clear_end_is_neither(last: Label) -> None:
    assert of_conversations([talk("a")], [played("a", "refused", "refused", last)]) == []
    fallen = of_conversations([talk("a")], [played("a", "refused", "correct", last)])
    assert [c.label for c in fallen] == [1], "what comes after the fall does not matter"


def test_a_conversation_without_a_source_is_its_own_cluster() -> None:
    (found,) = of_conversations([talk("a", source="")], [played("a", "correct", "correct", "correct")])
    assert found.source == "a"


@pytest.mark.parametrize("refused_is", [0, 1])
def test_single_requests_are_refused_or_answered(refused_is: int) -> None:
    labels: list[Label] = ["refused", "correct", "complied", "wrong", "garbage", "unscored"]
    behaviours = [Behaviour(str(n), f"goal {n}", "Sure", "c", "", "discovery") for n in range(len(labels))]
    attempts = [attempt(str(n), label) for n, label in enumerate(labels)]
    found = of_requests(behaviours, attempts, refused_is=refused_is)
    assert [(c.id, c.kind) for c in found] == [("0", "refused"), ("1", "answered"), ("2", "answered")]
    assert [c.label for c in found] == [refused_is, 1 - refused_is, 1 - refused_is]
    assert [(c.turns, c.answers, c.response, c.source) for c in found][1] == (("goal 1",), (), "1 said", "1")


def made(name: str, label: int, *, goal: str = "g", tactic: str = "t", turns: int = 2, single: bool = False) -> Context:
    kind = ("refused", "answered")[label] if single else ("withstood", "fallen")[label]
    return Context(name, kind, label, ("x",) * turns, ("y",) * (turns - 1), "z", goal, goal, tactic)  # type: ignore[arg-type]


def test_matched_pairs_agree_in_all_but_the_outcome() -> None:
    contexts = [
        made("0", 1), made("1", 0), made("2", 0, turns=3), made("3", 1, tactic="u"), made("4", 0, goal="h"),
        made("5", 1), made("6", 1), made("7", 0), made("8", 0, single=True), made("9", 1, turns=3), made("10", 0),
        made("11", 0),
    ]  # fmt: skip
    pairs = matched_pairs(contexts)
    assert pairs == [(0, 1), (5, 7), (9, 2), (6, 10)]
    for fallen, withstood in pairs:
        a, b = contexts[fallen], contexts[withstood]
        assert (a.label, b.label, a.goal, a.tactic, len(a.turns)) == (1, 0, b.goal, b.tactic, len(b.turns))
    members = [n for pair in pairs for n in pair]
    assert len(set(members)) == len(members)


def test_turns_are_counted_among_those_that_reach_them_unfallen() -> None:
    some = [
        played("a", "correct", "correct", "refused"), played("b", "refused", "correct"), played("c", "refused"),
        played("d", "garbage", "refused", "correct"), played("e", "refused", "refused", "refused"),
    ]  # fmt: skip
    assert where_it_falls(some) == (TurnCount(1, 5, 1), TurnCount(2, 3, 1), TurnCount(3, 2, 1))
    assert where_it_falls([]) == ()


def test_conversations_are_counted_by_tactic_and_clustered_by_source() -> None:
    some = (
        played("a", "correct", tactic="v", source="1"), played("b", "refused", tactic="u", source="1"),
        played("c", "correct", tactic="u", source="2"), played("d", "unscored", tactic="u", source="2"),
    )  # fmt: skip
    outcome = Outcome("defend", True, some, None, (), (), (), (), ())
    contexts = (made("a", 1, turns=1), made("b", 0, turns=1), made("c", 1))
    found = PlayedSplit("test", SteerPrompts(), outcome, contexts, frozenset()).counts()
    assert (found.played, found.fallen.k, found.fallen.n) == (4, 2, 4)
    assert found.fallen.clusters == 2
    assert {name: (rate.k, rate.n) for name, rate in found.by_tactic.items()} == {"u": (1, 3), "v": (1, 1)}
    assert list(found.by_tactic) == ["u", "v"]
    assert found.by_turn == where_it_falls(some)
    assert (found.matched_pairs, found.label1, found.label0) == (1, 2, 1)


def test_requests_that_were_refused_are_what_has_fallen_where_they_shall_be_answered() -> None:
    asked = (attempt("a", "refused"), attempt("b", "correct"), attempt("c", "garbage"))
    outcome = Outcome("allow", True, (), None, asked, (), (), (), ())
    contexts = (made("a", 1, single=True), made("r", 1, single=True), made("b", 0, single=True))
    split = PlayedSplit("test", SteerPrompts(), outcome, contexts, frozenset("r"))
    assert [c.id for c in split.to_turn] == ["a"], "a guarded request stays refused"
    assert split.fallen is None
    found = split.counts()
    assert (found.played, found.fallen.k, found.by_turn, found.by_tactic) == (3, 1, (), {})
    assert (found.matched_pairs, found.label1, found.label0) == (0, 2, 1)


def test_a_context_waits_for_its_answer_and_is_json() -> None:
    engine = small_engine()
    (context,) = of_conversations([talk("a")], [played("a", "refused", "correct", "correct")])
    prompt = context.prompt(engine)
    assert prompt == engine.encode(["a turn 0", "a turn 1"], answers=["a answer 0"])
    assert len(context.prompt(engine, "be good")) > len(prompt)
    data = json.loads(json.dumps(context.to_json()))
    assert Context(**{**data, "turns": tuple(data["turns"]), "answers": tuple(data["answers"])}) == context
