"""SteerMoE: the risk difference, literally; what is not pinned; order; sizes; and how its authors pin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from engines import small_engine
from pointsman.errors import UsageError
from pointsman.methods.steermoe import PUBLISHED_EPS, Activations, SteerMoE, sizes, swept_sizes
from pointsman.routing.intervention import Intervention


def activations(tokens: int, *layers: Sequence[int]) -> Activations:
    return Activations(tokens, tuple(np.array(row, dtype=np.int64) for row in layers))


def drawn(rng: np.random.Generator, tokens: int, experts: Sequence[int], top_k: Sequence[int]) -> Activations:
    """Tokens that choose their experts at random, some more often."""
    counts = []
    for e, k in zip(experts, top_k, strict=True):
        liked = rng.random(e)
        chosen = [rng.choice(e, k, replace=False, p=liked / liked.sum()) for _ in range(tokens)]
        counts.append(np.bincount(np.concatenate(chosen), minlength=e))
    return Activations(tokens, tuple(counts))


def pinned(found: Intervention | None) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(layer, expert) pinned on, and pinned off."""
    assert found is not None
    (rule,) = found.rules
    on = {(s.layer, e) for s in rule.selections for e in s.experts}
    return on, {(s.layer, e) for s in rule.stopped for e in s.experts}


@pytest.mark.parametrize(("on", "off"), [(3, 0), (0, 3), (4, 4), (100, 100)])
def test_the_experts_of_the_largest_risk_difference_are_pinned(on: int, off: int) -> None:
    rng = np.random.default_rng(0)
    experts, top_k = [6, 4, 8], [2, 1, 3]
    wanted, unwanted = drawn(rng, 37, experts, top_k), drawn(rng, 211, experts, top_k)
    delta = {
        (layer, e): wanted.counts[layer][e] / 37 - unwanted.counts[layer][e] / 211
        for layer in range(3)
        for e in range(experts[layer])
    }
    assert len(set(delta.values())) == len(delta)
    positive = sorted((p for p in delta if delta[p] > 0), key=lambda p: -delta[p])[:on]
    negative: list[tuple[int, int]] = []
    for place in sorted((p for p in delta if delta[p] < 0), key=lambda p: delta[p]):
        room = experts[place[0]] - top_k[place[0]]
        if len(negative) < off and sum(p[0] == place[0] for p in negative) < room:
            negative.append(place)
    assert pinned(SteerMoE(on, off).pin(wanted, unwanted, top_k)) == (set(positive), set(negative))


def test_the_phase_is_that_of_the_rule() -> None:
    a, b = activations(4, [4, 0]), activations(4, [0, 4])
    found = SteerMoE(1, 0, "prefill").pin(a, b, [1])
    assert found is not None
    assert [r.where.phase for r in found.rules] == ["prefill"]


def test_rates_and_not_counts_are_compared() -> None:
    wanted, unwanted = activations(10, [5, 5]), activations(1000, [900, 100])
    assert pinned(SteerMoE(1, 1).pin(wanted, unwanted, [1])) == ({(0, 1)}, {(0, 0)})


def test_no_difference_is_no_pin() -> None:
    same = activations(10, [5, 5], [10, 0])
    assert SteerMoE(2, 2).pin(same, activations(20, [10, 10], [20, 0]), [1, 1]) is None
    one = SteerMoE(9, 9).pin(activations(10, [6, 4], [10, 0]), activations(10, [5, 5], [10, 0]), [1, 1])
    assert pinned(one) == ({(0, 0)}, {(0, 1)})


def test_a_layer_keeps_top_k_experts_that_are_not_off() -> None:
    """All but one expert of layer 0 are used less; only two may go, and the third comes from layer 1."""
    wanted, unwanted = activations(10, [20, 0, 0, 0], [10, 10, 0]), activations(10, [2, 6, 7, 5], [9, 10, 1])
    assert pinned(SteerMoE(0, 3).pin(wanted, unwanted, [2, 2])) == (set(), {(0, 1), (0, 2), (1, 2)})
    assert pinned(SteerMoE(0, 9).pin(wanted, unwanted, [2, 2]))[1] == {(0, 1), (0, 2), (1, 2)}
    assert SteerMoE(0, 9).pin(wanted, unwanted, [4, 3]) is None


def test_ties_go_to_the_first_layer_and_expert_on_and_to_the_last_off() -> None:
    wanted, unwanted = activations(4, [2, 2, 0, 0], [2, 2, 0, 0]), activations(4, [0, 0, 2, 2], [0, 0, 2, 2])
    found = [pinned(SteerMoE(n, n).pin(wanted, unwanted, [1, 1])) for n in (1, 3)]
    assert found[0] == ({(0, 0)}, {(1, 3)})
    assert found[1] == ({(0, 0), (0, 1), (1, 0)}, {(1, 3), (1, 2), (0, 3)})


def test_activations_add_up() -> None:
    total = activations(3, [1, 2], [3]) + activations(4, [10, 20], [30])
    assert total.tokens == 7
    assert [row.tolist() for row in total.counts] == [[11, 22], [33]]


