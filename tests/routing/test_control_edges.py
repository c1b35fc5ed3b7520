"""Where control could go wrong in silence: unwinding, batches, caches, stale proofs, routers that do not obey."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_control_families import IDS, MASK, draw, generate, logits, padded, vector
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from caches import cached
from pointsman.errors import BadLogits, ControlFailed, InterventionError, NoRouters, UncontrollableRouter, WrongModel
from pointsman.routing.control import Controller, control, prove
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import find_routers, fingerprint

pytestmark = pytest.mark.versions


def gates(model: Any) -> list[nn.Module]:
    return [model.get_submodule(r.path) for r in find_routers(model)]


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that control could leave behind on any module."""
    return [
        (name, sorted(m.__dict__), m.__dict__.get("forward"), dict(m._forward_hooks), dict(m._forward_pre_hooks),
         dict(m._forward_hooks_with_kwargs), dict(m._forward_pre_hooks_with_kwargs), m.training)
        for name, m in model.named_modules()
    ]  # fmt: skip


def bias(model: Any, **where: Any) -> Intervention:
    return Intervention.bias({r.layer: vector(r, 1) for r in find_routers(model)}, **where)


# -- unwinding -----------------------------------------------------------------------------------------------


def test_nothing_is_left_behind(family: str, fresh: Any) -> None:
    model = fresh(family)
    before = snapshot(model)
    with control(model, bias(model), trace=True):
        logits(model)
        assert snapshot(model) != before
    assert snapshot(model) == before


class Boom(Exception):
    pass


@pytest.mark.parametrize("inside", ["router", "experts", "block"])
def test_unwinds_after_an_exception_in_a_forward(fresh: Any, inside: str) -> None:
    model = fresh("olmoe")
    plain = logits(model)
    before = snapshot(model)
    block = model.model.layers[1].mlp
    target = {"router": block.gate, "experts": block.experts, "block": block}[inside]

    def explode(*_: Any) -> None:
        raise Boom

    prove(model)
    hook = target.register_forward_hook(explode)
    with pytest.raises(Boom), control(model, bias(model), trace=True):
        logits(model)
    hook.remove()
    assert snapshot(model) == before
    assert torch.equal(logits(model), plain)
    with control(model, bias(model)):  # and a caught one leaves the next forward right
        steered = logits(model)
        hook = target.register_forward_hook(explode)
        with pytest.raises(Boom):
            logits(model)
        hook.remove()
        assert torch.equal(logits(model), steered)


def test_an_own_forward_as_accelerate_sets_one_is_restored(fresh: Any) -> None:
    model = fresh("olmoe")
    gate, calls = gates(model)[1], []
    original = gate.forward

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    gate.forward = own  # type: ignore[assignment]
    plain = logits(model)
    with control(model, bias(model)):
        calls.clear()
        assert not torch.equal(logits(model), plain)
        assert calls == [1]
    assert gate.__dict__["forward"] is own


def test_accelerate_hooks_survive(fresh: Any) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = fresh("olmoe")
    plain = logits(model)
    for module in (model, *gates(model)):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    before = snapshot(model)
    forced = draw(find_routers(model), 1)
    with control(model, Intervention.force(forced), trace=True) as controller:
        assert not torch.equal(logits(model), plain)
    assert (np.sort(controller.trace()[2].experts, axis=1) == forced[2]).all()
    assert snapshot(model) == before


def test_training_flags_of_every_module_survive_the_proof(fresh: Any) -> None:
    model = fresh("olmoe").train()
    model.model.layers[0].eval()
    before = snapshot(model)
    prove(model)
    assert snapshot(model) == before


# -- nesting and batches -------------------------------------------------------------------------------------


def test_nested_control_is_refused_and_the_outer_one_stays(fresh: Any) -> None:
    model = fresh("olmoe")
    with control(model, bias(model)):
        steered = logits(model)
        for inner in (model, model.model):  # the base model has the same routers
            with pytest.raises(InterventionError, match="already under control"), control(inner):
                pass
        second = Controller(model, find_routers(model), "")
        with pytest.raises(InterventionError, match="already under control"), second.attached():
            pass
        assert torch.equal(logits(model), steered)


