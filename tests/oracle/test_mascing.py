"""Surrogate and steering matrix equal the paper's loops, written literally, in float64: losses, weights, entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointsman.methods import mascing as mascing_module
from pointsman.methods.mascing import SteeringMatrix
from pointsman.methods.surrogate import FittedSurrogate, Surrogate, split
from traces import Made, made

TOLERANCE = 1e-9
SURROGATE = Surrogate(width=4, hidden=6, epochs=3, batch=24, dtype="float64")
MATRIX = SteeringMatrix(lambdas=(0.0, 1e-3, 0.05), epochs=4, batch=5)


class Literal(nn.Module):
    """LayerNorm -> Linear, concatenated over layers -> LSTM -> Linear; one context, shape [T, E_l] for each layer."""

    def __init__(self, experts: Sequence[int], width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.ModuleDict({str(e): nn.LayerNorm(e) for e in dict.fromkeys(experts)})
        self.linear = nn.ModuleDict({str(e): nn.Linear(e, width) for e in dict.fromkeys(experts)})
        self.lstm = nn.LSTM(len(experts) * width, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 1)

    def forward(self, context: Sequence[Tensor]) -> Tensor:
        parts = []
        for r in context:
            e = str(r.shape[1])
            parts.append(self.linear[e](self.norm[e](r)))
        states, _ = self.lstm(torch.cat(parts, dim=1)[None])
        return self.out(states[0, -1])[0]


def literal_network(experts: Sequence[int], parameters: Surrogate) -> Literal:
    with torch.random.fork_rng():
        torch.manual_seed(parameters.seed)
        return Literal(experts, parameters.width, parameters.hidden).double()


def contexts_of(traces: Made) -> list[list[Tensor]]:
    found = []
    for number in range(len(traces.store)):
        batch = traces.store.batch([number])
        found.append([torch.from_numpy(batch.layer(layer)[0]).double() for layer in range(len(traces.store.experts))])
    return found


def literal_fit(traces: Made, parameters: Surrogate) -> tuple[Literal, list[float]]:
    contexts, network = contexts_of(traces), literal_network(traces.store.experts, parameters)
    train, _ = split(traces.labels, traces.groups, parameters.seed)
    adam = torch.optim.Adam(network.parameters(), lr=parameters.lr)
    generator = torch.Generator().manual_seed(parameters.seed)
    losses = []
    for _ in range(parameters.epochs):
        order = [train[i] for i in torch.randperm(len(train), generator=generator).tolist()]
        summed = 0.0
        for start in range(0, len(order), parameters.batch):
            rows = order[start : start + parameters.batch]
            p = torch.stack([torch.sigmoid(network(contexts[i])) for i in rows])
            loss = nn.BCELoss()(p, torch.tensor([float(traces.labels[i]) for i in rows], dtype=torch.float64))
            adam.zero_grad()
            loss.backward()
            adam.step()
            summed += loss.item() * len(rows)
        losses.append(summed / len(order))
    return network, losses


def literal_matrix(
    network: Literal,
    contexts: Sequence[Sequence[Tensor]],
    wanted: float,
    sigma: np.ndarray,
    lambda_: float,
    parameters: SteeringMatrix,
) -> tuple[list[Tensor], list[float]]:
    """One lambda at a time, one context at a time; layers of equal experts only where the start is random."""
    network.requires_grad_(False)
    experts = [r.shape[1] for r in contexts[0]]
    s = [torch.zeros(e, dtype=torch.float64) for e in experts]
    if parameters.init == "paper":
        whole = torch.empty(len(experts), experts[0], dtype=torch.float64)
        nn.init.kaiming_uniform_(whole, generator=torch.Generator().manual_seed(parameters.seed))
        s = list(whole)
    s = [row.clone().requires_grad_() for row in s]
    adam = torch.optim.Adam(s, lr=parameters.lr)
    generator = torch.Generator().manual_seed(parameters.seed)
    losses = []
    for _ in range(parameters.epochs):
        order = torch.randperm(len(contexts), generator=generator).tolist()
        summed = 0.0
        for start in range(0, len(order), parameters.batch):
            rows = order[start : start + parameters.batch]
            p = torch.stack([
                torch.sigmoid(network([r + float(sigma[n]) * s[n] for n, r in enumerate(contexts[i])])) for i in rows
            ])  # fmt: skip
            bce = nn.BCELoss()(p, torch.full_like(p, wanted))
            loss = bce + lambda_ * torch.cat(s).abs().sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            summed += loss.item() * len(rows)
        losses.append(summed / len(order))
    return [row.detach() for row in s], losses


@pytest.fixture(scope="module", params=[(8, 8, 8), (8, 4, 8, 16)], ids=["equal", "mixed"])
def traces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("traces"), n=48, experts=request.param, shift=1.0)


@pytest.fixture(scope="module")
def fitted(traces: Made) -> FittedSurrogate:
    return SURROGATE.fit(traces.store, traces.labels, groups=traces.groups)


def test_the_surrogate_is_the_paper_s(traces: Made, fitted: FittedSurrogate) -> None:
    network, losses = literal_fit(traces, SURROGATE)
    assert fitted.report.losses == pytest.approx(losses, abs=TOLERANCE)
    weights = list(network.state_dict().values())
    for ours, theirs in zip(fitted.network.state_dict().values(), weights, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    with torch.no_grad():
        literal = [torch.sigmoid(network(context)).item() for context in contexts_of(traces)]
    assert fitted.probabilities(traces.store) == pytest.approx(literal, abs=TOLERANCE)


@pytest.mark.parametrize("kept", [True, False], ids=["in memory", "read again"])
@pytest.mark.parametrize("wanted", [0, 1])
def test_the_matrix_is_the_paper_s(
    traces: Made, fitted: FittedSurrogate, wanted: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(mascing_module, "BUDGET_BYTES", 0)
        monkeypatch.setattr(mascing_module, "MICRO_BYTES", 5_000)  # a step in several pieces
    indices = [i for i, label in enumerate(traces.labels) if label != wanted][:17]
    sigma = traces.store.stds()
    found = MATRIX.learn(fitted, traces.store, indices, wanted, sigma)
    network, _ = literal_fit(traces, SURROGATE)
    contexts = [contexts_of(traces)[i] for i in indices]
    for matrix, lambda_ in zip(found, MATRIX.lambdas, strict=True):
        s, losses = literal_matrix(network, contexts, float(wanted), sigma, lambda_, MATRIX)
        assert matrix.lambda_ == lambda_
        assert matrix.losses == pytest.approx(losses, abs=TOLERANCE)
        for layer, row in enumerate(s):
            assert matrix.raw[layer] == pytest.approx(row.numpy(), abs=TOLERANCE)
            assert np.array_equal(
                matrix.values[layer], np.where(np.abs(matrix.raw[layer]) <= 0.1, 0, matrix.raw[layer])
            )
        assert lambda_ > 0.01 or max(np.abs(row).max() for row in matrix.raw) > 0.1  # it moved
        for share, rows in ((matrix.unsteered, None), (matrix.turned_raw, matrix.raw), (matrix.turned, matrix.values)):
            with torch.no_grad():
                verdicts = [
                    network([r + (0 if rows is None else sigma[n] * torch.from_numpy(rows[n]))
                             for n, r in enumerate(context)]).item() >= 0
                    for context in contexts
                ]  # fmt: skip
            assert share == sum(v == bool(wanted) for v in verdicts) / len(verdicts)


def test_the_paper_s_start(tmp_path: Path) -> None:
    traces = made(tmp_path, n=48)
    fitted = SURROGATE.fit(traces.store, traces.labels, groups=traces.groups)
    method = replace(MATRIX, init="paper", seed=3, lambdas=(1e-3,))
    indices, sigma = list(range(1, 20, 2)), traces.store.stds()
    (found,) = method.learn(fitted, traces.store, indices, 0, sigma)
    network, _ = literal_fit(traces, SURROGATE)
    s, losses = literal_matrix(network, [contexts_of(traces)[i] for i in indices], 0.0, sigma, 1e-3, method)
    assert found.losses == pytest.approx(losses, abs=TOLERANCE)
    assert np.stack(found.raw) == pytest.approx(torch.stack(s).numpy(), abs=TOLERANCE)
