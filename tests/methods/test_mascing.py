"""The steering matrix turns the surrogate with few entries, and lambdas side by side are those one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pointsman.errors import DataError, RunError, UsageError
from pointsman.methods.mascing import Matrix, SteeringMatrix, circuit, jaccard
from pointsman.methods.surrogate import FittedSurrogate, Surrogate
from traces import Made, made, write

SMALL = SteeringMatrix(lambdas=(0.0, 1e-3, 3e-2), epochs=15)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def fitted(traces: Made) -> FittedSurrogate:
    return Surrogate(width=4, hidden=8, epochs=12, batch=32).fit(traces.store, traces.labels, groups=traces.groups)


@pytest.fixture(scope="module")
def ones(traces: Made) -> list[int]:
    return [i for i, label in enumerate(traces.labels) if label]


@pytest.fixture(scope="module")
def learnt(traces: Made, fitted: FittedSurrogate, ones: list[int]) -> list[Matrix]:
    return SMALL.learn(fitted, traces.store, ones, 0, traces.store.stds())


def test_it_turns_the_surrogate_against_the_shift(learnt: list[Matrix]) -> None:
    for matrix in learnt:
        assert matrix.unsteered < 0.2
        assert matrix.turned_raw > 0.9
        assert matrix.losses[-1] < matrix.losses[0]
    weak, _, strong = learnt
    assert strong.norm1 < weak.norm1
    assert len(strong.circuit) < len(weak.circuit)
    found = {(layer, expert): value for layer, expert, value in strong.circuit}
    assert found[0, 0] < 0  # where the label is, and against it
    assert found[0, 1] < 0
    of_layer = [np.abs(row).sum() for row in strong.values]
    assert of_layer[0] > sum(of_layer[1:])


def test_the_verdicts_are_those_of_traces_moved_by_sigma_s(
    traces: Made, fitted: FittedSurrogate, ones: list[int], learnt: list[Matrix], tmp_path: Path
) -> None:
    sigma = traces.store.stds()
    moved = []
    for i in ones:
        batch = traces.store.batch([i])
        moved.append([batch.layer(layer)[0] + sigma[layer] * learnt[1].values[layer] for layer in range(3)])
    store = write(tmp_path, moved, dtype=np.float32)
    assert (fitted.probabilities(store) < 0.5).mean() == learnt[1].turned


def test_side_by_side_is_one_by_one(traces: Made, ones: list[int]) -> None:
    exact = Surrogate(width=4, hidden=8, epochs=3, batch=32, dtype="float64")
    surrogate = exact.fit(traces.store, traces.labels, groups=traces.groups)
    sigma = traces.store.stds()
    together = SMALL.learn(surrogate, traces.store, ones, 0, sigma)
    for matrix in together:
        (alone,) = replace(SMALL, lambdas=(matrix.lambda_,)).learn(surrogate, traces.store, ones, 0, sigma)
        assert alone.losses == pytest.approx(matrix.losses, abs=1e-11)
        assert np.stack(alone.raw) == pytest.approx(np.stack(matrix.raw), abs=1e-9)


def test_it_is_deterministic_and_changes_nothing_else(
    traces: Made, fitted: FittedSurrogate, ones: list[int], learnt: list[Matrix]
) -> None:
    weights = [value.clone() for value in fitted.network.state_dict().values()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    told: list[int] = []
    again = SMALL.learn(fitted, traces.store, ones, 0, traces.store.stds(), progress=told.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert told == [1] * 15
    for a, b in zip(again, learnt, strict=True):
        assert a.to_json() == b.to_json()
    for old, new in zip(weights, fitted.network.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert all(p.grad is None for p in fitted.network.parameters())


def test_the_paper_s_start_leaves_noise(
    traces: Made, fitted: FittedSurrogate, ones: list[int], learnt: list[Matrix]
) -> None:
    """An entry starts at up to sqrt(6 / E), mostly above the cut: why the default is zero."""
    paper = replace(SMALL, init="paper", epochs=1, lr=1e-6).learn(fitted, traces.store, ones, 0, traces.store.stds())
    zero = replace(SMALL, epochs=1, lr=1e-6).learn(fitted, traces.store, ones, 0, traces.store.stds())
    assert len(paper[0].circuit) > 10
    assert not zero[0].circuit
    assert np.sqrt(3 / 8) < max(np.abs(row).max() for row in paper[0].raw) <= np.sqrt(6 / 8) + 1e-5
    assert np.array_equal(np.stack(paper[0].raw) > 0, np.stack(paper[1].raw) > 0)


def test_a_layer_whose_logits_do_not_vary_is_left_alone(tmp_path: Path) -> None:
    some = made(tmp_path / "a", n=40)
    contexts = []
    for i in range(40):
        batch = some.store.batch([i])
        contexts.append([batch.layer(0)[0], np.ones_like(batch.layer(1)[0]), batch.layer(2)[0]])
    store = write(tmp_path / "b", contexts)
    surrogate = Surrogate(width=4, hidden=8, epochs=2).fit(store, some.labels, groups=some.groups)
    sigma = store.stds()
    assert sigma[1] == 0
    for matrix in replace(SMALL, epochs=2).learn(surrogate, store, [1, 3], 0, sigma):
        assert not matrix.raw[1].any()
        assert np.isfinite(matrix.losses).all()


def test_circuits_and_their_overlap() -> None:
    a = (np.array([0.0, -0.5]), np.array([0.2, 0.0, 0.5]))
    assert circuit(a) == [(0, 1, -0.5), (1, 2, 0.5), (1, 0, 0.2)]
    assert jaccard(a, a) == 1.0
    assert jaccard(a, (np.array([0.0, 0.5]), np.array([0.9, 0.0, 0.5]))) == 2 / 4  # one has another sign
    nothing = (np.zeros(2), np.zeros(3))
    assert jaccard(a, nothing) == 0.0
    assert jaccard(nothing, nothing) == 1.0


def test_a_matrix_is_kept_as_json(learnt: list[Matrix]) -> None:
    for matrix in learnt:
        text = json.dumps(matrix.to_json(), allow_nan=False)
        back = Matrix.from_json(json.loads(text))
        assert back.to_json() == matrix.to_json()
        assert all(np.array_equal(x, y) for x, y in zip(back.values, matrix.values, strict=True))
        assert back.circuit == matrix.circuit
    data = learnt[0].to_json()
    for change in (
        {"values": []},
        {"values": [[1.0]]},
        {"values": None},
        {"raw": [[float("nan")] * 8] * 3},
        {"losses": ["x"]},
    ):
        with pytest.raises(RunError, match="not a steering matrix"):
            Matrix.from_json({**data, **change})
    with pytest.raises(RunError):
        Matrix.from_json({})


def test_what_cannot_be_learnt_is_refused(
    traces: Made, fitted: FittedSurrogate, ones: list[int], tmp_path: Path
) -> None:
    sigma = traces.store.stds()
    with pytest.raises(DataError, match="too few contexts"):
        SMALL.learn(fitted, traces.store, [], 0, sigma)
    with pytest.raises(UsageError, match="no class 2"):
        SMALL.learn(fitted, traces.store, ones, 2, sigma)
    for wrong in (sigma[:2], [1.0, np.nan, 1.0], [1.0, -1.0, 1.0]):
        with pytest.raises(DataError, match="sigma"):
            SMALL.learn(fitted, traces.store, ones, 0, wrong)
    with pytest.raises(UsageError, match="no context"):
        SMALL.learn(fitted, traces.store, [80], 0, sigma)
    other = made(tmp_path, n=4, experts=(8, 4))
    with pytest.raises(DataError, match="the surrogate knows"):
        SMALL.learn(fitted, other.store, [1], 0, sigma)
    for change in (
        {"lambdas": ()},
        {"lambdas": (-1.0,)},
        {"lambdas": (float("inf"),)},
        {"epochs": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"cut": -0.1},
        {"init": "ones"},
    ):
        with pytest.raises(UsageError):
            replace(SMALL, **change)
