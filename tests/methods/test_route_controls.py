"""The controls of F-SOUR: what is forced, at which pairs, and how often the judge is called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines import behaviours, small_engine
from judging import OneByOne
from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Prompt
from pointsman.judges.types import Answer, Verdict
from pointsman.methods.fsour import FSour
from pointsman.methods.route_controls import NaturalRoutes, RandomRoutes, Transfer, moved, template_places
from pointsman.methods.routes import RouteResult, Step
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention

ANSWER = 3


class Judge(OneByOne):
    """Calls every answer wrong, so that all restarts are used; or one id a success."""

    name, version, grades_content = "test", "1", True

    def __init__(self, succeeds: str = "") -> None:
        self.succeeds = succeeds
        self.asked: list[str] = []

    def one(self, asked: Behaviour | Conversation, answer: Answer) -> Verdict:
        self.asked.append(asked.id)
        return Verdict("correct", 1.0) if asked.id == self.succeeds else Verdict("wrong", 0.0)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.fixture(scope="module")
def asked() -> list[Behaviour]:
    return behaviours(3)


@pytest.fixture(scope="module")
def found(engine: HFEngine, asked: list[Behaviour]) -> list[RouteResult]:
    """The second behaviour succeeds at once, the others never."""
    method = FSour(candidates=2, restarts=2, max_new_tokens=ANSWER, together=3)
    return method.search(engine, asked, Judge(asked[1].id))


def said(engine: HFEngine, behaviour: Behaviour, routing: Intervention) -> str:
    return engine.generate([engine.encode(behaviour.turns)], routing=routing, max_new_tokens=ANSWER)[0].text


def test_random_routes_force_other_sets_at_the_same_pairs_as_often_as_a_search_may(
    engine: HFEngine, asked: list[Behaviour], found: list[RouteResult]
) -> None:
    judge, method = Judge(), RandomRoutes(restarts=2, max_new_tokens=ANSWER, seed=5)
    drawn = method.ask(engine, asked, judge, found)
    assert [len(d) for d in drawn] == [2, 2, 2]
    assert len(judge.asked) == 6
    for behaviour, result, attempts in zip(asked, found, drawn, strict=True):
        pairs = result.best.steps
        for draw, attempt in enumerate(attempts):
            rng = stream(5, "random route", behaviour.id, draw)
            sets = {}
            for pair in pairs:
                sets[pair.layer, pair.position] = engine.routers[pair.layer].draw(rng, 1)[0].tolist()
            route = Intervention.force(sets, phase="prefill")
            assert method.route(engine, behaviour, pairs, draw) == route
            assert attempt.response == said(engine, behaviour, route)
            assert attempt.id == behaviour.id
    assert method.route(engine, asked[0], pairs, 0) != method.route(engine, asked[0], pairs, 1)
    assert method.route(engine, asked[0], (), 0) == Intervention()


def test_natural_routes_force_what_the_model_does_anyway(
    engine: HFEngine, asked: list[Behaviour], found: list[RouteResult]
) -> None:
    method = NaturalRoutes(max_new_tokens=ANSWER)
    pairs = [f.best.steps for f in found]
    routes = method.routes(engine, asked, pairs)
    attempts = method.ask(engine, asked, Judge(), found)
    for behaviour, steps, route, attempt in zip(asked, pairs, routes, attempts, strict=True):
        prompt = engine.encode(behaviour.turns)
        alone = engine.trace([prompt])
        (rule,) = route.rules
        assert {(s.layer, s.position) for s in rule.selections} == {(s.layer, s.position) for s in steps}
        for chosen in rule.selections:
            here = alone[chosen.layer].position == chosen.position
            assert set(chosen.experts) == set(alone[chosen.layer].experts[here][0].tolist())
        assert attempt.response == said(engine, behaviour, route)
        forced = engine.trace([prompt], routing=route)
        assert all(
            np.array_equal(np.sort(a.experts, axis=1), np.sort(b.experts, axis=1))
            for a, b in zip(alone.layers[:1], forced.layers[:1], strict=True)
        )


def test_natural_experts_of_normalised_weights_change_nothing(asked: list[Behaviour]) -> None:
    """Where the architecture renormalises over the chosen experts anyway, forcing the natural ones is no change."""
    engine = small_engine("mixtral")
    method = NaturalRoutes(max_new_tokens=ANSWER)
    tokens = len(engine.encode(asked[0].turns))
    pairs = [Step(layer, t, (), 0.0) for layer in range(len(engine.routers)) for t in range(tokens)]
    (route,) = method.routes(engine, asked[:1], [pairs])
    prompt, target = engine.encode(asked[0].turns), engine.encode_target(asked[0].target)
    plain, forced = engine.score([prompt] * 2, [target] * 2, routing=[None, route])
    assert forced.total == pytest.approx(plain.total, abs=1e-5)  # the router softmax is in float32


def test_every_control_is_remembered(engine: HFEngine, asked: list[Behaviour], found: list[RouteResult]) -> None:
    memory: dict[str, Any] = {}

    def remember(key: str, compute: Any) -> Any:
        if key not in memory:
            memory[key] = compute()
        return memory[key]

    def all_of_them(judge: Judge) -> list[Any]:
        steps = Steps(remember)
        return [
            RandomRoutes(restarts=2, max_new_tokens=ANSWER).ask(engine, asked, judge, found, steps=steps),
            NaturalRoutes(max_new_tokens=ANSWER).ask(engine, asked, judge, found, steps=steps),
            Transfer(max_new_tokens=ANSWER).replay(engine, asked, judge, [f.best.steps for f in found], steps=steps),
        ]

    first, again = Judge(), Judge()
    assert all_of_them(first) == all_of_them(again)
    assert len(first.asked) == 6 + 3 + 9
    assert again.asked == []


def test_transfer_replays_the_template_part(engine: HFEngine, asked: list[Behaviour], found: list[RouteResult]) -> None:
    routes = [f.best.steps for f in found]
    matrix = Transfer(max_new_tokens=ANSWER).replay(engine, asked, Judge(), routes)
    prompts = [engine.encode(b.turns) for b in asked]
    for i, steps in enumerate(routes):
        for j, behaviour in enumerate(asked):
            sets = {}
            for step in steps:  # the testbed's template: the first token, and the last
                if step.position == 0:
                    sets[step.layer, 0] = step.experts
                elif step.position == len(prompts[i]) - 1:
                    sets[step.layer, len(prompts[j]) - 1] = step.experts
            route = Intervention.force(sets, phase="prefill") if sets else Intervention()
            assert matrix[i][j].id == behaviour.id
            assert matrix[i][j].response == said(engine, behaviour, route)


def prompt(text: str, roles: str) -> Prompt:
    """One letter a token; t, s, h, c, l are the roles."""
    names = {"t": "template", "s": "system", "h": "history", "c": "content", "l": "last"}
    return Prompt(tuple(map(ord, text)), tuple(text), tuple(names[r] for r in roles))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "target", "places"),
    [
        (("<abc>!", "tccctl"), ("<xy>!", "tcctl"), {0: 0, 4: 3, 5: 4}),
        (("<abc>!", "tccctl"), ("{xy>!", "tcctl"), {4: 3, 5: 4}),  # other tokens in front
        (("<abc>!", "tccctl"), ("<xy!", "tccl"), {0: 0, 5: 3}),  # fewer behind: the last ones belong together
        (("<s>abc!", "tstcccl"), ("<u>xy!", "tstccl"), {0: 0, 2: 2, 6: 5}),  # a system prompt is no template
        (("<<ab", "ttcl"), ("<cd!", "tccl"), {0: 0}),
        (("<>!", "ttl"), ("<>!", "ttl"), {0: 0, 1: 1, 2: 2}),  # nothing was asked
    ],
)
def test_template_tokens_are_counted_from_both_ends(
    source: tuple[str, str], target: tuple[str, str], places: dict[int, int]
) -> None:
    a, b = prompt(*source), prompt(*target)
    assert template_places(a, b) == places
    assert template_places(b, a) == {there: here for here, there in places.items()}
    route = [Step(1, n, (n, 7), 0.0) for n in range(len(a))]
    assert moved(route, a, b) == {(1, there): (here, 7) for here, there in places.items()}
