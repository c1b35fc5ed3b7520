"""The steering matrix: what to add to the router logits so that the surrogate's verdict turns.

METHODS section 5.4; te Lintelo et al., MASCing, arXiv 2604.27818. With the surrogate f frozen, minimise over
S in R^{L x E}, in units of sigma::

    mean_i BCE(f(r_i + sigma * S), c) + lambda * norm1(S)

over the contexts i that are to be turned, c the wanted class; then set entries with abs(S) <= 0.1 to zero. What is
left is the expert circuit.

Why this is fast, and exact: with r~ = r - mean(r) and v~ likewise for v = sigma * S (means over experts),

    Linear(LayerNorm(r + v)) = (W' r~ + W' v~) / sqrt((|r~|^2 + 2 r~.v~ + |v~|^2) / E + eps) + b'

so all that is large is computed once for all steps but r~.v~, one matrix product for all lambdas. Adam works entry by
entry, so the matrices of all lambdas side by side are those found one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import DataError, RunError, UsageError
from pointsman.methods.steps import ignore
from pointsman.methods.surrogate import MICRO_BYTES, FittedSurrogate, Network, Progress
from pointsman.routing.store import Tokens, TraceStore, blocks_of, runs

BUDGET_BYTES = 256 << 20
"""Contexts up to this size, as float32, are kept in memory; more are read again in every step."""

LAMBDAS = (0.0, 1e-5, 1e-4, 1e-3)

Init = Literal["zero", "paper"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """A steering matrix, in units of sigma.

    Attributes:
        values: What is left after the cut. Shapes: [E_l], one for each MoE layer, float64.
        raw: What was found. Shapes: likewise.
        lambda_: The weight of norm1(S).
        losses: Mean of the objective over the contexts in each epoch, as it was minimised, in nats.
        unsteered: Share of the contexts whose surrogate verdict is the wanted one without any S.
        turned_raw: The same share under `raw`.
        turned: The same share under `values`.
    """

    values: tuple[Floats, ...]
    raw: tuple[Floats, ...]
    lambda_: float
    losses: tuple[float, ...]
    unsteered: float
    turned_raw: float
    turned: float

    @property
    def norm1(self) -> float:
        """Sum of the absolute values after the cut, in units of sigma."""
        return float(sum(np.abs(row).sum() for row in self.values))

    @property
    def circuit(self) -> list[tuple[int, int, float]]:
        """The entries that are left, see `circuit`."""
        return circuit(self.values)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "lambda": self.lambda_,
            "values": [row.tolist() for row in self.values],
            "raw": [row.tolist() for row in self.raw],
            "losses": list(self.losses),
            "unsteered": self.unsteered,
            "turned_raw": self.turned_raw,
            "turned": self.turned,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Matrix:
        """The inverse of `to_json`.

        Raises:
            RunError: It is not a matrix.
        """
        try:
            values, raw = (tuple(np.array(row, dtype=np.float64) for row in data[key]) for key in ("values", "raw"))
            if not values or [v.shape for v in values] != [r.shape for r in raw] or any(v.ndim != 1 for v in values):
                raise ValueError("rows that do not fit together")
            if not all(np.isfinite(row).all() for row in (*values, *raw)):
                raise ValueError("entries that are not finite")
            return Matrix(
                values,
                raw,
                float(data["lambda"]),
                tuple(map(float, data["losses"])),
                float(data["unsteered"]),
                float(data["turned_raw"]),
                float(data["turned"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"This is not a steering matrix ({error})", "Learn it again") from None


def circuit(values: Sequence[npt.NDArray[Any]]) -> list[tuple[int, int, float]]:
    """The expert circuit: (layer, expert, value) of all entries that are not zero, largest first.

    Args:
        values: Shapes: [E_l], one for each MoE layer.
    """
    entries = [
        (layer, int(expert), float(row[expert])) for layer, row in enumerate(values) for expert in np.flatnonzero(row)
    ]
    return sorted(entries, key=lambda entry: (-abs(entry[2]), entry[0], entry[1]))


def jaccard(a: Sequence[npt.NDArray[Any]], b: Sequence[npt.NDArray[Any]]) -> float:
    """Overlap of two circuits: entries with the same layer, expert and sign in both, over entries in either.

    1 if both are empty.
    """
    left, right = ({(layer, e, value > 0) for layer, e, value in circuit(m)} for m in (a, b))
    return len(left & right) / len(left | right) if left or right else 1.0


@dataclass(frozen=True)
class SteeringMatrix:
    """Learn steering matrices on a surrogate; the defaults are the paper's, but for `init`.

    Attributes:
        lambdas: Weights of norm1(S), each giving one matrix.
        lr: Learning rate of Adam.
        epochs: Passes over the contexts.
        batch: Contexts in one step.
        cut: Entries of at most this size become zero, in units of sigma.
        init: ``zero``; or ``paper``, the same for every lambda: `torch.nn.init.kaiming_uniform_` as the paper's code
            calls it, with no argument but the tensor. Of a tensor [L, E] the fan-in is E and, with torch's own default
            a = 0, the gain sqrt(2): uniform within sqrt(6 / E), so .87 for 8 experts and .22 for 128, where linear
            layers (a = sqrt(5)) would start within 1 / sqrt(E). More than half of it lies beyond the cut of .1 in
            either case, so most of a circuit that begins like this may be noise that nothing moved back.
        seed: Of the order of the contexts, the same for every lambda, and of `init`.
    """

    lambdas: tuple[float, ...] = LAMBDAS
    lr: float = 0.05
    epochs: int = 100
    batch: int = 16
    cut: float = 0.1
    init: Init = "zero"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lambdas or not all(0 <= value < math.inf for value in self.lambdas):
            raise UsageError(f"The lambdas {self.lambdas}", "Give at least one, each 0 or more")
        if self.epochs < 1 or self.batch < 1:
            raise UsageError(f"{self.epochs} epochs in batches of {self.batch}", "Use at least 1 of each")
        if not 0 < self.lr < math.inf or not 0 <= self.cut < math.inf:
            raise UsageError(f"A learning rate of {self.lr} and a cut of {self.cut}", "The paper uses 0.05 and 0.1")
        if self.init not in ("zero", "paper"):
            raise UsageError(f"The unknown start {self.init!r} of a steering matrix", "Use zero or paper")

    def learn(
        self,
        surrogate: FittedSurrogate,
        store: TraceStore,
        indices: Sequence[int] | npt.NDArray[np.int64],
        wanted: int,
        sigma: Sequence[float] | Floats,
        *,
        start: Sequence[npt.NDArray[Any]] | None = None,
        guarded: Sequence[int] | npt.NDArray[np.int64] = (),
        progress: Progress = ignore,
    ) -> list[Matrix]:
        """One matrix for every lambda.

        Args:
            surrogate: f, frozen.
            store: Traces of the model that it was trained for.
            indices: The contexts to turn: those of label 1 of the discovery split.
            wanted: c, the class that they shall get: 0 or 1.
            sigma: Standard deviation of every layer's logits, see `TraceStore.stds`. Shape: [L].
            start: S to begin with, for every lambda, in place of `init`. Shapes: [E_l].
            guarded: Contexts that shall keep the other class (a generation scenario's other restricted requests): as
                many as in a batch join every step with a term mean_j BCE(f(r_j + sigma * S), 1 - c) of their own.
            progress: Told of every epoch done.

        Raises:
            DataError: There are no contexts, the traces are of another model, or `sigma` is not one finite number a
                layer.
            UsageError: `wanted` is no class, or the learning rate is too large.
        """
        surrogate.check(store)
        scale = np.asarray(sigma, dtype=np.float64)
        if scale.shape != (len(store.experts),) or not np.isfinite(scale).all() or (scale < 0).any():
            raise DataError(
                f"sigma is not one finite, positive number for each of {len(store.experts)} layers",
                "Take it from the traces",
            )
        if wanted not in (0, 1):
            raise UsageError(f"There is no class {wanted!r} to steer to", "Use 0 or 1")
        if not len(indices):
            raise DataError("There are too few contexts: none to turn", "Give at least one context of label 1")
        steered = _Steered(surrogate.network, scale)
        contexts = _Contexts(steered, store, store.checked(indices))
        others = _Contexts(steered, store, store.checked(guarded)) if len(guarded) else None
        matrices = self._start(surrogate.network, start)
        losses = self._descend(contexts, others, matrices, float(wanted), progress)
        raw = [m.detach() for m in matrices]
        if not all(bool(m.isfinite().all()) for m in raw) or not np.isfinite(losses).all():
            raise UsageError(f"The steering matrix diverged with a learning rate of {self.lr}", "Use a smaller one")
        cut = [m.masked_fill(m.abs() <= self.cut, 0.0) for m in raw]
        (unsteered,) = contexts.turned([torch.zeros_like(m[:1]) for m in raw], wanted)
        turned_raw, turned = contexts.turned(raw, wanted), contexts.turned(cut, wanted)
        return [
            Matrix(
                values=_rows(cut, n, store.experts),
                raw=_rows(raw, n, store.experts),
                lambda_=float(lambda_),
                losses=tuple(losses[:, n].tolist()),
                unsteered=unsteered,
                turned_raw=turned_raw[n],
                turned=turned[n],
            )
            for n, lambda_ in enumerate(self.lambdas)
        ]

    def _start(self, network: Network, given: Sequence[npt.NDArray[Any]] | None) -> list[nn.Parameter]:
        """S of every lambda before the first step, for each block of layers. Shapes: [lambdas, layers with E, E]."""
        generator = torch.Generator().manual_seed(self.seed)
        matrices = []
        for e, layers in blocks_of(network.experts).items():
            start = torch.zeros(len(layers), e, dtype=network.head.weight.dtype)
            if given is not None:
                start = torch.from_numpy(np.stack([given[layer] for layer in layers])).to(start.dtype)
            elif self.init == "paper":
                nn.init.kaiming_uniform_(start, generator=generator)  # within sqrt(6 / E)
            matrices.append(nn.Parameter(start.repeat(len(self.lambdas), 1, 1)))
        return matrices

    def _descend(
        self,
        contexts: _Contexts,
        guarded: _Contexts | None,
        matrices: Sequence[nn.Parameter],
        wanted: float,
        progress: Progress,
    ) -> Floats:
        """Minimise over `matrices`, in place. Returns the mean objective in each epoch. Shape: [epochs, lambdas]."""
        adam = torch.optim.Adam(matrices, lr=self.lr)
        generator = torch.Generator().manual_seed(self.seed)
        beside = torch.Generator().manual_seed(self.seed + 1)
        lambdas = torch.tensor(self.lambdas, dtype=matrices[0].dtype)
        losses = []
        for _ in range(self.epochs):
            order = torch.randperm(len(contexts), generator=generator)
            summed = torch.zeros(len(self.lambdas), dtype=torch.float64)
            for start in range(0, len(order), self.batch):
                rows = order[start : start + self.batch]
                adam.zero_grad(set_to_none=True)
                objective = lambdas * sum(m.abs().sum(dim=(1, 2)) for m in matrices)  # shape: [lambdas]
                objective.sum().backward()  # type: ignore[no-untyped-call]
                value = objective.detach() + _push(contexts, rows, matrices, wanted)
                if guarded is not None:
                    some = torch.randperm(len(guarded), generator=beside)[: self.batch]
                    value = value + _push(guarded, some, matrices, 1 - wanted)
                adam.step()
                summed += value.to(torch.float64) * len(rows)
            losses.append(summed.numpy() / len(order))
            progress(1)
        return np.stack(losses)


# ---------------------------------------------------------------------- the surrogate under S


@dataclass(frozen=True)
class _Known:
    """What does not change with S, for N tokens and the layers of one block.

    Attributes:
        centred: r~. Shape: [N, layers, E].
        projected: W' r~. Shape: [N, layers, width].
        square: |r~|^2. Shape: [N, layers].
    """

    centred: Tensor
    projected: Tensor
    square: Tensor

    def at(self, tokens: Tensor) -> _Known:
        """Some of the tokens."""
        return _Known(self.centred[tokens], self.projected[tokens], self.square[tokens])


class _Steered:
    """f(r + sigma * S) for many S at once; gradients reach S only."""

    def __init__(self, network: Network, sigma: Floats) -> None:
        """sigma: shape [L], in logit units."""
        self.network = network
        self.dtype = network.head.weight.dtype
        blocks = blocks_of(network.experts)
        with torch.no_grad():
            self._maps = [network.map(block) for block in range(len(blocks))]
        self._sigma = [torch.tensor(sigma[list(layers)], dtype=self.dtype)[:, None] for layers in blocks.values()]

    def known(self, tokens: Tokens) -> list[_Known]:
        """What can be computed before S is known, for every block."""
        found = []
        for logits, (weight, _) in zip(tokens.blocks, self._maps, strict=True):
            block = torch.from_numpy(logits).to(self.dtype)
            centred = block - block.mean(dim=-1, keepdim=True)
            found.append(_Known(centred, functional.linear(centred, weight), centred.square().sum(dim=-1)))
        return found

    def odds(self, known: Sequence[_Known], lengths: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """Log-odds of label 1.

        Args:
            known: Of N tokens, context after context, for each block.
            lengths: Tokens of each context. Shape: [B].
            matrices: S for each block. Shapes: [S, layers with E, E].

        Returns:
            Shape: [B, S].
        """
        parts = []
        for place, (this, s) in enumerate(zip(known, matrices, strict=True)):
            weight, bias = self._maps[place]
            v = s * self._sigma[place]
            v = v - v.mean(dim=-1, keepdim=True)  # shape: [S, layers, E]
            cross = torch.bmm(this.centred.transpose(0, 1), v.permute(1, 2, 0)).permute(
                1, 2, 0
            )  # shape: [N, S, layers]
            square = this.square[:, None] + 2 * cross + v.square().sum(dim=-1)
            variance = square.clamp(min=0) / s.shape[-1]
            scale = torch.rsqrt(variance + self.network.eps(place))
            moved = this.projected[:, None] + functional.linear(v, weight)  # shape: [N, S, layers, width]
            parts.append(moved * scale[..., None] + bias)
        return self.network.read(self.network.in_depth(parts), lengths)


class _Contexts:
    """The contexts to turn: in memory if they fit into the budget, else read when needed."""

    def __init__(self, steered: _Steered, store: TraceStore, indices: npt.NDArray[np.int64]) -> None:
        self._steered, self._store, self._indices = steered, store, indices
        self._lengths = torch.from_numpy(store.lengths[indices])
        self._begins = torch.cumsum(self._lengths, 0) - self._lengths
        item = torch.finfo(steered.dtype).bits // 8
        layers, width = len(store.experts), steered.network.width
        self._token_bytes = (sum(store.experts) + layers * (width + 1)) * item  # of what is known of one
        self._row_bytes = layers * width * item  # of what one token becomes under one S
        self._kept: list[_Known] | None = None
        if int(self._lengths.sum()) * self._token_bytes <= BUDGET_BYTES:
            parts = [steered.known(store.tokens(chunk)) for chunk in store.chunks(indices)]
            self._kept = [
                _Known(
                    *(torch.cat([getattr(p, name) for p in of_block]) for name in ("centred", "projected", "square"))
                )
                for of_block in zip(*parts, strict=True)
            ]

    def __len__(self) -> int:
        return len(self._indices)

    def odds(self, rows: Tensor, matrices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Log-odds of label 1 of some contexts, in pieces of bounded memory. Shapes: [piece, S]."""
        bytes_each = self._token_bytes + self._row_bytes * matrices[0].shape[0]
        for begin, end in runs((self._lengths[rows] * bytes_each).numpy(), MICRO_BYTES):
            piece = rows[begin:end]
            lengths = self._lengths[piece]
            if self._kept is None:
                known = self._steered.known(self._store.tokens(self._indices[piece.numpy()]))
            else:
                moved = self._begins[piece] - (torch.cumsum(lengths, 0) - lengths)  # from here to where it is kept
                at = torch.arange(int(lengths.sum())) + torch.repeat_interleave(moved, lengths)  # shape: [N]
                known = [kept.at(at) for kept in self._kept]
            yield self._steered.odds(known, lengths, matrices)

    def turned(self, matrices: Sequence[Tensor], wanted: int) -> list[float]:
        """Share of the contexts whose verdict under each S is `wanted`. Shape: [S]."""
        with torch.no_grad():
            counts = [((odds >= 0) == bool(wanted)).sum(dim=0) for odds in self.odds(torch.arange(len(self)), matrices)]
        return [int(count) / len(self) for count in torch.stack(counts).sum(dim=0)]


def _push(contexts: _Contexts, rows: Tensor, matrices: Sequence[Tensor], wanted: float) -> Tensor:
    """Mean BCE of some contexts under each S, with its gradient added to that of S. Shape: [S]."""
    value = torch.zeros(matrices[0].shape[0], dtype=matrices[0].dtype)
    for odds in contexts.odds(rows, matrices):
        aim = torch.full_like(odds, wanted)
        each = functional.binary_cross_entropy_with_logits(odds, aim, reduction="none")
        share = each.sum(dim=0) / len(rows)  # shape: [S]
        share.sum().backward()  # type: ignore[no-untyped-call]
        value += share.detach()
    return value


def _rows(blocks: Sequence[Tensor], n: int, experts: Sequence[int]) -> tuple[Floats, ...]:
    """The n-th matrix as one row a layer, in depth order. Shapes: [E_l]."""
    rows: dict[int, Floats] = {}
    for block, layers in zip(blocks, blocks_of(experts).values(), strict=True):
        rows.update(zip(layers, block[n].to(torch.float64).numpy(), strict=True))
    return tuple(rows[layer].copy() for layer in range(len(experts)))