def test_a_batch_of_another_size_is_refused(olmoe: Any) -> None:
    with control(olmoe, [bias(olmoe), None, None]), pytest.raises(InterventionError, match="3 interventions"):
        logits(olmoe)
    with control(olmoe, [None, None, None]), pytest.raises(InterventionError, match="3 interventions"):
        logits(olmoe)
    with control(olmoe, bias(olmoe, rows=[2])), pytest.raises(InterventionError, match="row 2"):
        logits(olmoe)
    with control(olmoe, prompt_lengths=[3]), pytest.raises(InterventionError, match="prompt lengths"):
        logits(olmoe)


def test_a_part_of_the_model_is_not_run_in_silence(olmoe: Any) -> None:
    with control(olmoe, bias(olmoe)), pytest.raises(ControlFailed, match="outside a forward"), torch.no_grad():
        olmoe.model(input_ids=IDS)


def test_routing_can_change_while_attached(olmoe: Any) -> None:
    plain = logits(olmoe)
    with control(olmoe, bias(olmoe)) as controller:
        steered = logits(olmoe)
        controller.set(None)
        assert torch.equal(logits(olmoe), plain)
        controller.set([None, bias(olmoe)])
        assert torch.equal(logits(olmoe)[0], plain[0])
        controller.set(bias(olmoe))
        with pytest.raises(InterventionError):
            controller.set(Intervention.mask({99: [0, 1]}))
        with pytest.raises(InterventionError, match="routing of dict"):
            controller.set([{0: [1, 2]}])  # type: ignore[list-item]
        assert torch.equal(logits(olmoe), steered)


# -- masks that meet -----------------------------------------------------------------------------------------


def test_masks_that_meet_and_leave_too_few_are_refused_before_anything_runs(olmoe: Any) -> None:
    one, two = Intervention.mask({0: [0, 1, 2]}), Intervention.mask({0: [2, 3, 4]})
    with pytest.raises(InterventionError, match=r"layer 0 leave experts \[2\]"), control(olmoe, one + two):
        pass
    route = Intervention.force({0: [0, 1], 1: [0, 1]}) + Intervention.force({(0, 3): [4, 5]})
    with pytest.raises(InterventionError, match="position 3"), control(olmoe, route):
        pass
    apart = Intervention.force({0: [0, 1]}, phase="prefill") + Intervention.force({0: [4, 5]}, phase="decode")
    with control(olmoe, apart, trace=True) as controller:
        generate(olmoe, IDS, MASK)
    trace = controller.trace()[0]
    assert (np.sort(trace.select(decode=False).experts, axis=1) == [0, 1]).all()
    assert (np.sort(trace.select(decode=True).experts, axis=1) == [4, 5]).all()
    rows = Intervention.force({0: [0, 1]}, rows=[0]) + Intervention.force({0: [4, 5]}, rows=[1])
    with control(olmoe, rows, trace=True) as controller:
        logits(olmoe)
    assert (np.sort(controller.trace()[0].select(row=1).experts, axis=1) == [4, 5]).all()


def test_grouped_selection_holds_or_refuses(fresh: Any) -> None:
    """DeepSeek-V3, 4 groups of 4, 2 of them used, top-3."""
    model = fresh("deepseek_v3", dtype=torch.float64)
    with pytest.raises(InterventionError, match="expert groups"), control(model, Intervention.force({0: [0, 4, 8]})):
        pass
    with (
        pytest.raises(InterventionError, match="never allows 3"),
        control(model, Intervention.mask({0: [0, 4, 8, 12]})),
    ):
        pass
    for allowed in ([0, 4, 5, 8, 12], [0, 1, 4, 8, 12], [0, 1, 2, 15], [3, 7, 8, 9, 10, 12]):
        with control(model, Intervention.mask({0: allowed}), trace=True) as controller:
            logits(model)
        assert np.isin(controller.trace()[0].experts, allowed).all()


def test_a_broken_mask_fails_loudly(fresh: Any) -> None:
    """A router that obeys during the proof and later not: the realised experts are checked in every forward."""
    model = fresh("olmoe")
    prove(model)
    gate = gates(model)[1]
    gate.forward = lambda x, own=gate.forward: (*own(x)[:2], torch.zeros_like(own(x)[2]))  # type: ignore[assignment]
    prove_again = Intervention.force({1: [3, 4]})
    with pytest.raises((ControlFailed, UncontrollableRouter)), control(model, prove_again):
        logits(model)


