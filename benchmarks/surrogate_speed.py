"""Seconds of surrogate and steering matrices, against the loops as published, in the same run on one thread.

    python benchmarks/surrogate_speed.py [--contexts 2000] [--layers 12] [--experts 32] [--epochs 100]
                                         [--naive-epochs 2] [--whole] [--out FILE]

Traces are made up: Gaussian logits of 8 to 14 tokens, half of the contexts shifted. The loops: the surrogate over
padded batches through LayerNorm, Linear and LSTM; the matrix one lambda after the other through the whole surrogate,
frozen, all traces in memory. They take the same contexts in the same order, and the matrices the same weights. Matrices
of the loop are timed over a few epochs, and taken times all of them (every epoch costs the same); --whole times all.
Seconds are processor seconds. Prints a table; writes nothing unless --out names a JSON file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import Clock
from torch import Tensor, nn
from trace_memory import peak_gb

from pointsman.methods.mascing import SteeringMatrix
from pointsman.methods.surrogate import Surrogate, split
from pointsman.routing.store import TraceStore, TraceWriter

ASKED_SECONDS = 120.0


class Naive(nn.Module):
    """The network as published, over a padded batch; read at each row's last real token."""

    def __init__(self, layers: int, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(experts)
        self.linear = nn.Linear(experts, width)
        self.lstm = nn.LSTM(layers * width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, logits: Tensor, lengths: Tensor) -> Tensor:
        """logits: shape [B, T, L, E]; lengths: shape [B]. Returns log-odds, shape [B]."""
        states, _ = self.lstm(self.linear(self.norm(logits)).flatten(2))
        odds: Tensor = self.head(states[torch.arange(len(lengths)), lengths - 1])
        return odds[:, 0]


def naive_fit(store: TraceStore, labels: Sequence[int], groups: Sequence[str], parameters: Surrogate) -> None:
    """The surrogate's training loop."""
    torch.manual_seed(parameters.seed)
    network = Naive(len(store.experts), store.experts[0], parameters.width, parameters.hidden)
    train, _ = split(labels, groups, parameters.seed)
    adam = torch.optim.Adam(network.parameters(), lr=parameters.lr)
    generator = torch.Generator().manual_seed(parameters.seed)
    for _ in range(parameters.epochs):
        order = train[torch.randperm(len(train), generator=generator).numpy()]
        for start in range(0, len(order), parameters.batch):
            rows = order[start : start + parameters.batch]
            batch = store.batch(rows)
            odds = network(torch.from_numpy(batch.blocks[0]), torch.from_numpy(batch.lengths))
            wanted = torch.tensor([float(labels[i]) for i in rows])
            adam.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(odds, wanted).backward()
            adam.step()


def naive_matrices(
    weights: Mapping[str, Tensor], store: TraceStore, indices: Sequence[int], sigma: np.ndarray, method: SteeringMatrix
) -> list[Tensor]:
    """One matrix after the other, all contexts in memory, on a frozen surrogate of these weights. Shapes: [L, E]."""
    parameters = Surrogate()
    network = Naive(len(store.experts), store.experts[0], parameters.width, parameters.hidden).requires_grad_(False)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    batch = store.batch(indices)
    logits, lengths = torch.from_numpy(batch.blocks[0]), torch.from_numpy(batch.lengths)
    scale = torch.tensor(sigma, dtype=torch.float32)[:, None]
    found = []
    for lambda_ in method.lambdas:
        s = torch.zeros(len(store.experts), store.experts[0], requires_grad=True)
        adam = torch.optim.Adam([s], lr=method.lr)
        generator = torch.Generator().manual_seed(method.seed)
        for _ in range(method.epochs):
            order = torch.randperm(len(logits), generator=generator)
            for start in range(0, len(order), method.batch):
                rows = order[start : start + method.batch]
                here = logits[rows, : int(lengths[rows].max())]
                odds = network(here + scale * s, lengths[rows])
                loss = nn.functional.binary_cross_entropy_with_logits(odds, torch.zeros_like(odds))
                adam.zero_grad()
                (loss + lambda_ * s.abs().sum()).backward()
                adam.step()
        found.append(s.detach())
    return found


def make(folder: Path, n: int, layers: int, experts: int) -> tuple[TraceStore, list[int], list[str]]:
    """Traces of n contexts, their labels and source questions (four contexts each)."""
    rng = np.random.default_rng(0)
    shift = 0.3 * rng.standard_normal((layers, experts))
    with TraceWriter(folder, experts=[experts] * layers) as writer:
        for number in range(n):
            logits = 1.5 * rng.standard_normal((int(rng.integers(8, 15)), layers, experts)) + number % 2 * shift
            writer.add(f"c{number}", [logits[:, layer] for layer in range(layers)])
    return TraceStore.open(folder), [i % 2 for i in range(n)], [str(i // 4) for i in range(n)]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    parser = argparse.ArgumentParser(description="Surrogate and steering matrices, against the loops as published.")
    for name, default in (("contexts", 2_000), ("layers", 12), ("experts", 32), ("epochs", 100), ("naive-epochs", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--whole", action="store_true", help="time the loops over all epochs")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clock = Clock("cpu")
    surrogate, method = Surrogate(), SteeringMatrix(epochs=asked.epochs)
    few = asked.epochs if asked.whole else min(asked.naive_epochs, asked.epochs)
    short = replace(method, epochs=few)
    with tempfile.TemporaryDirectory() as temporary:
        store, labels, groups = make(Path(temporary), asked.contexts, asked.layers, asked.experts)
        ones = [i for i, label in enumerate(labels) if label]
        sigma = store.stds()
        naive_fit_s = clock.seconds(lambda: naive_fit(store, labels, groups, surrogate))
        fit_s, fitted = clock.timed(lambda: surrogate.fit(store, labels, groups=groups))
        naive_s, theirs = clock.timed(lambda: naive_matrices(fitted.network.state_dict(), store, ones, sigma, short))
        ours = short.learn(fitted, store, ones, 0, sigma)
        learn_s, matrices = clock.timed(lambda: method.learn(fitted, store, ones, 0, sigma))
    naive_s *= asked.epochs / few
    apart = max(float(np.abs(np.stack(a.raw) - b.numpy()).max()) for a, b in zip(ours, theirs, strict=True))
    result = {
        "contexts": asked.contexts, "layers": asked.layers, "experts": asked.experts, "epochs": asked.epochs,
        "naive_epochs_timed": few, "surrogate_seconds": fit_s, "surrogate_naive_seconds": naive_fit_s,
        "matrix_seconds": learn_s, "matrix_naive_seconds": naive_s, "seconds": fit_s + learn_s,
        "ratio": (naive_fit_s + naive_s) / (fit_s + learn_s), "asked_seconds": ASKED_SECONDS, "peak_gb": peak_gb(),
        "accuracy": fitted.report.accuracy, "turned": [m.turned for m in matrices], "largest_difference": apart,
    }  # fmt: skip
    print(
        f"{asked.contexts:,} contexts of 8 to 14 tokens, {asked.layers} layers x {asked.experts} experts, "
        f"{len(method.lambdas)} lambdas, {asked.epochs} epochs; naive matrices timed over {few} of them\n"
    )
    print(f"{'':<24} {'fast, s':>9} {'naive, s':>9} {'ratio':>7}")
    for name, fast, slow in (
        (f"surrogate, {surrogate.epochs} epochs", fit_s, naive_fit_s),
        (f"{len(method.lambdas)} matrices", learn_s, naive_s),
        ("together", fit_s + learn_s, naive_fit_s + naive_s),
    ):
        print(f"{name:<24} {fast:>9.1f} {slow:>9.1f} {slow / fast:>6.1f}x")
    print(
        f"\nasked: together below {ASKED_SECONDS:g} s; largest difference of an entry of S after {few} epochs: "
        f"{apart:.1e}; held-out accuracy {fitted.report.accuracy:.3f}; turned {[m.turned for m in matrices]}"
    )
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
