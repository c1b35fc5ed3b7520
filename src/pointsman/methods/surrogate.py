"""The surrogate: a small LSTM that tells from the router logits of the last user message what the model will do.

METHODS section 5.3; te Lintelo et al., MASCing, arXiv 2604.27818. For one context with logits r[l, t]::

    z[t] = concatenate over l of  Linear(LayerNorm(r[l, t]))      # E -> 16, shared by all layers of E experts
    f(r) = Linear(LSTM(z)[last token])                            # hidden 64; the log-odds of label 1

trained with binary cross-entropy. f is read at each context's own last token: none depends on what is beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import DataError, RunError, UsageError
from pointsman.methods.steps import ignore, stream
from pointsman.routing.store import Batch, Tokens, TraceStore, blocks_of
from pointsman.stats.auroc import Auroc
from pointsman.stats.calibration import Calibration
from pointsman.stats.rates import mean_by_cluster

SCHEMA = "pointsman.surrogate/1"
MICRO_BYTES = 32 << 20
"""Logits, as float32, that go through the network at once: bounds memory, changes no result."""

HELD_OUT = 5  # every fifth group

Dtype = Literal["float32", "float64"]
Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]


class Network(nn.Module):
    """f of METHODS section 5.3."""

    def __init__(self, experts: Sequence[int], width: int, hidden: int) -> None:
        """A network with random weights, drawn from torch's global stream (fork it).

        Args:
            experts: Number of experts of every MoE layer. Shape: [L].
            width: Outputs of the linear map of every layer.
            hidden: Of the LSTM.
        """
        super().__init__()
        self.experts = tuple(experts)
        self.width = width
        sizes = tuple(blocks_of(experts))
        self.norms = nn.ModuleList(nn.LayerNorm(e) for e in sizes)
        self.linears = nn.ModuleList(nn.Linear(e, width) for e in sizes)
        self.lstm = nn.LSTM(len(self.experts) * width, hidden)
        self.head = nn.Linear(hidden, 1)
        by_block = [layer for layers in blocks_of(experts).values() for layer in layers]
        self._in_depth = sorted(range(len(by_block)), key=by_block.__getitem__)

    def forward(self, blocks: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """The log-odds of label 1 of some contexts.

        Args:
            blocks: Their logits, see `Tokens`. Shapes: [N, layers with E, E].
            lengths: Tokens of each. Shape: [B].

        Returns:
            Shape: [B].
        """
        parts = [self.project(place, standardise(block, self.eps(place))) for place, block in enumerate(blocks)]
        return self.read(self.in_depth(parts)[:, None], lengths)[:, 0]

    def eps(self, block: int) -> float:
        """What the LayerNorm of a block adds to the variance."""
        return float(self.norms[block].eps)  # type: ignore[arg-type]

    def map(self, block: int) -> tuple[Tensor, Tensor]:
        """Weight [width, E] and bias [width] of LayerNorm's scale and shift and the linear map, as one linear map."""
        norm, linear = self.norms[block], self.linears[block]
        weight: Tensor = linear.weight  # type: ignore[assignment]
        return weight * norm.weight, linear.bias + weight @ norm.bias  # type: ignore[operator]

    def project(self, block: int, standard: Tensor) -> Tensor:
        """Standardised logits [..., E] to [..., width]."""
        return functional.linear(standard, *self.map(block))

    def in_depth(self, parts: Sequence[Tensor]) -> Tensor:
        """Projections of all blocks, shapes [..., layers of the block, width], joined: [..., L * width]."""
        if len(parts) == 1:
            return parts[0].flatten(-2)
        return torch.cat(list(parts), dim=-2)[..., self._in_depth, :].flatten(-2)

    def read(self, z: Tensor, lengths: Tensor) -> Tensor:
        """Log-odds of the LSTM at each context's last token. What lies after it in the padded batch reaches nothing.

        Args:
            z: Projections of S variants of the same tokens. Shape: [N, S, L * width].
            lengths: Tokens of each context, at least 1. Shape: [B].

        Returns:
            Shape: [B, S].
        """
        count, variants, longest = len(lengths), z.shape[1], int(lengths.max())
        row = torch.repeat_interleave(torch.arange(count), lengths)  # shape: [N]
        time = torch.arange(len(z)) - (torch.cumsum(lengths, 0) - lengths)[row]
        room = z.new_zeros(longest * count, variants, z.shape[2]).index_copy(0, time * count + row, z)
        out, _ = self.lstm(room.view(longest, count * variants, -1))
        last = out.view(longest, count, variants, -1)[lengths - 1, torch.arange(count)]  # shape: [B, S, hidden]
        odds: Tensor = self.head(last)
        return odds[..., 0]