# -- routers that do not obey --------------------------------------------------------------------------------


def with_forward(model: Any, change: Any) -> Any:
    """Replace the router class's forward of one layer by `change(module, x, original)`."""
    gate = gates(model)[1]
    kind = type(gate)
    gate.__class__ = type(kind.__name__, (kind,), {"forward": lambda self, x: change(self, x, kind.forward)})
    return model


def dead(self: Any, x: Tensor, original: Any) -> Any:
    raw, _, _ = original(self, x)
    chosen = torch.tensor([[0, 1]]).expand(len(raw), 2)
    return raw, torch.full(chosen.shape, 0.5, dtype=raw.dtype), chosen


def two_products(self: Any, x: Tensor, original: Any) -> Any:
    torch.nn.functional.linear(x.reshape(-1, self.hidden_dim), self.weight)
    return original(self, x)


def hidden_product(self: Any, x: Tensor, original: Any) -> Any:
    flat = x.reshape(-1, self.hidden_dim)
    raw = (flat[:, None, :] * self.weight).sum(-1)
    weights, chosen = torch.topk(raw.softmax(-1), 2)
    return raw, weights, chosen


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (dead, ControlFailed, "was told to use"),
        (two_products, UncontrollableRouter, "more than one product"),
        (hidden_product, UncontrollableRouter, "no matrix product"),
        (lambda m, x, own: own(m, x)[:2], UncontrollableRouter, "does not say which experts"),
        (lambda m, x, own: own(m, x)[0], UncontrollableRouter, "does not say which experts"),
    ],
)
def test_a_router_that_does_not_obey_is_refused(fresh: Any, change: Any, error: Any, match: str) -> None:
    model = with_forward(fresh("olmoe"), change)
    if match == "does not say which experts":  # its block must still work for the plain forward
        block, top = model.model.layers[1].mlp, fresh("olmoe").model.layers[1].mlp.gate
        block.forward = lambda x: (block.gate(x), block.experts(x.view(-1, 32), *reversed(top(x)[1:])).view(x.shape))[1]
    with pytest.raises(error, match=match):
        prove(model)
    with pytest.raises(error, match=match), control(model):
        pass


def test_a_block_that_ignores_its_router_is_refused(fresh: Any) -> None:
    """Only one of three layers is a dead switch: the output as a whole still moves."""
    model = fresh("olmoe")
    block = model.model.layers[1].mlp
    twin = copy.deepcopy(block)
    block.forward = lambda x: (block.gate(x), twin(x))[1]
    with pytest.raises(ControlFailed, match=r"model\.layers\.1\.mlp\.gate gives the same output"):
        prove(model)


def test_a_router_that_does_not_fire_is_refused(fresh: Any) -> None:
    model = fresh("olmoe")
    block = model.model.layers[1].mlp
    twin = copy.deepcopy(block)
    block.forward = lambda x: twin(x)
    with pytest.raises(ControlFailed, match="did not fire exactly once"):
        prove(model)


def test_noise_is_refused_and_nan_is_named(fresh: Any) -> None:
    model = with_forward(fresh("olmoe"), lambda m, x, own: own(m, x + torch.rand_like(x)))
    with pytest.raises(ControlFailed, match="random noise"):
        prove(model)
    model = fresh("olmoe")
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(BadLogits, match="NaN"):
        prove(model)


def test_dense_and_undeclared_models() -> None:
    dense = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                             num_attention_heads=2, num_key_value_heads=2)
    )  # fmt: skip
    with pytest.raises(NoRouters, match="dense"), control(dense):
        pass
    dense.config.num_experts = 8
    with pytest.raises(UncontrollableRouter, match="declares no router"):
        find_routers(dense)


# -- caches, masks, positions --------------------------------------------------------------------------------


