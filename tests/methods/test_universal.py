"""A universal route: places, the literal loop, memory, what it is replayed beside, files, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from engines import behaviours, small_engine
from judging import OneByOne
from oracle import loops
from plain_engine import PlainEngine
from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Prompt, TokenRole
from pointsman.errors import InterventionError, UsageError
from pointsman.judges.types import Answer, Verdict
from pointsman.methods.steps import Steps, stream
from pointsman.methods.universal import Replay, Universal
from pointsman.methods.universal_route import ForcedPlace, Place, UniversalRoute, places_of
from pointsman.routing.intervention import Intervention

ROLES: dict[str, TokenRole] = {"t": "template", "s": "system", "h": "history", "c": "content", "l": "last"}
QUICK: dict[str, Any] = dict(iterations=2, joint=4, singles=3, content=2)
ANSWER = 2
SHAPES = ((8, 2, 1, 1),) * 3


class Never(OneByOne):
    """Calls nothing a success."""

    name, version, grades_content = "never", "1", True

    def one(self, asked: Behaviour | Conversation, answer: Answer) -> Verdict:
        return Verdict("wrong", 0.0)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def prompt(roles: str) -> Prompt:
    return Prompt(tuple(range(len(roles))), ("",) * len(roles), tuple(ROLES[r] for r in roles))


# ---------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("roles", "place", "position"),
    [
        ("ttccctl", Place("start", 0), 0),
        ("ttccctl", Place("start", 1), 1),
        ("ttccctl", Place("start", 2), None),  # content
        ("ttccctl", Place("end", 0), 6),
        ("ttccctl", Place("end", 1), 5),
        ("ttccctl", Place("end", 2), None),
        ("ttccctl", Place("content_start", 0), 2),
        ("ttccctl", Place("content_end", 0), 4),
        ("ttccctl", Place("content_end", 2), 2),
        ("ttccctl", Place("content_start", 3), None),
        ("tstccl", Place("start", 2), 2),  # the system prompt belongs to what comes before
        ("thhtcctl", Place("start", 1), None),  # earlier turns do not
        ("thhtcctl", Place("start", 3), None),
        ("thhtcctl", Place("content_start", 0), 4),
        ("tttl", Place("start", 3), 3),  # nothing was said
        ("tttl", Place("end", 0), None),
        ("tttl", Place("content_end", 0), None),
    ],
)
def test_a_place_is_a_token_of_a_prompt_or_none(roles: str, place: Place, position: int | None) -> None:
    assert place.position(prompt(roles)) == position


def test_of_two_places_that_are_the_same_token_everywhere_the_first_is_kept() -> None:
    alike = places_of([prompt("tcctl"), prompt("tcctl")], 8)
    assert alike == (
        *(Place("start", 0), Place("end", 0), Place("end", 1)),
        *[Place("content_start", n) for n in (0, 1)],
    )
    other = places_of([prompt("tcctl"), prompt("tccctl")], 2)
    assert other[3:] == tuple(Place(f"content_{e}", n) for e in ("start", "end") for n in (0, 1))  # type: ignore[arg-type]
    assert not any(place.anchor.startswith("content") for place in places_of([prompt("tcctl")], 0))


def test_a_route_forces_what_a_prompt_has_and_the_first_of_two_that_meet() -> None:
    forced = (
        ForcedPlace(1, Place("content_end", 0), (2, 3)),
        ForcedPlace(1, Place("content_start", 0), (4, 5)),
        ForcedPlace(0, Place("content_start", 1), (0, 1)),
    )
    route = UniversalRoute(forced, SHAPES)
    assert route.on(prompt("tccl")) == Intervention.force(
        {(1, 2): (2, 3), (1, 1): (4, 5), (0, 2): (0, 1)}, phase="prefill"
    )
    assert route.on(prompt("tcl")) == Intervention.force({(1, 1): (2, 3)}, phase="prefill")
    assert route.on(prompt("ttl")) == Intervention()


# ---------------------------------------------------------------------- the search


def literal(engine: HFEngine, asked: list[Behaviour], method: Universal) -> tuple[dict[Any, Any], list[float]]:
    """The search by plain loops: exact scores from the untouched model, sets by trying all of them at every place."""
    prompts = [engine.encode(b.turns) for b in asked]
    targets = [engine.encode_target(b.target) for b in asked]
    places = places_of(prompts, method.content)
    most = method.log_tau

    def resolved(route: dict[Any, Any], which: Prompt) -> loops.Route:
        there: loops.Route = {}
        for (layer, place), experts in route.items():
            if (token := place.position(which)) is not None and (layer, token) not in there:
                there[layer, token] = experts
        return there

    def score(route: dict[Any, Any]) -> list[float]:
        rows = zip(prompts, targets, strict=True)
        return [loops.log_prob(engine.model, p.ids, t, resolved(route, p)) for p, t in rows]

    def level(totals: list[float]) -> float:
        return sum(min(total, most) for total in totals) / len(totals)

    route: dict[Any, Any] = {}
    totals = score(route)
    for _ in range(method.iterations):
        below = [n for n, total in enumerate(totals) if total < most]
        if not below:
            break
        gradients = {}
        for n in below:
            there = resolved(route, prompts[n])
            forced = Intervention.force(dict(there), phase="prefill") if there else None
            (gradients[n],) = engine.route_gradients([prompts[n]], [targets[n]], routing=[forced])
        ranked = []
        for router in engine.routers:
            for place in places:
                sums = {}
                for experts in combinations(range(router.experts), router.top_k):
                    gain, counted = 0.0, 0
                    for n in below:
                        token = place.position(prompts[n])
                        deciding = [p for (at, p) in route if at == router.layer and p.position(prompts[n]) == token]
                        if token is None or (deciding and deciding[0] != place):
                            continue
                        gain += float(gradients[n].layers[router.layer].gain(experts)[token])
                        counted += 1
                    if counted:
                        sums[experts] = gain
                best = max(sums, key=lambda experts: sums[experts], default=None)
                if best is not None and sums[best] > 0 and route.get((router.layer, place)) != best:
                    ranked.append((-sums[best], (router.layer, place), best))
        ranked = [(spot, experts) for _, spot, experts in sorted(ranked)[: method.joint]]
        tries = [ranked[:n] for n in (1, 2, 4) if n <= len(ranked)] + [[one] for one in ranked[1 : method.singles]]
        chosen, reached = route, totals
        for more in tries:
            found = score({**route, **dict(more)})
            if level(found) > max(level(reached) + 1e-9, level(totals) + method.min_gain):
                chosen, reached = {**route, **dict(more)}, found
        if chosen is route:
            break
        route, totals = chosen, reached
    floor = level(totals) - method.min_gain
    for spot in reversed(list(route)):
        fewer = {each: experts for each, experts in route.items() if each != spot}
        found = score(fewer)
        if level(found) >= floor:
            route, totals = fewer, found
    return route, totals


@pytest.mark.parametrize("log_tau", [-1e-9, -70.0])
def test_the_route_is_that_of_the_literal_loop(engine: HFEngine, log_tau: float) -> None:
    """With an aim that no prompt reaches, and one that some reach."""
    asked, method = behaviours(3), Universal(**QUICK, log_tau=log_tau, min_gain=0.05)
    found = method.find(engine, asked)
    route, totals = literal(engine, asked, method)
    assert {(f.layer, f.place): f.experts for f in found.route.forced} == route
    assert list(found.after) == pytest.approx(totals, abs=1e-8)
    assert found.route.forced
    assert method.level(found.after) > method.level(found.before)
    assert found.trajectory[0] == pytest.approx(method.level(found.before))
    assert found.prompts == tuple(b.id for b in asked)


def test_neither_batches_nor_groups_change_the_route(engine: HFEngine) -> None:
    asked = behaviours(3)
    usual = Universal(**QUICK).find(engine, asked)
    other = Universal(**QUICK, together=1).find(small_engine(batch_size=1), asked)
    assert other.route == usual.route
    assert other.rows == usual.rows


def test_what_it_cost_counts_every_forward_of_a_row(engine: HFEngine) -> None:
    asked = behaviours(2)
    method = Universal(iterations=1, joint=4, singles=3, content=2, prune=False)
    (gradient, _) = engine.route_gradients(
        [engine.encode(b.turns) for b in asked], [engine.encode_target(b.target) for b in asked]
    )
    found = method.find(engine, asked)
    assert found.rows == pytest.approx(2 * (1 + gradient.forwards + 3 + 2))  # 1, 2, 4 together and two more alone
    pruned = Universal(iterations=1, joint=4, singles=3, content=2).find(engine, asked)
    assert pruned.rows == found.rows + 2 * len(found.route.forced)


def test_with_no_gain_nothing_is_forced(engine: HFEngine) -> None:
    found = Universal(**QUICK, min_gain=1e3).find(engine, behaviours(2))
    assert found.route.forced == ()
    assert found.after == found.before
    assert len(found.trajectory) == 3  # the start, one iteration that helped nothing, pruning


def test_a_killed_search_goes_on_where_it_was(engine: HFEngine) -> None:
    asked, method = behaviours(2), Universal(**QUICK)
    stored: dict[str, Any] = {}
    told: list[int] = []

    def remember(key: str, compute: Callable[[], Any]) -> Any:
        if key not in stored:
            if len(stored) == 2:
                raise KeyboardInterrupt
            stored[key] = json.loads(json.dumps(compute()))
        return stored[key]

    with pytest.raises(KeyboardInterrupt):
        method.find(engine, asked, steps=Steps(remember))
    first = dict(stored)

    def goes_on(key: str, compute: Callable[[], Any]) -> Any:
        if key not in stored:
            stored[key] = json.loads(json.dumps(compute()))
        return stored[key]

    again = method.find(engine, asked, steps=Steps(goes_on, told.append))
    assert list(first) == ["universal/start", "universal/0"]
    assert list(stored) == [*first, "universal/1", "universal/prune"]
    assert again == method.find(engine, asked)
    assert sum(told) == method.iterations


# ---------------------------------------------------------------------- on other prompts


def test_a_route_is_replayed_beside_its_controls(engine: HFEngine) -> None:
    asked = behaviours(3)
    forced = (ForcedPlace(0, Place("start", 0), (1, 2)), ForcedPlace(2, Place("content_end", 1), (0, 7)))
    route = UniversalRoute(forced, SHAPES)
    replay, keys = Replay(draws=2, max_new_tokens=ANSWER, seed=4), []

    def remember(key: str, compute: Callable[[], Any]) -> Any:
        keys.append(key)
        return json.loads(json.dumps(compute()))

    found = replay.ask(engine, asked, Never(), route, steps=Steps(remember))
    names = ("plain", "routed", "natural", "random/0", "random/1")
    assert keys == [f"universal/{name}/0" for name in names]

    prompts = [engine.encode(b.turns) for b in asked]

    def said(routing: list[Intervention] | None) -> list[str]:
        return [c.text for c in engine.generate(prompts, routing=routing, max_new_tokens=ANSWER)]

    places = [(0, 0), (2, Place("content_end", 1).position(prompts[1]))]
    trace = engine.trace(prompts)
    used = {(n, at): trace[n].select(row=1, decode=False).experts[at].tolist() for n, at in places}
    rng = stream(4, "random universal route", 1)
    drawn = {pair: engine.routers[pair[0]].draw(rng, 1)[0].tolist() for pair in places}
    assert [a.response for a in found.plain] == said(None)
    assert [a.response for a in found.routed] == said([route.on(p) for p in prompts])
    alone = [prompts[1]]
    for answers, sets in ((found.natural, used), (found.random[1], drawn)):
        exact = engine.generate(alone, routing=Intervention.force(sets, phase="prefill"), max_new_tokens=ANSWER)
        assert answers[1].response == exact[0].text
    assert replay.random_route(engine, route, 0) != replay.random_route(engine, route, 1)


def test_a_route_goes_to_a_model_with_the_same_routers_and_to_no_other(engine: HFEngine) -> None:
    route = UniversalRoute((ForcedPlace(0, Place("end", 0), (1, 2)),), SHAPES)
    other = small_engine(seed=5)
    assert len(Replay(draws=0, max_new_tokens=1).ask(other, behaviours(2), Never(), route).routed) == 2
    larger = small_engine(num_experts=16)
    wanted = r"for 3 routers \(top 2 of 8\), and the model has 3 routers \(top 2 of 16\)"
    with pytest.raises(InterventionError, match=wanted):
        Replay().ask(larger, behaviours(2), Never(), route)


# ---------------------------------------------------------------------- files and refusals


def test_a_saved_route_is_the_same_again(tmp_path: Path) -> None:
    forced = (ForcedPlace(2, Place("content_end", 3), (0, 7)), ForcedPlace(0, Place("start", 0), (1, 2)))
    route = UniversalRoute(forced, SHAPES, "both", "tiny")
    again = UniversalRoute.load(route.save(tmp_path / "route.json"))
    assert again == route
    assert again.model == "tiny"


def _file(**changes: Any) -> dict[str, Any]:
    data = UniversalRoute((ForcedPlace(0, Place("start", 0), (1, 2)),), SHAPES).to_json()
    return {**data, **changes}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([], "Not a universal route"),
        (_file(schema="pointsman.intervention/1"), "Not a universal route"),
        (_file(forced=3), "damaged"),
        (_file(forced=[[0, "start", 0]]), "damaged"),
        (_file(forced=[[0, "start", -1, [1, 2]]]), "damaged"),
        (_file(forced=[[0, "start", True, [1, 2]]]), "damaged"),
        (_file(forced=[[0, "middle", 0, [1, 2]]]), "Unknown anchor 'middle'"),
        (_file(forced=[[0, ["start"], 0, [1, 2]]]), "Unknown anchor"),
        (_file(forced=[[0, "start", 0, [1, 9]]]), "no expert 9"),
        (_file(forced=[[0, "start", 0, [1]]]), "1 are forced"),
        (_file(forced=[[3, "start", 0, [1, 2]]]), "no MoE layer 3"),
        (_file(forced=[[0, "start", 0, [1, 2]]] * 2), "twice"),
        (_file(routers=[[8, 9, 1, 1]]), "damaged"),
        (_file(routers=[[8, 2, 3, 1]]), "damaged"),
        (_file(routers=[[10**30, 2, 1, 1]]), "damaged"),
        (_file(phase="decode"), "phase 'decode'"),
        (_file(phase=["both"]), "phase"),
        ({k: v for k, v in _file().items() if k != "routers"}, "damaged"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path, data: Any, why: str) -> None:
    path = tmp_path / "route.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InterventionError, match=why) as refused:
        UniversalRoute.load(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "route.json"
    path.write_bytes(content)
    with pytest.raises(InterventionError, match="not JSON"):
        UniversalRoute.load(path)
    with pytest.raises(InterventionError, match="Cannot read"):
        UniversalRoute.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"joint": 0}, {"together": 0}, {"content": -1}, {"singles": -1}, {"min_gain": -1.0},
     {"log_tau": 0.1}, {"phase": "decode"}],
)  # fmt: skip
def test_parameters_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Universal(**wrong)


def test_no_prompts_no_gradients_and_no_draws_are_refused(engine: HFEngine) -> None:
    with pytest.raises(UsageError, match="no prompts"):
        Universal().find(engine, [])
    with pytest.raises(UsageError, match="has none"):
        Universal().find(PlainEngine(), behaviours(1))
    with pytest.raises(UsageError):
        Replay(draws=-1)
    assert Universal().log_tau == math.log(0.8)