def standardise(logits: Tensor, eps: float) -> Tensor:
    """(r - mean) / sqrt(variance + eps) over the experts, as in LayerNorm. Shape: [..., E]."""
    return functional.layer_norm(logits, logits.shape[-1:], eps=eps)


# ---------------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class SurrogateReport:
    """How good a surrogate is on the contexts it was not trained on.

    Attributes:
        accuracy: Share of held-out contexts on the right side of 1/2.
        majority: The accuracy of always saying the more frequent label there.
        auroc: With an interval clustered by group.
        calibration: Of its probabilities.
        n_train, n_held_out: Contexts.
        losses: Mean binary cross-entropy of the training contexts in each epoch, in nats, as it was trained.
    """

    accuracy: float
    majority: float
    auroc: Auroc
    calibration: Calibration
    n_train: int
    n_held_out: int
    losses: tuple[float, ...]

    @staticmethod
    def from_json(data: dict[str, Any]) -> SurrogateReport:
        """The inverse of `dataclasses.asdict`."""
        return SurrogateReport(
            float(data["accuracy"]),
            float(data["majority"]),
            Auroc.from_json(data["auroc"]),
            Calibration.from_json(data["calibration"]),
            int(data["n_train"]),
            int(data["n_held_out"]),
            tuple(map(float, data["losses"])),
        )


