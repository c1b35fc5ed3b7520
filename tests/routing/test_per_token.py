"""A bias in units of each token's own standard deviation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caches import cached
from engines import behaviours, small_engine
from families.oracles import CONTRACTS, spied, used
from pointsman.errors import InterventionError
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention
from pointsman.routing.layout import Layout
from pointsman.routing.plan import Plan
from pointsman.routing.routers import Router, find_routers

IDS = torch.tensor([[5, 17, 33, 9, 41, 22], [7, 12, 60, 3, 28, 50]])


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = None, **more: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(
            input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **more
        ).logits
    return result


def tilts(model: Any, seed: int = 0) -> dict[int, np.ndarray]:
    """A vector for every layer. Shapes: [E], float32."""
    rng = np.random.default_rng(seed)
    return {r.layer: rng.normal(0, 1, r.experts).astype(np.float32) for r in find_routers(model)}


def std(r: Tensor) -> Tensor:
    """The definition: over the experts of one token, divided by their number. Shape: [E] -> []."""
    return ((r - r.mean()) ** 2).mean().sqrt()


def test_every_familys_router_gets_its_logits_and_the_vector_in_units_of_their_spread(family: str, model: Any) -> None:
    """The weights are those of routers written by hand; the second row is not touched."""
    vectors = tilts(model)
    with control(model, [Intervention.bias(vectors, alpha=0.5, per_token=True), None]), spied(model) as seen:
        logits(model)
    assert seen
    for router, module, raw, weights, experts in seen:
        for token in range(len(raw)):
            r = raw[token].clone().double()
            if token < IDS.shape[1]:
                r = r + 0.5 * torch.tensor(vectors[router.layer]).double() * std(r)
            expected = CONTRACTS[family](dict(enumerate(r.tolist())), router, module)
            assert used(weights, experts, token) == pytest.approx(expected, rel=2e-5), (router.layer, token)


def test_rules_compose_in_order(olmoe: Any) -> None:
    """Each takes the spread of what the rules before it left, as a pin takes its maximum."""
    router = find_routers(olmoe)[0]
    a, b, c = (tilts(olmoe, seed)[0] for seed in (1, 2, 3))
    rules = (
        Intervention.bias({0: a}, per_token=True)
        + Intervention.bias({0: b})
        + Intervention.bias({0: c}, per_token=True)
        + Intervention.pin({0: [3]}, eps=0.5)
        + Intervention.bias({0: a}, per_token=True)
    )

    def edited(r: Tensor) -> Tensor:
        a_, b_, c_ = (torch.tensor(v).double() for v in (a, b, c))
        r = r + a_ * std(r)
        r = r + b_
        r = r + c_ * std(r)
        r[3] = r.max() + 0.5
        return r + a_ * std(r)

    with control(olmoe, rules), spied(olmoe) as seen:
        logits(olmoe)
    (first,) = [call for call in seen if call[0] == router]
    _, module, raw, weights, experts = first
    for token in range(len(raw)):
        expected = CONTRACTS["olmoe"](dict(enumerate(edited(raw[token].double()).tolist())), router, module)
        assert used(weights, experts, token) == pytest.approx(expected, rel=2e-5)


def test_a_mask_wins(olmoe: Any) -> None:
    tilt = Intervention.bias({0: [1e3] + [0.0] * 7}, per_token=True)
    for routing in (tilt + Intervention.force({0: [2, 5]}), Intervention.force({0: [2, 5]}) + tilt):
        with control(olmoe, routing, trace=True) as controller:
            logits(olmoe)
        assert {tuple(sorted(row)) for row in controller.trace()[0].experts.tolist()} == {(2, 5)}


def test_padding_and_the_cache_change_nothing(olmoe: Any) -> None:
    routing = Intervention.bias(tilts(olmoe), per_token=True)
    wide = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(IDS)], 1)
    with control(olmoe, routing):
        whole = logits(olmoe)
        left = logits(olmoe, wide, mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))[:, 3:]
        with torch.no_grad():
            output = olmoe(input_ids=IDS[:, :4], use_cache=True)
            rest = olmoe(input_ids=IDS[:, 4:], **cached(olmoe, output)).logits
    torch.testing.assert_close(left, whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat([output.logits, rest], 1), whole, rtol=0, atol=1e-10)
    assert not torch.allclose(whole, logits(olmoe), rtol=0, atol=1e-3)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_phases_and_positions_limit_it(olmoe: Any, phase: str) -> None:
    places = range(4) if phase == "prefill" else range(4, 6)
    vectors = {2: tilts(olmoe)[2]}  # the last layer: a token's logits depend on nothing but itself there
    with control(olmoe, Intervention.bias(vectors, per_token=True, phase=phase), prompt_lengths=[4, 4]):  # type: ignore[arg-type]
        some = logits(olmoe)
    with control(olmoe, Intervention.bias(vectors, per_token=True, positions=places)):
        named = logits(olmoe)
    with control(olmoe, Intervention.bias(vectors, per_token=True)):
        every = logits(olmoe)
    here = torch.zeros(6, dtype=torch.bool)
    here[list(places)] = True
    torch.testing.assert_close(some, torch.where(here[:, None], every, logits(olmoe)), rtol=0, atol=1e-12)
    torch.testing.assert_close(some, named, rtol=0, atol=1e-12)


def test_squares_of_half_precision_do_not_overflow(fresh: Any) -> None:
    """Logits of some hundreds fit float16, and their squares do not."""
    model = fresh("olmoe", dtype=torch.float16)
    with torch.no_grad():
        for router in find_routers(model):
            model.get_submodule(router.path).weight *= 100
    with control(model, trace=True) as controller:
        logits(model)
    assert np.abs(controller.trace()[0].logits).max() > 300
    with control(model, Intervention.bias({0: [0.5] + [0.0] * 7}, per_token=True)):
        assert torch.isfinite(logits(model)).all()


def test_the_engine_answers_and_scores_the_same_in_any_batch() -> None:
    engine, asked = small_engine(), behaviours(4)
    each = [
        Intervention.bias(tilts(engine.model, n), per_token=True, phase=phase)
        for n, phase in enumerate(("both", "prefill", "decode", "both"))
    ]
    prompts = [engine.encode(b.turns) for b in asked]
    targets = [engine.encode_target(b.target) for b in asked]
    together = engine.generate(prompts, routing=each, max_new_tokens=6)
    scores = engine.score(prompts, targets, routing=each)
    for n, prompt in enumerate(prompts):
        assert engine.generate([prompt], routing=each[n], max_new_tokens=6)[0] == together[n]
        ids = torch.tensor([prompt.ids + targets[n][:-1]])
        with control(engine.model, each[n], prompt_lengths=[len(prompt)]):
            log_p = logits(engine.model, ids)[0, len(prompt) - 1 :].log_softmax(-1)
        assert list(scores[n].tokens) == pytest.approx(
            [float(log_p[place, token]) for place, token in enumerate(targets[n])], abs=1e-9
        )


def test_the_flag_is_saved_and_makes_another_rule(tmp_path: Path) -> None:
    vectors = {2: [0.5, -1.0], 0: [2.0, 0.25]}
    one, other = Intervention.bias(vectors, per_token=True, phase="decode"), Intervention.bias(vectors, phase="decode")
    assert one != other
    both = one + other
    back = Intervention.load(both.save(tmp_path / "saved"))
    assert back == both
    assert hash(back) == hash(both)
    assert [rule.per_token for rule in back.rules] == [True, False]
    assert Intervention.from_json(json.loads(json.dumps(both.to_json()))) == both
    assert "per_token" not in other.to_json()["rules"][0]  # files of before are written as before


@pytest.mark.parametrize("flag", ["yes", 1, None, []])
def test_a_flag_that_is_none_is_refused(flag: Any) -> None:
    with pytest.raises(InterventionError, match="per_token"):
        Intervention.bias({0: [1.0]}, per_token=flag)
    data = Intervention.bias({0: [1.0]}).to_json()
    data["rules"][0]["per_token"] = flag
    with pytest.raises(InterventionError, match="per_token"):
        Intervention.from_json(data)


def test_the_deviation_is_divided_by_all_experts() -> None:
    raw = torch.arange(8.0)[None]  # shape: [1, 8]
    plan = Plan(Intervention.bias({0: [2.0] + [0.0] * 7}, per_token=True), [Router(0, 0, "gate", 8, 2)])
    plan.begin(Layout(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool)))
    edits = plan.edits(0)
    assert edits is not None
    assert float(edits.apply(raw)[0, 0]) == pytest.approx(2 * np.std(np.arange(8)), rel=1e-6)
