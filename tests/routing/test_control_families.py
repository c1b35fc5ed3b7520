"""What control promises, held against every family and against routers written by hand (families/oracles.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from families.oracles import CONTRACTS, spied, used
from families.tiny import FAMILIES
from pointsman.routing.control import control, prove
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router, find_routers
from precision import NEAR, near

pytestmark = pytest.mark.versions

IDS = torch.tensor([[5, 17, 33, 9, 41, 22], [7, 12, 60, 3, 28, 50]])
MASK = torch.ones_like(IDS)


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = MASK, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, attention_mask=mask, **kwargs).logits
    return result


def padded(rows: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def draw(routers: tuple[Router, ...], seed: int) -> dict[int, list[int]]:
    rng = np.random.default_rng(seed)
    return {r.layer: r.draw(rng, 1)[0].tolist() for r in routers}


def vector(router: Router, seed: int = 0) -> list[float]:
    values = np.random.default_rng([seed, router.layer]).normal(0, 2, router.experts)
    return [float(np.float32(v)) for v in values]


def check_by_hand(
    family: str, seen: list[Any], edit: Any = lambda router, token, r: r, allowed: Any = lambda router, token: None
) -> None:
    """Every router call of `seen` is what the hand-written router does with the edited logits."""
    assert seen
    for router, module, raw, weights, experts in seen:
        for token in range(len(raw)):
            r = edit(router, token, raw[token].clone()).tolist()
            kept = allowed(router, token)
            expected = CONTRACTS[family]({e: r[e] for e in range(router.experts) if kept is None or e in kept},
                                         router, module)  # fmt: skip
            assert used(weights, experts, token) == pytest.approx(expected, rel=2e-5), (router.layer, token)


def test_hand_written_routers_are_the_models_own(family: str, model: Any) -> None:
    with spied(model) as seen:
        logits(model)
    check_by_hand(family, seen)


@pytest.mark.parametrize("trace", [False, True])
def test_doing_nothing_is_bit_identical(model: Any, trace: bool) -> None:
    plain = logits(model)
    for routing in (None, Intervention(), [None, None], [None, Intervention()]):
        with control(model, routing, trace=trace):
            assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), plain)


def test_a_rule_that_reaches_no_token_is_bit_identical(model: Any) -> None:
    plain = logits(model)
    for place in ({"phase": "decode"}, {"positions": [77]}):
        with control(model, Intervention.bias({0: [9.0] + [0.0] * (find_routers(model)[0].experts - 1)}, **place)):
            assert torch.equal(logits(model), plain)


def test_forced_sets_are_realised_everywhere_with_the_models_own_weights(family: str, model: Any) -> None:
    for seed in range(4):
        forced = draw(find_routers(model), seed)
        with control(model, Intervention.force(forced), trace=True) as controller, spied(model) as seen:
            logits(model)
        for layer, experts in forced.items():
            trace = controller.trace()[layer]
            assert len(trace) == IDS.numel()
            assert (np.sort(trace.experts, axis=1) == experts).all()
        check_by_hand(family, seen, allowed=lambda router, token, forced=forced: forced[router.layer])


def test_a_mask_is_the_models_own_selection_with_the_other_experts_deleted(family: str, model: Any) -> None:
    routers, rng = find_routers(model), np.random.default_rng(3)
    for _ in range(4):
        sets = {}
        for router in routers:
            while not router.can_fill(
                chosen := rng.permutation(router.experts)[: rng.integers(router.top_k + 1, router.experts)].tolist()
            ):
                pass
            sets[router.layer] = chosen
        with control(model, Intervention.mask(sets)), spied(model) as seen:
            logits(model)
        check_by_hand(family, seen, allowed=lambda router, token, sets=sets: sets[router.layer])


def test_a_bias_is_added_to_the_logits(family: str, model: Any) -> None:
    vectors = {r.layer: vector(r) for r in find_routers(model)}
    with control(model, Intervention.bias(vectors, alpha=0.5)), spied(model) as seen:
        logits(model)
    check_by_hand(family, seen, edit=lambda router, token, r: r + torch.tensor(vectors[router.layer]).double() * 0.5)


def test_a_bias_is_a_real_bias(fresh: Any) -> None:
    model = fresh("gpt_oss", dtype=torch.float64)
    vectors = {r.layer: vector(r) for r in find_routers(model)}
    with control(model, Intervention.bias(vectors)):
        steered = logits(model)
    plain = logits(model)
    with torch.no_grad():
        for router in find_routers(model):
            model.get_submodule(router.path).bias += torch.tensor(vectors[router.layer])
    assert torch.allclose(logits(model), steered, rtol=0, atol=1e-10)
    assert not torch.allclose(plain, steered, rtol=0, atol=1e-3)


def test_a_pin_is_its_formula(family: str, model: Any) -> None:
    def pin(router: Router, token: int, r: Tensor) -> Tensor:
        high, low = r.max() + 0.75, r.min() - 0.75
        r[3], r[1] = high, low
        return r

    on = {r.layer: [3] for r in find_routers(model)}
    off = {r.layer: [1] for r in find_routers(model)}
    with control(model, Intervention.pin(on, off, eps=0.75)), spied(model) as seen:
        logits(model)
    check_by_hand(family, seen, edit=pin)


def test_rules_compose_in_order_and_masks_win(family: str, model: Any) -> None:
    routers = find_routers(model)
    first, second = ({r.layer: vector(r, seed) for r in routers} for seed in (1, 2))
    on = {r.layer: [2] for r in routers}
    forced = draw(routers, 9)

    def edit(router: Router, token: int, r: Tensor) -> Tensor:
        r = r + torch.tensor(first[router.layer]).double()
        r[2] = r.max() + 1.0
        return r + torch.tensor(second[router.layer]).double()

    steps = Intervention.bias(first) + Intervention.pin(on) + Intervention.bias(second)
    with control(model, steps), spied(model) as seen:
        logits(model)
    check_by_hand(family, seen, edit=edit)
    huge = Intervention.bias({r.layer: [1e4 if e not in forced[r.layer] else 0.0 for e in range(r.experts)]
                              for r in routers})  # fmt: skip
    for both in (Intervention.force(forced) + huge, huge + Intervention.force(forced)):
        with control(model, both, trace=True) as controller:
            logits(model)
        for layer, experts in forced.items():
            assert (np.sort(controller.trace()[layer].experts, axis=1) == experts).all()


def test_layers_positions_and_rows_limit_a_rule(family: str, model: Any) -> None:
    routers = find_routers(model)
    forced = draw(routers, 4)[1]
    rule = Intervention.force({1: forced}, positions=[1, 4], rows=[1])
    route = Intervention.force({(1, 1): forced, (1, 4): forced}, rows=[1])
    for routing in (rule, route, [None, Intervention.force({1: forced}, positions=[4, 1])]):
        with control(model, routing), spied(model) as seen:
            logits(model)

        def allowed(router: Router, token: int) -> list[int] | None:
            return forced if router.layer == 1 and token in (6 + 1, 6 + 4) else None

        check_by_hand(family, seen, allowed=allowed)


def test_the_trace_is_the_models_own_router_logits(model: Any) -> None:
    with torch.no_grad():
        plain = model(input_ids=IDS, attention_mask=MASK, output_router_logits=True)
    forced = draw(find_routers(model), 2)
    with control(model, Intervention.force({0: forced[0]}), trace=True) as controller:
        logits(model)
    trace = controller.trace()
    assert len(trace) == len(find_routers(model))
    # The first layer's input is untouched, so its raw logits are those of the plain model although it is
    # forced.
    own = plain.router_logits[0].reshape(-1, trace[0].logits.shape[1]).float().numpy()
    assert np.array_equal(trace[0].logits, own)
    assert trace[0].row.tolist() == [0] * 6 + [1] * 6
    assert trace[0].position.tolist() == [0, 1, 2, 3, 4, 5] * 2
    with control(model, trace=True) as controller:
        logits(model)
    for layer, raw in zip(controller.trace().layers, plain.router_logits, strict=True):
        assert np.array_equal(layer.logits, raw.reshape(layer.logits.shape).float().numpy())


def some_routings(model: Any) -> list[Intervention | None]:
    routers = find_routers(model)
    one, two = draw(routers, 11), draw(routers, 12)
    k = {r.layer: r.top_k for r in routers}
    assert all(len(one[n]) == k[n] for n in k)
    return [
        Intervention.force({(0, 1): one[0], (1, 2): one[1], (1, 3): two[1]}, phase="prefill"),
        None,
        Intervention.bias({r.layer: vector(r, 5) for r in routers}, phase="decode"),
        Intervention.bias({0: vector(routers[0], 6)}) + Intervention.force({1: two[1]}, positions=[0, 2, 5]),
        Intervention.pin({1: [4]}, {0: [0, 5]}, positions=[1]) + Intervention.mask({0: list(range(8))}),
    ]


ROWS = [[5, 17, 33, 9, 41], [7, 12, 60], [28, 50, 51, 52], [4, 6, 8, 10, 12], [61, 30, 20, 10]]


def test_a_row_is_the_same_alone_in_a_batch_and_padded(family: str, model: Any) -> None:
    routings = some_routings(model)
    ids, mask = padded(ROWS, 8)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with control(model, routings, trace=True) as controller:
        together = logits(model, ids, mask, position_ids=positions)
    joint = controller.trace()
    for n, (row, routing) in enumerate(zip(ROWS, routings, strict=True)):
        with control(model, routing, trace=True) as controller:
            alone = logits(model, torch.tensor([row]), None)
        assert torch.allclose(alone[0], together[n, -len(row) :], rtol=0, atol=near(model))
        for one, all_ in zip(controller.trace().layers, joint.layers, strict=True):
            mine = all_.select(row=n)
            assert np.array_equal(np.sort(one.experts, axis=1), np.sort(mine.experts, axis=1))
            assert np.array_equal(one.position, mine.position)
            assert np.allclose(one.logits, mine.logits, rtol=0, atol=NEAR[torch.float32])  # traces hold float32


def generate(model: Any, ids: Tensor, mask: Tensor, **kwargs: Any) -> Any:
    return model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=5, eos_token_id=None, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True, **kwargs,
    )  # fmt: skip


def test_generating_with_a_routing_per_row_is_generating_one_by_one(family: str, model: Any) -> None:
    routings = some_routings(model)
    ids, mask = padded(ROWS, 7)
    with control(model, routings):
        together = generate(model, ids, mask)
    for n, (row, routing) in enumerate(zip(ROWS, routings, strict=True)):
        with control(model, routing):
            alone = generate(model, torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))
        assert alone.sequences[0, len(row) :].tolist() == together.sequences[n, 7:].tolist()
        for one, all_ in zip(alone.logits, together.logits, strict=True):
            assert torch.allclose(one[0], all_[n], rtol=0, atol=NEAR[torch.float32])  # generate returns float32


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_phases_mean_the_same_cached_and_in_one_forward(family: str, model: Any, phase: str) -> None:
    routers = find_routers(model)
    routing = Intervention.bias({r.layer: vector(r, 7) for r in routers}, phase=phase)  # type: ignore[arg-type]
    routing = routing + Intervention.force({1: draw(routers, 5)[1]}, phase=phase)  # type: ignore[arg-type]
    prompts = [[5, 17, 33, 9], [7, 12]]
    ids, mask = padded(prompts, 4)
    with control(model, routing, trace=True) as controller:
        answer = generate(model, ids, mask)
    cached = controller.trace()
    full = torch.cat([ids, answer.sequences[:, 4:-1]], 1)
    mask = torch.cat([mask, torch.ones(2, 4, dtype=torch.long)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with control(model, routing, trace=True, prompt_lengths=[4, 2]) as controller:
        joint = logits(model, full, mask, position_ids=positions)
    for step, values in enumerate(answer.logits):
        assert torch.allclose(values, joint[:, 3 + step].float(), rtol=0, atol=NEAR[torch.float32])  # of generate
    for one, other in zip(cached.layers, controller.trace().layers, strict=True):
        assert np.array_equal(one.decode, other.decode)
        assert np.array_equal(one.position, other.position)
        assert np.array_equal(np.sort(one.experts, axis=1), np.sort(other.experts, axis=1))
        assert one.select(decode=False).row.tolist() == [0] * 4 + [1] * 2
        assert one.select(row=1, decode=True).position.tolist() == [2, 3, 4, 5]


def test_proof_reports_what_it_measured(model: Any) -> None:
    proof = prove(model)
    assert proof.identical
    assert proof.routers == len(find_routers(model))
    assert proof.tokens_forced == 10 * proof.routers
    assert proof.logits_moved > 0


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe"])
def test_experts_implementations_alike(fresh: Any, name: str, implementation: str) -> None:
    assert name in FAMILIES
    model = fresh(name)
    routings = some_routings(model)
    ids, mask = padded(ROWS, 8)
    results = []
    for kind in ("eager", implementation):
        model.set_experts_implementation(kind)
        with control(model, routings):
            results.append(logits(model, ids, mask))
    assert torch.allclose(results[0][mask.bool()], results[1][mask.bool()], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_masks_hold_and_give_numbers(family: str, fresh: Any, dtype: torch.dtype) -> None:
    model = fresh(family, dtype=dtype)
    forced = draw(find_routers(model), 21)
    with control(model, Intervention.force(forced), trace=True) as controller:
        result = logits(model)
    assert torch.isfinite(result).all()
    for layer, experts in forced.items():
        assert (np.sort(controller.trace()[layer].experts, axis=1) == experts).all()