@dataclass(frozen=True)
class FittedSurrogate:
    """A trained surrogate, frozen: in eval mode, its weights take no gradient.

    Attributes:
        network: f.
        parameters: What it was trained with.
        report: How good it is.
    """

    network: Network
    parameters: Surrogate
    report: SurrogateReport

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)
        self.network.zero_grad(set_to_none=True)

    @property
    def experts(self) -> tuple[int, ...]:
        """Number of experts of every MoE layer. Shape: [L]."""
        return self.network.experts

    def probability(self, batch: Batch | Tokens) -> Floats:
        """Probability of label 1 of every context. Shape: [B]."""
        return _probability(self.network, batch.tokens() if isinstance(batch, Batch) else batch)

    def probabilities(self, store: TraceStore, indices: Sequence[int] | npt.NDArray[np.int64] | None = None) -> Floats:
        """Probability of label 1 of some contexts of a store (None: all), in bounded memory. Shape: [B].

        Raises:
            DataError: The traces are of another model.
        """
        self.check(store)
        return _probabilities(self.network, store, np.arange(len(store)) if indices is None else indices)

    def check(self, store: TraceStore) -> None:
        """Raise DataError unless the traces have the layers and experts that this surrogate knows."""
        if store.experts != self.experts:
            raise DataError(
                f"The traces in {store.folder} have {len(store.experts)} layers of {_span(store.experts)} experts, "
                f"the surrogate knows {len(self.experts)} of {_span(self.experts)}",
                "Use traces of the model that the surrogate was trained for",
            )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the weights, and in its metadata the parameters and the report."""
        from safetensors.torch import save_file

        about = {
            "schema": SCHEMA,
            "experts": self.experts,
            "parameters": asdict(self.parameters),
            "report": asdict(self.report),
        }
        tensors = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        target = Path(path)
        try:
            save_file(tensors, target, metadata={"pointsman": json.dumps(about, allow_nan=False)})
        except OSError as error:
            raise RunError(f"{target} cannot be written: {error}", "Check space and permissions there") from None
        return target

    @staticmethod
    def load(path: str | Path) -> FittedSurrogate:
        """Read what `save` wrote.

        Raises:
            RunError: The file is missing, damaged, or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {})["pointsman"])
                if about["schema"] != SCHEMA:
                    raise ValueError(f"schema {about['schema']!r}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            parameters = Surrogate(**about["parameters"])
            network = parameters.network(tuple(map(int, about["experts"])))
            wanted = {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
            if {name: (value.shape, value.dtype) for name, value in tensors.items()} != wanted:
                raise ValueError("weights that do not fit together")
            if not all(bool(value.isfinite().all()) for value in tensors.values()):
                raise ValueError("weights that are not finite")
            network.load_state_dict(tensors)
            report = SurrogateReport.from_json(about["report"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
            raise RunError(f"{path} is not a whole surrogate ({error})", "Fit it again and save it") from None
        return FittedSurrogate(network, parameters, report)


def _probability(network: Network, tokens: Tokens) -> Floats:
    """Probability of label 1 of every context. Shape: [B]."""
    if not len(tokens.lengths):
        return np.zeros(0)
    with torch.no_grad():
        odds = network(*_tensors(tokens, network.head.weight.dtype))
    return np.asarray(torch.sigmoid(odds.to(torch.float64)).numpy())


def _tensors(tokens: Tokens, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Blocks and lengths, for `Network`."""
    return [torch.from_numpy(block).to(dtype) for block in tokens.blocks], torch.from_numpy(tokens.lengths)


def _probabilities(network: Network, store: TraceStore, indices: Sequence[int] | npt.NDArray[Any]) -> Floats:
    parts = [_probability(network, store.tokens(chunk)) for chunk in store.chunks(indices, MICRO_BYTES)]
    return np.concatenate(parts) if parts else np.zeros(0)


# ---------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Surrogate:
    """Fit a surrogate; the defaults are the paper's.

    Attributes:
        width: Outputs of the linear map of every layer.
        hidden: Of the LSTM.
        epochs: Passes over the training contexts.
        batch: Contexts in one step of Adam.
        lr: Its learning rate.
        seed: Of weights, order and held-out groups.
        dtype: Of weights and arithmetic.
    """

    width: int = 16
    hidden: int = 64
    epochs: int = 15
    batch: int = 512
    lr: float = 0.01
    seed: int = 0
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"A surrogate with {name} {getattr(self, name)}", "Use at least 1")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"A learning rate of {self.lr}", "Use a positive number, the paper uses 0.01")
        if self.dtype not in ("float32", "float64"):
            raise UsageError(f"A surrogate in {self.dtype!r}", "Use float32 or float64")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype`, as torch names it."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def network(self, experts: Sequence[int]) -> Network:
        """A network with the random weights that `seed` gives; torch's global stream is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Network(experts, self.width, self.hidden).to(self.torch_dtype)

    def fit(
        self, store: TraceStore, labels: Sequence[int], *, groups: Sequence[str], progress: Progress = ignore
    ) -> FittedSurrogate:
        """Train on four fifths of the groups, and report on the others.

        Args:
            store: Traces of N contexts.
            labels: 1 where the model did what is to be changed, else 0. Shape: [N].
            groups: Source question of each context: all contexts of one are on one side. Shape: [N].
            progress: Told of every epoch done.

        Raises:
            DataError: There are too few contexts, or the arguments do not fit together.
        """
        if not len(store) == len(labels) == len(groups):
            raise DataError(
                f"{len(store)} traces, {len(labels)} labels and {len(groups)} groups", "Give one of each per context"
            )
        train, held_out = split(labels, groups, self.seed)
        label = np.asarray(labels, dtype=np.int64)
        target = torch.from_numpy(label).to(self.torch_dtype)
        network = self.network(store.experts)
        losses = self._train(network, store, train, target, progress)
        p = _probabilities(network, store, held_out)
        here = label[held_out]
        report = SurrogateReport(
            accuracy=float(((p >= 0.5) == here).mean()),
            majority=float(max(here.mean(), 1 - here.mean())),
            auroc=Auroc.of(p, here.tolist(), [groups[i] for i in held_out], self.seed),
            calibration=Calibration.of(p, here),
            n_train=len(train),
            n_held_out=len(held_out),
            losses=tuple(losses),
        )
        return FittedSurrogate(network, self, report)

    def _train(
        self, network: Network, store: TraceStore, train: npt.NDArray[np.int64], target: Tensor, progress: Progress
    ) -> list[float]:
        """Mean loss of every epoch. A step's gradient is summed over pieces of bounded size. target: shape [N]."""
        adam = torch.optim.Adam(network.parameters(), lr=self.lr)
        generator = torch.Generator().manual_seed(self.seed)
        losses = []
        for _ in range(self.epochs):
            order = train[torch.randperm(len(train), generator=generator).numpy()]
            summed = 0.0
            for start in range(0, len(order), self.batch):
                rows = order[start : start + self.batch]
                adam.zero_grad(set_to_none=True)
                for piece in store.chunks(rows, MICRO_BYTES):
                    odds = network(*_tensors(store.tokens(piece), self.torch_dtype))
                    wanted = target[torch.from_numpy(piece)]
                    loss = functional.binary_cross_entropy_with_logits(odds, wanted, reduction="sum")
                    (loss / len(rows)).backward()  # type: ignore[no-untyped-call]
                    summed += float(loss.detach())
                adam.step()
            losses.append(summed / len(order))
            progress(1)
        if not all(map(math.isfinite, losses)):
            raise UsageError(f"The surrogate diverged with a learning rate of {self.lr}", "Use a smaller one")
        return losses


def split(
    labels: Sequence[int], groups: Sequence[str], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Contexts to train on (four fifths of the groups) and held-out ones, both ascending.

    Groups that hold label 0, label 1 and both are each drawn alike, so that no side lacks a label by chance.

    Raises:
        DataError: A label is neither 0 nor 1; or a side would have fewer than two groups, or one label only.
    """
    label = np.asarray(labels)
    if len(label) != len(groups) or not np.isin(label, (0, 1)).all():
        raise DataError("Labels of contexts that are not 0 or 1, one for each", "Label every context 0 or 1")
    held: dict[str, set[int]] = {}
    for group, own in zip(groups, label.tolist(), strict=True):
        held.setdefault(group, set()).add(int(own))
    drawn = {group: float(stream(seed, "surrogate", group).random()) for group in held}
    order = sorted(held, key=lambda group: (sorted(held[group]), drawn[group], group))
    away = set(order[HELD_OUT // 2 :: HELD_OUT])
    aside = np.array([group in away for group in groups], dtype=bool)
    sides = (np.flatnonzero(~aside), np.flatnonzero(aside))
    for side in sides:
        if len({groups[i] for i in side.tolist()}) < 2 or len(np.unique(label[side])) < 2:
            ones = int(label.sum())
            raise DataError(
                f"Too few contexts to train a surrogate and to test it: {ones} of label 1 and {len(label) - ones} of "
                f"label 0, from {len(held)} source questions",
                "Give more source questions, of which some fall and some do not",
            )
    return sides


# ---------------------------------------------------------------------- controls


@dataclass(frozen=True)
class LengthOnly:
    """What length alone tells.

    Attributes:
        feature: The one that fits the training side better: ``turns`` or ``tokens``.
        auroc: Of the classifier from it, on the held-out side.
        accuracy: Likewise.
    """

    feature: str
    auroc: Auroc
    accuracy: float


def length_only(
    lengths_turns: Sequence[Sequence[int]] | npt.NDArray[Any],
    labels: Sequence[int],
    groups: Sequence[str],
    seed: int,
) -> LengthOnly:
    """The control of METHODS section 5 for label leakage: a logistic regression on one length, turns or tokens.

    Args:
        lengths_turns: Turns and tokens of every context. Shape: [N, 2].
        labels, groups, seed: As for `Surrogate`: the same contexts are held out.

    Raises:
        DataError: As `split`, or not two lengths for each context.
    """
    lengths = np.asarray(lengths_turns, dtype=np.float64)
    if lengths.shape != (len(labels), 2):
        raise DataError(f"Lengths of the shape {lengths.shape}", "Give turns and tokens of every context")
    train, held_out = split(labels, groups, seed)
    label = np.asarray(labels, dtype=np.float64)
    best: tuple[float, str, Floats] | None = None
    for column, name in enumerate(("turns", "tokens")):
        x = lengths[:, column]
        x = (x - x[train].mean()) / (float(x[train].std()) or 1.0)
        design = np.stack([np.ones_like(x), x], axis=1)  # shape: [N, 2]
        odds = design @ _logistic(design[train], label[train])
        loss = float(np.logaddexp(0.0, np.where(label[train] == 1, -1, 1) * odds[train]).mean())
        if best is None or loss < best[0]:
            best = (loss, name, odds)
    assert best is not None
    _, name, odds = best
    here = label[held_out]
    found = Auroc.of(odds[held_out], here.astype(int).tolist(), [groups[i] for i in held_out], seed)
    return LengthOnly(name, found, float(((odds[held_out] >= 0) == here).mean()))


def _logistic(design: Floats, label: Floats, ridge: float = 1e-3) -> Floats:
    """Logistic regression by Newton's method, lightly ridged: separable data have an answer too. Shape: [features]."""
    weights = np.zeros(design.shape[1])

    def value(at: Floats) -> float:
        return float(np.logaddexp(0.0, np.where(label == 1, -1, 1) * (design @ at)).sum() + ridge / 2 * at @ at)

    for _ in range(100):
        p = expit(design @ weights)
        slope = design.T @ (p - label) + ridge * weights
        curve = (design * (p * (1 - p))[:, None]).T @ design + ridge * np.eye(design.shape[1])
        step = np.linalg.solve(curve, slope)
        size = 1.0
        while value(weights - size * step) > value(weights) and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if float(np.abs(size * step).max()) < 1e-10:
            break
    return weights


@dataclass(frozen=True)
class Matched:
    """How well a surrogate tells matched pairs apart.

    Attributes:
        auroc: Over both contexts of every pair (a context counts once for each pair it is in). None with no pairs.
        accuracy: Share of pairs in which the fallen context scores higher; a tie counts half. None with no pairs.
        low, high: 95 % interval of `accuracy`, clustered by group.
        pairs: Pairs.
    """

    auroc: Auroc | None
    accuracy: float | None
    low: float
    high: float
    pairs: int


def matched(
    surrogate: FittedSurrogate,
    store: TraceStore,
    pairs: Iterable[tuple[int, int]],
    *,
    groups: Sequence[str],
    seed: int = 0,
) -> Matched:
    """Score the surrogate on pairs of one source question, number of turns and tactic, and opposite outcome.

    Args:
        surrogate: The surrogate; it should not have been trained on these contexts (see `split`).
        store: Their traces.
        pairs: (fallen context, refused context), as numbers in the store.
        groups: Source question of every context of the store. Shape: [N].
        seed: Of the bootstrap.
    """
    index = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)  # shape: [pairs, 2]
    if len(groups) != len(store):
        raise DataError(f"{len(store)} traces and {len(groups)} groups", "Give one group per context")
    if not len(index):
        return Matched(None, None, 0.0, 1.0, 0)
    asked, place = np.unique(index, return_inverse=True)
    score = surrogate.probabilities(store, asked)[place.reshape(index.shape)]  # shape: [pairs, 2]
    difference = score[:, 0] - score[:, 1]
    wins = (difference > 0) + 0.5 * (difference == 0)
    of_pair = [groups[fallen] for fallen, _ in index.tolist()]
    mean, low, high = mean_by_cluster(wins, of_pair, seed)
    labels = [1] * len(index) + [0] * len(index)
    found = Auroc.of(score.T.reshape(-1), labels, [*of_pair, *(groups[refused] for _, refused in index.tolist())], seed)
    return Matched(found, mean, low, high, len(index))


def _span(experts: Sequence[int]) -> str:
    """``32``, or ``8 to 64``."""
    low, high = min(experts), max(experts)
    return str(low) if low == high else f"{low} to {high}"
