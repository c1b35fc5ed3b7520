"""Every family, held against what its block really computes: no router is asked which experts it chose.

An expert is used by a token if other weights in that expert change what the block gives for the token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from families.knock import experts_that_count
from families.tiny import tiny
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router, find_routers

pytestmark = pytest.mark.versions

IDS = torch.tensor([[5, 17, 33, 9, 41], [7, 12, 60, 3, 28]])
ROWS, LENGTH = IDS.shape
# Recurrent states (Qwen3-Next's linear attention, Jamba's Mamba) are summed over chunks of tokens in a forward, and
# token by token with a cache: equal numbers rounded in another order. In float32, over four layers of them.
RECURRENT = {"qwen3_next": 1e-4, "jamba": 1e-4}


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **kwargs).logits
    return result


def draw(routers: tuple[Router, ...], seed: int) -> dict[int, list[int]]:
    rng = np.random.default_rng(seed)
    return {r.layer: r.draw(rng, 1)[0].tolist() for r in routers}


def used_by(model: Any, run: Callable[[], object]) -> list[list[list[int]]]:
    """Experts by layer and token (rows one after the other)."""
    tables = experts_that_count(model, find_routers(model), run)
    return [[row.nonzero()[:, 0].tolist() for row in table] for table in tables]


def test_what_the_trace_says_is_what_is_used(model: Any) -> None:
    with control(model, trace=True) as controller:
        logits(model)
    used = used_by(model, lambda: logits(model))
    for layer, tokens in zip(controller.trace().layers, used, strict=True):
        assert [sorted(row) for row in layer.experts.tolist()] == tokens


def test_sets_forced_by_row_and_position_are_used(model: Any) -> None:
    routers = find_routers(model)
    one, two, three = (draw(routers, seed) for seed in (1, 2, 3))
    routing = [Intervention.force(one, positions=[0, 2, 3]) + Intervention.force(two, positions=[1, 4]),
               Intervention.force(three)]  # fmt: skip
    with control(model, routing):
        used = used_by(model, lambda: logits(model))
    for layer, tokens in enumerate(used):
        first = [one if position in (0, 2, 3) else two for position in range(LENGTH)]
        assert tokens == [sets[layer] for sets in (*first, *[three] * LENGTH)]


def test_masks_wider_than_top_k_are_kept(model: Any) -> None:
    routers = find_routers(model)
    sets = {r.layer: sorted({*draw(routers, 4)[r.layer], *draw(routers, 5)[r.layer]}) for r in routers}
    assert any(len(sets[r.layer]) > r.top_k for r in routers)
    with control(model, Intervention.mask(sets)):
        used = used_by(model, lambda: logits(model))
    for router, tokens in zip(routers, used, strict=True):
        for row in tokens:
            assert set(row) <= set(sets[router.layer])
            # Where groups are limited, those that the model picks may hold fewer than top-k allowed experts; the rest
            # is then chosen with weight zero.
            assert len(row) == router.top_k or (router.groups > 1 and row)


def test_experts_left_free_are_those_of_the_untouched_model(model: Any) -> None:
    routers = find_routers(model)
    plain = used_by(model, lambda: logits(model))
    with control(model, Intervention.force({1: draw(routers, 6)[1]}, positions=[3], rows=[1])):
        held = used_by(model, lambda: logits(model))
    assert held[0] == plain[0]
    place = LENGTH + 3
    assert held[1][:place] == plain[1][:place]
    assert held[1][place] == draw(routers, 6)[1]
    assert held[1][place + 1 :] == plain[1][place + 1 :]


def test_other_rows_and_earlier_positions_are_untouched(family: str) -> None:
    model = tiny(family, dtype=torch.float64)  # in float32 an expert's batch of another size rounds apart
    model.set_experts_implementation("eager")
    routers, plain = find_routers(model), logits(model)
    with control(model, Intervention.force(draw(routers, 7), rows=[1], positions=[2])):
        held = logits(model)
    assert torch.allclose(held[0], plain[0], rtol=0, atol=1e-13)
    assert torch.allclose(held[1, :2], plain[1, :2], rtol=0, atol=1e-13)
    assert not torch.allclose(held[1, 2:], plain[1, 2:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("trace", [False, True])
def test_doing_nothing_is_bit_identical_in_float32(model: Any, trace: bool) -> None:
    plain = logits(model)
    with control(model, None, trace=trace):
        assert torch.equal(logits(model), plain)


def test_left_padding_does_not_shift(family: str, model: Any) -> None:
    routers = find_routers(model)
    one, two = draw(routers, 8), draw(routers, 9)
    routing = Intervention.force(one, positions=[0, 3]) + Intervention.force(two, positions=[1])
    padded = torch.cat([torch.zeros(ROWS, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(padded.shape[1]) >= 3).long().expand(ROWS, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with control(model, routing):
        alone = logits(model)
        beside = logits(model, padded, mask, position_ids=positions)
        used = used_by(model, lambda: logits(model, padded, mask, position_ids=positions))
    near = RECURRENT.get(family, 2e-5)
    assert torch.allclose(beside[:, 3:], alone, rtol=0, atol=near * float(alone.abs().max()))
    for layer, tokens in enumerate(used):
        for row in range(ROWS):
            real = tokens[row * padded.shape[1] + 3 :][:LENGTH]
            assert [real[0], real[1], real[3]] == [one[layer], two[layer], one[layer]]


def test_decoding_with_a_cache_is_full_forwards_without(family: str, model: Any) -> None:
    routers = find_routers(model)
    sets, more = draw(routers, 10), draw(routers, 11)
    routing = Intervention.force(sets, positions=range(LENGTH))
    routing = routing + Intervention.force(more, positions=[LENGTH, LENGTH + 2])
    with control(model, routing):
        cached = model.generate(
            input_ids=IDS, attention_mask=torch.ones_like(IDS), do_sample=False, max_new_tokens=5, eos_token_id=None,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    ids = IDS
    for step, seen in enumerate(cached.logits):
        with control(model, routing, prompt_lengths=[LENGTH] * ROWS):
            full = logits(model, ids)[:, -1]
        near = RECURRENT.get(family, 2e-5) * float(full.abs().max())
        assert torch.allclose(seen, full, rtol=0, atol=near), step
        ids = torch.cat([ids, cached.sequences[:, ids.shape[1], None]], 1)
    with control(model, routing):
        used = used_by(model, lambda: logits(model, ids))
    for layer, tokens in enumerate(used):
        assert tokens[LENGTH] == tokens[LENGTH + 2] == more[layer]


def test_top_1_is_controlled_as_llama_4_has_it() -> None:
    model = tiny("llama4_text", num_experts_per_tok=1)
    forced = draw(find_routers(model), 12)
    with control(model, Intervention.force(forced)):
        used = used_by(model, lambda: logits(model))
    assert used == [[forced[layer]] * IDS.numel() for layer in range(3)]