def test_cached_decoding_by_hand_with_left_padding(olmoe: Any) -> None:
    """Positions go on from the cache; a prompt's later part is prefill where prompt_lengths says so."""
    ids, mask = padded([[5, 17, 33, 9, 41, 22], [7, 12, 60]], 6)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    forced = draw(find_routers(olmoe), 8)[1]
    rule = Intervention.force({(1, 2): forced}, phase="prefill") + bias(olmoe, phase="decode")
    with control(olmoe, rule, prompt_lengths=[4, 3], trace=True) as controller:
        whole = logits(olmoe, ids, mask, position_ids=positions)
    expected = controller.trace()
    cache, parts = DynamicCache(), []
    with control(olmoe, rule, prompt_lengths=[4, 3], trace=True) as controller:
        for start, end in ((0, 5), (5, 6)):
            parts.append(
                logits(olmoe, ids[:, start:end], mask[:, :end], position_ids=positions[:, start:end],
                       **cached(olmoe, cache))
            )  # fmt: skip
    assert torch.allclose(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()], rtol=0, atol=1e-10)
    for one, other in zip(expected.layers, controller.trace().layers, strict=True):
        assert np.array_equal(one.position, other.position)
        assert np.array_equal(one.decode, other.decode)
        assert np.array_equal(np.sort(one.experts, axis=1), np.sort(other.experts, axis=1))


def test_a_prompt_token_after_padding_in_the_cache_is_still_prefill(olmoe: Any) -> None:
    """The cache is longer than the prompt, because it holds padding."""
    ids, mask = padded([[7, 12, 60]], 8)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    forced = draw(find_routers(olmoe), 8)[1]
    cache = DynamicCache()
    with control(olmoe, Intervention.force({1: forced}, phase="prefill"), prompt_lengths=[3], trace=True) as c:
        logits(olmoe, ids[:, :7], mask[:, :7], position_ids=positions[:, :7], **cached(olmoe, cache))
        logits(olmoe, ids[:, 7:], mask, position_ids=positions[:, 7:], **cached(olmoe, cache))
    assert (np.sort(c.trace()[1].experts, axis=1) == forced).all()


def test_inputs_embeds_positional_and_no_mask_calls(olmoe: Any) -> None:
    rule = Intervention.force({(1, 3): [0, 5]}) + bias(olmoe, positions=[2])
    with control(olmoe, rule):
        expected = logits(olmoe)
        with torch.no_grad():
            embedded = olmoe(inputs_embeds=olmoe.get_input_embeddings()(IDS), attention_mask=MASK).logits
            positional = olmoe(IDS, MASK).logits
            bare = olmoe(IDS).logits
            stated = olmoe(IDS, position_ids=torch.arange(6)[None]).logits
    for other in (embedded, positional, bare, stated):
        assert torch.allclose(other, expected, rtol=0, atol=1e-10)


def test_right_padding_and_holes_count_real_tokens(olmoe: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 1]])
    with control(olmoe, trace=True) as controller:
        logits(olmoe, IDS, mask)
    trace = controller.trace()[0]
    assert trace.position.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert trace.row.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    "kwargs",
    [
        {"attention_mask": None, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(2, 6)},  # packed
        {"attention_mask": None, "position_ids": torch.arange(3, 9)[None]},  # an offset that nothing explains
        {"attention_mask": torch.ones(2, 1, 6, 6, dtype=torch.bool)},  # bidirectional
        {"attention_mask": torch.eye(6, dtype=torch.bool).expand(2, 1, 6, 6)},
        {"attention_mask": torch.block_diag(*[torch.ones(3, 3).tril()] * 2).bool().expand(2, 1, 6, 6)},
        {"attention_mask": (torch.ones(6, 6).tril() - torch.ones(6, 6).tril(-3)).bool().expand(2, 1, 6, 6)},  # window
        {"attention_mask": -torch.arange(6).double().expand(2, 1, 6, 6)},  # a bias
        {"attention_mask": torch.ones(2, 6).tril().bool()[:, None, None, :].expand(2, 1, 6, 6)},
    ],
)
def test_positions_in_doubt_are_refused(olmoe: Any, kwargs: dict[str, Any]) -> None:
    with (
        control(olmoe, bias(olmoe)),
        pytest.raises(ControlFailed, match=r"position_ids|attention mask"),
        torch.no_grad(),
    ):
        olmoe(input_ids=IDS, **kwargs)


def test_a_mask_without_the_cached_part_is_refused(olmoe: Any) -> None:
    cache = DynamicCache()
    with control(olmoe, bias(olmoe)):
        logits(olmoe, **cached(olmoe, cache))
        with pytest.raises(ControlFailed, match="6 cached"):
            logits(olmoe, IDS[:, :1], torch.ones(2, 1, dtype=torch.long), **cached(olmoe, cache))


