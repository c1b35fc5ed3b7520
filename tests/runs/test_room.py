"""What a model's context has no room for is left out and named; all else is chosen as if it were not there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines import small_engine
from pointsman.data.scenario import Scenario
from pointsman.data.splits import take
from pointsman.data.types import Behaviour
from pointsman.errors import PromptTooLong, UsageError
from pointsman.jobs.steer.prompts import choose_prompts, room_of
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.runs.bench import Bench
from pointsman.runs.room import Room
from works import ManyJudge


def rows(count: int) -> list[Behaviour]:
    return [Behaviour(f"b{n}", f"goal {n}", "Sure", source=f"s{n % 5}") for n in range(count)]


@pytest.mark.parametrize("n", [0, 1, 7, 20, 99])
def test_where_all_fits_it_is_take(n: int) -> None:
    room = Room(small_engine(num_hidden_layers=1), lambda _: 1)
    assert room.take(rows(20), n, 3) == take(rows(20), n, 3)
    assert (room.left_out, room.notes()) == ({}, [])
    with pytest.raises(UsageError):
        room.take(rows(20), -1, 3)


def test_the_next_in_order_takes_the_place_of_one_that_does_not_fit() -> None:
    engine = small_engine(num_hidden_layers=1)
    order = take(rows(20), 20, 3)
    long = {order[1].id, order[4].id, order[15].id}
    room = Room(engine, lambda b: engine.info.context + (b.id in long))
    assert room.take(rows(20), 6, 3) == tuple(b for b in order if b.id not in long)[:6]
    assert list(room.left_out) == [order[1].id, order[4].id], "those that were met"
    room.refuse_none("prompt", order, order[:1])
    none = Room(engine, lambda b: engine.info.context + 1)
    with pytest.raises(PromptTooLong, match=f"No prompt fits: b.* needs {engine.info.context + 1} tokens"):
        none.refuse_none("prompt", order, none.take(order, 6, 3))
    none.refuse_none("prompt", (), ())


def test_prompts_beyond_the_context_are_left_out_and_named() -> None:
    engine, what = small_engine(num_hidden_layers=2), Scenario("tiny", "allow", suite="testbed-mature")
    suite = what.read(0)
    bench = Bench(engine, SteerQuestion(what, suite, ManyJudge()), None)  # type: ignore[arg-type]
    plain = choose_prompts(bench, room_of(bench), "test", 4, 4, 0)
    left = engine.info.context - len(engine.encode([plain.scenario[0].goal]))
    targets = {plain.scenario[0].id: "sure " * left, plain.scenario[1].id: "sure " * (left // 2)}
    goals = {plain.benign[0].id: "where " * 300}
    suite = replace(
        suite,
        scenario=tuple(replace(b, target=targets.get(b.id, b.target)) for b in suite.scenario),
        benign=tuple(replace(b, goal=goals.get(b.id, b.goal)) for b in suite.benign),
    )
    bench = replace(bench, question=SteerQuestion(what, suite, ManyJudge()))
    room = room_of(bench)
    asked = choose_prompts(bench, room, "test", 4, 4, 0)
    assert list(room.left_out) == [plain.scenario[0].id, plain.benign[0].id]
    assert [b.id for b in asked.scenario][:3] == [b.id for b in plain.scenario][1:], "in their order"
    assert len(asked.benign) == len(plain.benign), "others take their places"
    assert asked.restricted == plain.restricted
    (note,) = room.notes()
    assert f"2 prompts do not fit into the context of tiny olmoe ({engine.info.context} tokens)" in note


def test_a_conversation_whose_goal_does_not_fit_is_left_out() -> None:
    engine, what = small_engine(num_hidden_layers=2), Scenario("tiny", "defend", suite="testbed-steering")
    suite = what.read(0)
    first = next(c for c in suite.conversations if c.split == "test")
    suite = replace(
        suite, conversations=tuple(replace(c, goal="where " * 300) if c is first else c for c in suite.conversations)
    )
    bench = Bench(engine, SteerQuestion(what, suite, ManyJudge()), None)  # type: ignore[arg-type]
    room = room_of(bench)
    choose_prompts(bench, room, "test", None, 0, 0)
    assert list(room.left_out) == [first.id]