@pytest.mark.parametrize("entries", [1, 12, 13, 96, 384, 48 * 128])
def test_sizes_double_from_two_to_a_sixth(entries: int) -> None:
    tried = sizes(entries)
    counts = sorted({n for pair in tried for n in pair} - {0})
    assert tried == [pair for n in counts for pair in ((n, 0), (0, n), (n, n))]
    assert counts[0] == 2
    assert all(b == 2 * a for a, b in pairwise(counts))
    assert counts[-1] <= max(2, entries // 6) < 2 * counts[-1]


@pytest.mark.parametrize(("on", "off"), [(0, 0), (-1, 2), (2, -1)])
def test_nothing_to_pin_is_refused(on: int, off: int) -> None:
    with pytest.raises(UsageError, match=f"{on} experts on and {off} off"):
        SteerMoE(on, off)


# ---------------------------------------------------------------------- as its authors run it


@pytest.mark.parametrize(("on", "off"), [(1, 0), (3, 0), (0, 3), (5, 4), (100, 100)])
def test_published_pins_are_those_of_the_authors_loop(on: int, off: int) -> None:
    """The first n+ and n- by absolute difference; of each layer as many on as its top-k, and nobody in their place."""
    rng = np.random.default_rng(3)
    experts, top_k = [6, 4, 8], [2, 1, 3]
    wanted, unwanted = drawn(rng, 53, experts, top_k), drawn(rng, 97, experts, top_k)
    rows = [
        (wanted.counts[layer][e] / 53 - unwanted.counts[layer][e] / 97, layer, e)
        for layer in range(3)
        for e in range(experts[layer])
    ]
    rows.sort(key=lambda row: -abs(row[0]))
    weights = [np.zeros(e) for e in experts]
    for _, layer, e in [row for row in rows if row[0] > 0][:on]:
        if (weights[layer] > 0).sum() < top_k[layer]:
            weights[layer][e] = 1
    for _, layer, e in [row for row in rows if row[0] < 0][:off]:
        if (weights[layer] < 0).sum() < experts[layer] - top_k[layer]:
            weights[layer][e] = -1
    found = SteerMoE.published(on, off).pin(wanted, unwanted, top_k)
    places = [(layer, e, w) for layer, row in enumerate(weights) for e, w in enumerate(row)]
    assert pinned(found) == ({(n, e) for n, e, w in places if w > 0}, {(n, e) for n, e, w in places if w < 0})
    assert found is not None
    assert [rule.eps for rule in found.rules] == [PUBLISHED_EPS] == [0.01]


def test_a_layer_has_no_more_on_than_it_activates_if_capped() -> None:
    wanted, unwanted = activations(10, [9, 8, 3, 0], [5, 5]), activations(10, [1, 1, 1, 17], [4, 6])
    assert pinned(SteerMoE(3, 0).pin(wanted, unwanted, [2, 1])) == ({(0, 0), (0, 1), (0, 2)}, set())
    assert pinned(SteerMoE.published(3, 0).pin(wanted, unwanted, [2, 1])) == ({(0, 0), (0, 1)}, set())
    assert pinned(SteerMoE.published(4, 0).pin(wanted, unwanted, [2, 1])) == ({(0, 0), (0, 1), (1, 0)}, set())


def test_pins_on_logits_are_the_authors_pins_on_log_softmax_scores() -> None:
    """The same experts with the same weights, from the router of a model under the pin."""
    engine = small_engine(num_hidden_layers=1)
    router, prompt = engine.routers[0], engine.encode(["where is the red tairn ?"])
    wanted = Activations(10, (np.array([9, 1, 1, 1, 1, 1, 1, 1]),))
    unwanted = Activations(10, (np.array([0, 1, 1, 1, 9, 9, 1, 1]),))
    found = SteerMoE.published(1, 2).pin(wanted, unwanted, [router.top_k])
    assert pinned(found) == ({(0, 0)}, {(0, 4), (0, 5)})
    plain, under = engine.trace([prompt]).layers[0], engine.trace([prompt], routing=found).layers[0]
    scores = torch.log_softmax(torch.from_numpy(plain.logits).double(), -1)
    high, low = scores.amax(-1), scores.amin(-1)
    scores[:, 0], scores[:, [4, 5]] = high + 0.01, (low - 0.01)[:, None]
    theirs = scores.topk(router.top_k).indices
    assert {*map(frozenset, theirs.tolist())} - {*map(frozenset, plain.experts.tolist())}, "the pin changes something"
    assert [sorted(row) for row in theirs.tolist()] == [sorted(row) for row in under.experts.tolist()]
    raw = torch.from_numpy(plain.logits).double()
    top, least = raw.amax(-1), raw.amin(-1)
    raw[:, 0], raw[:, [4, 5]] = top + 0.01, (least - 0.01)[:, None]
    assert torch.allclose(torch.softmax(raw, -1), torch.softmax(scores, -1), rtol=0, atol=1e-12)


def test_no_counted_token_is_no_pin() -> None:
    none, some = activations(0, [0, 0]), activations(4, [4, 0])
    assert SteerMoE(1, 1).pin(none, some, [1]) is SteerMoE.published(1, 1).pin(some, none, [1]) is None


@pytest.mark.parametrize("entries", [1, 12, 96, 384, 48 * 128])
def test_swept_sizes_are_every_pair_of_what_quadruples_to_a_sixth(entries: int) -> None:
    swept = swept_sizes(entries)
    counts = sorted({n for pair in swept for n in pair})
    assert counts[:2] == [0, 2]
    assert all(b == 4 * a for a, b in pairwise(counts[1:]))
    assert counts[-1] <= max(2, entries // 6) < 4 * counts[-1]
    assert sorted(swept) == sorted((a, b) for a in counts for b in counts if a + b)
