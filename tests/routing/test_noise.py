"""Noise on router logits: the same for a token however it is computed, and Gaussian."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from caches import cached
from engines import behaviours, small_engine
from families.oracles import CONTRACTS, spied, used
from pointsman.errors import InterventionError
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention
from pointsman.routing.noise import BLOCK, standard_normal
from pointsman.routing.routers import Router, find_routers

IDS = torch.tensor([[5, 17, 33, 9, 41, 22], [7, 12, 60, 3, 28, 50]])
STDS = {0: 0.5, 1: 1.5}


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = None, **more: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(
            input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **more
        ).logits
    return result


def z(seed: int, layer: int, position: int, experts: int) -> Tensor:
    """The definition, one token at a time."""
    return torch.from_numpy(standard_normal(seed, layer, position // BLOCK, experts)[position % BLOCK])


def test_every_familys_router_gets_its_logits_with_the_noise(family: str, model: Any) -> None:
    """Rows have seeds of their own, and one row has none; the weights are those of routers written by hand."""
    rows = [Intervention.noise(STDS, seed=3), Intervention.noise({0: 2.0}, seed=4, phase="prefill", positions=[1, 5])]
    routers = find_routers(model)
    with control(model, rows), spied(model) as seen:
        logits(model)
    for router, module, raw, weights, experts in seen:
        for token in range(len(raw)):
            row, position = divmod(token, IDS.shape[1])
            r = raw[token].clone().double()
            if row == 0 and router.layer in STDS:
                r += STDS[router.layer] * z(3, router.layer, position, router.experts)
            if row == 1 and router.layer == 0 and position in (1, 5):
                r += 2.0 * z(4, 0, position, router.experts)
            expected = CONTRACTS[family](dict(enumerate(r.tolist())), router, module)
            assert used(weights, experts, token) == pytest.approx(expected, rel=2e-5), (router.layer, token)
    assert len(routers) > 1


def test_the_noise_is_independent_standard_normal() -> None:
    drawn = np.stack([standard_normal(s, layer, b, 8) for s in range(8) for layer in range(4) for b in range(4)])
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.01
    flat = drawn.reshape(len(drawn), -1)
    assert len(np.unique(flat[:, 0])) == len(flat)  # another seed, layer or block is other noise
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.35
    assert np.array_equal(standard_normal(1, 2, 3, 8), standard_normal(1, 2, 3, 8))


def test_neither_batch_nor_padding_changes_it(olmoe: Any) -> None:
    rows = [[5, 17, 33, 9, 41, 22], [7, 12, 60]]
    noise = [Intervention.noise(STDS, seed=n) for n in range(2)]
    ids = torch.tensor([rows[0], [0, 0, 0, *rows[1]]])
    mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
    counted = (mask.cumsum(-1) - 1).clamp(min=0)
    with control(olmoe, noise):
        together = logits(olmoe, ids, mask, position_ids=counted)
    for n, row in enumerate(rows):
        with control(olmoe, noise[n]):
            alone = logits(olmoe, torch.tensor([row]))
        torch.testing.assert_close(together[n, -len(row) :], alone[0], rtol=0, atol=1e-10)
    with control(olmoe, noise[0]):
        same = logits(olmoe, ids, mask, position_ids=counted)
    torch.testing.assert_close(same[0], together[0], rtol=0, atol=1e-10)
    assert not torch.allclose(same[1, 3:], together[1, 3:])  # another seed is other noise


def test_decoding_is_reading_at_once(olmoe: Any) -> None:
    ids = torch.tensor([list(range(3, 3 + BLOCK + 9))])  # across a border of blocks
    with control(olmoe, Intervention.noise(STDS, seed=5), prompt_lengths=[BLOCK - 4]):
        whole = logits(olmoe, ids)
    with control(olmoe, Intervention.noise(STDS, seed=5)), torch.no_grad():
        output = olmoe(input_ids=ids[:, : BLOCK - 4], use_cache=True)
        steps = [output.logits]
        for at in range(BLOCK - 4, ids.shape[1]):
            output = olmoe(input_ids=ids[:, at : at + 1], **cached(olmoe, output))
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-10)


def test_the_engine_generates_the_same_in_any_batch() -> None:
    asked = behaviours(5)
    noise = [Intervention.noise({0: 1.0, 1: 1.0, 2: 1.0}, seed=n) for n in range(5)]
    answers = []
    for size in (1, 2, 5):
        engine = small_engine(batch_size=size)
        prompts = [engine.encode(b.turns) for b in asked]
        answers.append([c.ids for c in engine.generate(prompts, routing=noise, max_new_tokens=6)])
    assert answers[0] == answers[1] == answers[2]
    plain = engine.generate(prompts, max_new_tokens=6)
    assert [c.ids for c in plain] != answers[0]


def test_it_comes_before_masks_and_in_order_with_pins(olmoe: Any) -> None:
    router = find_routers(olmoe)[0]
    noise, mask = Intervention.noise({0: 50.0}, seed=1), Intervention.force({0: [2, 5]})
    pin = Intervention.pin({0: [3]}, eps=0.5)
    for routing in (noise + mask, mask + noise):
        with control(olmoe, routing, trace=True) as controller:
            logits(olmoe)
        assert {tuple(sorted(row)) for row in controller.trace()[0].experts.tolist()} == {(2, 5)}
    with control(olmoe, noise + pin, trace=True) as controller:
        logits(olmoe)
    assert all(3 in row for row in controller.trace()[0].experts.tolist())
    with control(olmoe, pin + noise, trace=True) as controller:
        logits(olmoe)
    trace = controller.trace()[0]
    for position, raw, experts in zip(trace.position, trace.logits, trace.experts, strict=True):
        r = torch.tensor(raw, dtype=torch.float64)
        r[3] = r.max() + 0.5
        r += 50.0 * z(1, 0, int(position), router.experts)
        assert sorted(experts.tolist()) == sorted(r.topk(router.top_k).indices.tolist())


def test_where_it_does_not_apply_nothing_changes(olmoe: Any) -> None:
    plain = logits(olmoe)
    for place in ({"phase": "decode"}, {"positions": [77]}):
        with control(olmoe, Intervention.noise(STDS, seed=0, **place)):  # type: ignore[arg-type]
            assert torch.equal(logits(olmoe), plain)
    with control(olmoe, Intervention.noise(STDS, seed=0, rows=[1])):
        moved = logits(olmoe)
    torch.testing.assert_close(moved[0], plain[0], rtol=0, atol=1e-12)
    assert not torch.allclose(moved[1], plain[1])


def test_saved_and_read_back(tmp_path: Path) -> None:
    one = Intervention.noise({2: 0.25, 0: 1.5}, seed=2**63, phase="decode", positions=[3], rows=[0, 2])
    both = (one + Intervention.bias({1: [1.0] * 8})).for_model("made-for-this")
    assert Intervention.load(both.save(tmp_path / "saved")) == both
    assert Intervention.from_json(json.loads(json.dumps(both.to_json()))) == both
    assert one.rules[0].layers == (0, 2)
    assert one != Intervention.noise({2: 0.25, 0: 1.5}, seed=1, phase="decode", positions=[3], rows=[0, 2])


@pytest.mark.parametrize("std", [0, 0.0, -1.0, math.nan, math.inf, 1e39, "1", None, True])
def test_a_standard_deviation_that_is_none_is_refused(std: Any) -> None:
    with pytest.raises(InterventionError, match="standard deviation"):
        Intervention.noise({0: std}, seed=0)
    data = Intervention.noise({0: 1.0}, seed=0).to_json()
    data["rules"][0]["std"]["0"] = std
    with pytest.raises(InterventionError):
        Intervention.from_json(data)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0", 2**64])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(InterventionError, match="seed"):
        Intervention.noise({0: 1.0}, seed=seed)


def test_layers_that_are_none_are_refused() -> None:
    with pytest.raises(InterventionError, match="without layers"):
        Intervention.noise({}, seed=0)
    with pytest.raises(InterventionError, match="no MoE layer 7"):
        Intervention.noise({7: 1.0}, seed=0).check((Router(0, 0, "gate", 8, 2),))


def test_noise_beyond_the_dtype_is_refused(fresh: Any) -> None:
    model = fresh("olmoe", dtype=torch.float16)
    with control(model, Intervention.noise({0: 1e6}, seed=0)), pytest.raises(InterventionError, match="too large"):
        logits(model)


def test_the_engine_scores_what_a_full_forward_gives() -> None:
    """However the engine shares computation between rows, each row has its own noise."""
    engine, asked = small_engine(), behaviours(2)
    prompts = [engine.encode(asked[n // 3].turns) for n in range(6)]
    targets = [engine.encode_target(asked[n // 3].target) for n in range(6)]
    late = [Intervention.noise({2: 1.0}, seed=n) for n in range(4)]
    some = [
        None,
        *late,
        Intervention.noise({1: 1.0, 2: 1.0}, seed=9, phase="prefill") + Intervention.force({2: [1, 4]}),
    ]
    scores = engine.score(prompts, targets, routing=some)
    for prompt, target, routing, score in zip(prompts, targets, some, scores, strict=True):
        ids = torch.tensor([prompt.ids + target[:-1]])
        with control(engine.model, routing, prompt_lengths=[len(prompt)]):
            log_p = logits(engine.model, ids)[0, len(prompt) - 1 :].log_softmax(-1)
        expected = [float(log_p[n, token]) for n, token in enumerate(target)]
        assert list(score.tokens) == pytest.approx(expected, abs=1e-9)
    assert len({s.total for s in scores}) == 6