@pytest.mark.parametrize("additive", [False, True])
def test_a_causal_4d_mask_with_padding_gives_the_right_positions(olmoe: Any, additive: bool) -> None:
    ids, mask = padded([[5, 17, 33, 9, 41, 22], [7, 12, 60]], 6)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    causal = torch.ones(6, 6, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    causal = causal | ~causal.any(-1, keepdim=True)  # as transformers does for rows of padding
    low = torch.finfo(torch.float64).min
    four: Tensor = torch.zeros(causal.shape).double().masked_fill(~causal, low) if additive else causal
    rule = Intervention.force({(1, 1): [0, 5]}) + bias(olmoe, positions=[2])
    with control(olmoe, rule):
        expected = logits(olmoe, ids, mask, position_ids=positions)
        got = logits(olmoe, ids, four, position_ids=positions)
        with pytest.raises(ControlFailed, match="4-D"):  # hidden keys that no position_ids explain
            logits(olmoe, ids, four)
    assert torch.allclose(got[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["olmoe", "deepseek_v3"])
def test_static_cache(fresh: Any, name: str) -> None:
    model = fresh(name, dtype=torch.float64)
    ids, mask = padded([[5, 17, 33, 9, 41, 22], [7, 12, 60]], 6)
    rule = Intervention.force(draw(find_routers(model), 8), positions=[1, 7]) + bias(model, phase="decode")
    outputs, traces = [], []
    for extra in ({}, {"cache_implementation": "static", "disable_compile": True}):
        with control(model, rule, trace=True) as controller:
            outputs.append(generate(model, ids, mask, **extra))
        traces.append(controller.trace())
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    for one, other in zip(traces[0].layers, traces[1].layers, strict=True):
        assert np.array_equal(one.position, other.position)
        assert np.array_equal(one.decode, other.decode)
        assert np.array_equal(np.sort(one.experts, axis=1), np.sort(other.experts, axis=1))


def test_static_cache_by_hand(olmoe: Any) -> None:
    cache = StaticCache(config=olmoe.config, max_cache_len=16)
    with control(olmoe, bias(olmoe, positions=[7]), trace=True, prompt_lengths=[6, 6]) as controller:
        logits(olmoe, **cached(olmoe, cache))
        logits(olmoe, IDS[:, :2], torch.ones(2, 8, dtype=torch.long), **cached(olmoe, cache))
    assert controller.trace()[0].select(row=1).position.tolist() == list(range(8))


def test_a_cache_that_does_not_tell_its_length_is_refused(olmoe: Any) -> None:
    with control(olmoe, bias(olmoe)), pytest.raises(ControlFailed, match="cache"):
        logits(olmoe, **cached(olmoe, ((torch.zeros(1), torch.zeros(1)),)))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_rule_of_one_phase_touches_no_router_in_the_other(olmoe: Any, phase: Any) -> None:
    """There the router's own forward is called as it is: no tap, no edits."""
    seen: list[Any] = []
    with control(olmoe, bias(olmoe, phase=phase)) as controller:
        plan = controller._plan
        assert plan is not None
        edits = plan.edits
        plan.edits = lambda layer: (seen.append(edits(layer)), seen[-1])[1]  # type: ignore[method-assign]
        generate(olmoe, IDS, MASK)
    assert [e is not None for e in seen] == [phase == "prefill"] * 3 + [phase == "decode"] * 3 * 4


# -- identity, proofs that go stale --------------------------------------------------------------------------


def test_fingerprint_is_of_the_checkpoint_not_of_its_dtype(family: str, fresh: Any) -> None:
    half = fresh(family, dtype=torch.bfloat16)
    full = copy.deepcopy(half).to(torch.float32)
    prints = {fingerprint(m, find_routers(m)) for m in (half, full, copy.deepcopy(full).to(torch.bfloat16))}
    assert len(prints) == 1
    other = fresh(family, seed=1, dtype=torch.bfloat16)
    assert fingerprint(other, find_routers(other)) not in prints
    fewer = fresh(family, dtype=torch.bfloat16, num_hidden_layers=2)
    assert fingerprint(fewer, find_routers(fewer)) not in prints


def test_an_intervention_for_another_model_is_refused(fresh: Any) -> None:
    model, other = fresh("olmoe"), fresh("olmoe", seed=1)
    mine = bias(model).for_model(prove(model).fingerprint)
    with control(model, mine):
        pass
    with pytest.raises(WrongModel, match="Load the model it was made for"), control(other, mine):
        pass
    with pytest.raises(WrongModel), control(other, [None, mine]):
        pass
    with control(model) as controller, pytest.raises(WrongModel):
        controller.set(mine.for_model("OlmoeForCausalLM-0000"))


@pytest.mark.parametrize("how", ["in place", "data", "swapped", "replaced", "loaded", "module"])
def test_the_fingerprint_does_not_go_stale(fresh: Any, how: str) -> None:
    model = fresh("olmoe")
    mine = bias(model).for_model(prove(model).fingerprint)
    gate: Any = gates(model)[2]
    with torch.no_grad():
        if how == "in place":
            gate.weight[3, 3] += 0.5
        elif how == "data":
            gate.weight.data[3, 3] += 0.5
        elif how == "swapped":
            gate.weight.data[[0, 1]] = gate.weight.data[[1, 0]]
        elif how == "replaced":
            gate.weight = nn.Parameter(gate.weight + 0.5)
        elif how == "loaded":
            model.load_state_dict(fresh("olmoe", seed=1).state_dict())
        else:
            model.model.layers[2].mlp.gate = copy.deepcopy(fresh("olmoe", seed=1).model.layers[2].mlp.gate)
    with pytest.raises(WrongModel), control(model, mine):
        pass
    fresh_proof = prove(model).fingerprint
    assert fresh_proof == fingerprint(model, find_routers(model))
    with control(model, mine.for_model(fresh_proof)):
        logits(model)


def test_the_proof_is_made_once(fresh: Any) -> None:
    model = fresh("olmoe")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    prove(model)
    once = len(calls)
    assert once > 4
    prove(model)
    with control(model):
        pass
    assert len(calls) == once
    model.model.layers[0].mlp.gate = copy.deepcopy(model.model.layers[0].mlp.gate)
    prove(model)
    assert len(calls) == 2 * once


# -- numbers -------------------------------------------------------------------------------------------------


def test_a_bias_too_large_for_the_dtype_is_refused(fresh: Any) -> None:
    model = fresh("olmoe", dtype=torch.float16)
    with control(model, Intervention.bias({0: [1e5] * 8})), pytest.raises(InterventionError, match="too large"):
        logits(model)


@pytest.mark.parametrize("name", ["phimoe", "mixtral"])
def test_training_mode_with_jitter(fresh: Any, name: str) -> None:
    """Routers draw random numbers in training; a forced set holds all the same, and gradients are numbers."""
    extra = {"router_jitter_noise": 0.1} | ({"input_jitter_noise": 0.1} if name == "phimoe" else {})
    model = fresh(name, **extra).train()
    forced = draw(find_routers(model), 6)
    with control(model, Intervention.force(forced) + bias(model), trace=True) as controller:
        torch.manual_seed(0)
        result = model(input_ids=IDS, attention_mask=MASK).logits
        result.logsumexp(-1).sum().backward()
    assert torch.isfinite(result).all()
    for layer, experts in forced.items():
        assert (np.sort(controller.trace()[layer].experts, axis=1) == experts).all()
    assert all(torch.isfinite(g.weight.grad).all() for g in gates(model))  # type: ignore[union-attr, arg-type]
    assert model.training


def test_gradients_flow_through_a_bias(olmoe: Any) -> None:
    embeds = olmoe.get_input_embeddings()(IDS).detach().requires_grad_()
    with control(olmoe, bias(olmoe, positions=[1])):
        olmoe(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad is not None
    assert torch.isfinite(embeds.grad).all()


@pytest.mark.slow
def test_a_compiled_model_is_controlled_or_refused(fresh: Any) -> None:
    """Compiled before control, by ``model.compile()``: never a silent no-op."""
    model = fresh("olmoe")
    forced = draw(find_routers(model), 4)
    with control(model, Intervention.force(forced)):
        expected = logits(model)
    model.compile(backend="eager")
    plain = logits(model)
    with control(model, Intervention.force(forced), trace=True) as controller:
        got = logits(model)
    assert (np.sort(controller.trace()[0].experts, axis=1) == forced[0]).all()
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.equal(logits(model), plain)
