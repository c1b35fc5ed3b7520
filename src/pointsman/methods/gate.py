"""The gate: tells from the router logits of the last user message whether a request is one that a mask is for.

METHODS section 5, gated steering. With z[t] the standardised raw logits of all MoE layers at token t of the message,
concatenated, the score of a request is::

    mean      w . mean over t of z[t] + b
    linear    max over t of  w . z[t] + b
    mlp       mean over starts of  max over t of  v . relu(W z[t] + c) + b

Each is learnt on discovery with binary cross-entropy, both labels weighing alike. The one with the largest AUROC on
validation is kept, and its threshold flags no more than a stated share of validation's label 0. The score of a request
is computed from its own tokens alone, so neither batch nor padding can change it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pointsman.errors import BadLogits, DataError, InterventionError, RunError, UsageError, WrongModel
from pointsman.methods.steps import ignore
from pointsman.methods.surrogate import Progress
from pointsman.routing.routers import Router
from pointsman.routing.store import CHUNK_BYTES, Tokens, TraceStore
from pointsman.stats.auroc import Auroc
from pointsman.stats.bounds import most_lost, rows_needed
from pointsman.stats.rates import Rate

SCHEMA = "pointsman.gate/1"
HELD_BYTES = 1 << 30
"""Standardised logits of discovery that are held while a gate learns; more are read anew in every epoch."""
CONFIDENCE = 0.95

Variant = Literal["mean", "linear", "mlp"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)  # the simplest first: it is kept where all tell equally well
Weights = Mapping[str, Tensor]
Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
Contexts = TraceStore | Sequence[Sequence[Logits]]
"""Raw router logits of last user messages: as they were kept, or of each request one array [T, E_l] a MoE layer."""

_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class LabelledTraces:
    """Requests that a gate is learnt from, or measured on.

    Attributes:
        store: Raw router logits of their last user messages, before any intervention. N contexts.
        labels: 1 for the requests that the mask is for, 0 for all that must run untouched. Shape: [N].
        sources: Source question of each. Shape: [N].
        kinds: What each is (benign, borderline, ...): false alarms are told of each kind. Shape: [N], or empty.

    Raises:
        DataError: They do not fit together, or a label is missing.
    """

    store: TraceStore
    labels: Sequence[int]
    sources: Sequence[str]
    kinds: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not len(self.store) == len(self.labels) == len(self.sources):
            raise DataError(
                f"{len(self.store)} traces, {len(self.labels)} labels and {len(self.sources)} source questions",
                "Give one of each per request",
            )
        if self.kinds and len(self.kinds) != len(self.labels):
            raise DataError(f"{len(self.kinds)} kinds of {len(self.labels)} requests", "Give one per request, or none")
        if set(self.labels) != {0, 1}:
            raise DataError(
                f"A gate for requests with the labels {sorted(set(self.labels))}",
                "Give requests that the mask is for (label 1), and others that must run untouched (label 0)",
            )


# ---------------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Trial:
    """How one variant does on validation.

    Attributes:
        variant: Which.
        auroc: With an interval clustered by source question.
        threshold: Scores above it are flagged.
        detected: Requests of label 1 that it flags.
        false_alarms: Requests of label 0 that it flags.
        shown: Upper bound of the rate of false alarms that so many rows show, one-sided, with 95 % confidence.
        losses: Mean loss on discovery in the first and in the last epoch, in nats.
        by_kind: The false alarms of each kind: few of all may be many of one.
    """

    variant: Variant
    auroc: Auroc
    threshold: float
    detected: Rate
    false_alarms: Rate
    shown: float
    losses: tuple[float, float]
    by_kind: Mapping[str, Rate]

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Trial:
        """The inverse of `dataclasses.asdict`; KeyError, TypeError or ValueError if it is not one."""
        if data["variant"] not in VARIANTS:
            raise ValueError(f"a variant {data['variant']!r}")
        first, last = map(float, data["losses"])
        trial = Trial(
            data["variant"], Auroc.from_json(data["auroc"]), float(data["threshold"]), _rate(data["detected"]),
            _rate(data["false_alarms"]), float(data["shown"]), (first, last),
            {str(kind): _rate(rate) for kind, rate in data["by_kind"].items()},
        )  # fmt: skip
        if not all(map(math.isfinite, (trial.threshold, trial.shown, first, last))):
            raise ValueError("figures that are not finite")
        return trial


@dataclass(frozen=True, eq=False)
class FittedGate:
    """A gate that was learnt, for one model. A request is flagged if its score is above the threshold.

    Attributes:
        experts: Number of experts of every MoE layer. Shape: [L].
        fingerprint: Of the model that it is for.
        mean, std: Of each logit over discovery's tokens, frozen. Shapes: [F], F the sum of experts.
        weights: Of the variant that was chosen, see `shapes`; float32.
        chosen: How it does on validation.
        trials: How each variant does there, the chosen one among them.
        parameters: What it was learnt with.
    """

    experts: tuple[int, ...]
    fingerprint: str
    mean: Tensor
    std: Tensor
    weights: Weights
    chosen: Trial
    trials: tuple[Trial, ...]
    parameters: Gate

    @property
    def threshold(self) -> float:
        """Scores above it are flagged."""
        return self.chosen.threshold

    @cached_property
    def identity(self) -> str:
        """A hash of all that decides what it flags."""
        digest = hashlib.sha256(json.dumps([self.chosen.variant, self.experts, self.threshold]).encode())
        for name, value in sorted(self._tensors().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()[:16]

    def scores(self, contexts: Contexts) -> Floats:
        """Log-odds of label 1, of discovery's balanced labels. Shape: [B].

        Raises:
            DataError: They are of other layers or experts.
            BadLogits: A logit is not finite.
        """
        features = _features(contexts, self.experts)
        with torch.no_grad():
            return np.array([float(self._score((x - self.mean) / self.std)) for x in features], dtype=np.float64)

    def flags(self, contexts: Contexts) -> npt.NDArray[np.bool_]:
        """Which requests the mask is for. Shape: [B]. Raises as `scores` does."""
        return np.asarray(self.scores(contexts) > self.threshold)

    def check(self, routers: Sequence[Router], fingerprint: str) -> None:
        """Refuse a model that it was not learnt on.

        Raises:
            WrongModel: Another fingerprint.
            InterventionError: Other layers or experts.
        """
        if fingerprint != self.fingerprint:
            raise WrongModel(
                f"This gate is for {self.fingerprint}, and the model is {fingerprint}",
                "Load the model it was learnt on, or learn a gate on this one",
            )
        if self.experts != tuple(router.experts for router in routers):
            raise InterventionError(
                f"A gate for {len(self.experts)} layers, {sum(self.experts)} experts in all, and the model has "
                f"{len(routers)} and {sum(router.experts for router in routers)}",
                "Load the model it was learnt on, or learn a gate on this one",
            )

    def note(self) -> str:
        """What validation shows of it, and what so few rows cannot show: one sentence."""
        alarms, asked = self.chosen.false_alarms, self.parameters.false_alarms
        needed = rows_needed(asked, CONFIDENCE)
        few = (
            f"; that it is at most {asked:.2g} takes {needed} independent rows of which none is flagged"
            if needed is not None and self.chosen.shown > asked
            else ""
        )
        wanted = self.chosen.detected
        return (
            f"The gate ({self.chosen.variant}) flags {wanted.k} of {wanted.n} requests that the mask is for and "
            f"{alarms.k} of {alarms.n} others, from {alarms.clusters} source questions, on validation, on which its "
            f"threshold was set; the rate of false alarms that this shows is at most {self.chosen.shown:.2g} with "
            f"{CONFIDENCE:.0%} confidence{few}"
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the numbers, and in its metadata the rest as JSON.

        Raises:
            RunError: It cannot be written.
        """
        from safetensors.torch import save_file

        about = {
            "schema": SCHEMA,
            "experts": self.experts,
            "fingerprint": self.fingerprint,
            "chosen": self.chosen.variant,
            "trials": [asdict(trial) for trial in self.trials],
            "parameters": asdict(self.parameters),
        }
        target = Path(path)
        try:
            save_file(self._tensors(), target, metadata={"pointsman": json.dumps(about, allow_nan=False)})
        except OSError as error:
            raise RunError(f"{target} cannot be written: {error}", "Check space and permissions there") from None
        return target

    @staticmethod
    def load(path: str | Path) -> FittedGate:
        """Read what `save` wrote. The file is untrusted: all is checked.

        Raises:
            RunError: It is missing, damaged, or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {})["pointsman"])
                if about["schema"] != SCHEMA:
                    raise ValueError(f"schema {about['schema']!r}")
                # Copies: where in memory a number lies can change the last digit of what is computed with it.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            experts = tuple(map(int, about["experts"]))
            parameters = Gate(**{**about["parameters"], "variants": tuple(about["parameters"]["variants"])})
            trials = tuple(map(Trial.from_json, about["trials"]))
            chosen = next((trial for trial in trials if trial.variant == about["chosen"]), None)
            if chosen is None or not experts or min(experts) < 1 or not isinstance(about["fingerprint"], str):
                raise ValueError("parts that do not fit together")
            size = (sum(experts),)
            wanted = {
                "mean": size,
                "std": size,
                **shapes(chosen.variant, size[0], parameters.hidden, parameters.starts),
            }
            if {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} != {
                name: (shape, torch.float32) for name, shape in wanted.items()
            }:
                raise ValueError("weights that do not fit together")
            if not all(bool(t.isfinite().all()) for t in tensors.values()) or float(tensors["std"].min()) <= 0:
                raise ValueError("weights that are not finite, or a spread that is not positive")
        except (
            OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError,
            UsageError,
        ) as error:  # fmt: skip
            raise RunError(f"{path} is not a whole gate ({error})", "Learn it again and save it") from None
        mean, std = tensors.pop("mean"), tensors.pop("std")
        return FittedGate(experts, about["fingerprint"], mean, std, tensors, chosen, trials, parameters)

    def _score(self, z: Tensor) -> Tensor:
        """Of one request, from its standardised tokens alone. z: shape [T, F]."""
        if self.chosen.variant == "mean":
            z = z.mean(0, keepdim=True)
        return _each_token(self.weights, z).amax(0).mean()

    def _tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std, **self.weights}


def shapes(variant: Variant, features: int, hidden: int, starts: int) -> dict[str, tuple[int, ...]]:
    """The weights of a variant and their shapes: first the starts, of which only the MLP has more than one."""
    if variant == "mlp":
        return {
            "hidden": (starts, hidden, features), "hidden_bias": (starts, hidden), "weight": (starts, hidden),
            "bias": (starts,),
        }  # fmt: skip
    return {"weight": (1, features), "bias": (1,)}


# ---------------------------------------------------------------------- learning


@dataclass(frozen=True)
class Gate:
    """Learn a gate.

    Attributes:
        variants: Those that are tried.
        false_alarms: Share of validation's label 0 that it may flag, from 0 to below 1.
        hidden: Units of an MLP.
        starts: MLPs that are learnt from different first weights, and their scores averaged: some get stuck.
        epochs: Steps of Adam, each on all of discovery.
        lr: Its learning rate.
        decay: Weight decay, as Adam has it: the gradient of decay / 2 times the squares of all weights.
        seed: Of the MLP's first weights, and of the interval of the AUROC.
    """

    variants: tuple[Variant, ...] = VARIANTS
    false_alarms: float = 0.005
    hidden: int = 32
    starts: int = 3
    epochs: int = 200
    lr: float = 0.01
    decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not self.variants or len(set(self.variants)) < len(self.variants):
            raise UsageError(
                f"A gate with the variants {', '.join(map(str, self.variants)) or 'none'}",
                f"Use some of {', '.join(VARIANTS)}, each once",
            )
        if not 0 <= self.false_alarms < 1:
            raise UsageError(f"A rate of false alarms of {self.false_alarms}", "Use 0 or more, below 1, such as 0.005")
        for name in ("hidden", "starts", "epochs"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise UsageError(f"A gate with {name} {getattr(self, name)}", "Use a whole number")
            if getattr(self, name) < 1:
                raise UsageError(f"A gate with {name} {getattr(self, name)}", "Use at least 1")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"A learning rate of {self.lr}", "Use a positive number, such as 0.01")
        if not 0 <= self.decay < math.inf:
            raise UsageError(f"A weight decay of {self.decay}", "Use 0 or more, such as 0.01")

    def fit(
        self,
        discovery: LabelledTraces,
        validation: LabelledTraces,
        *,
        fingerprint: str,
        progress: Progress = ignore,
    ) -> FittedGate:
        """Learn every variant on discovery, and choose one and its threshold on validation.

        Args:
            discovery, validation: Of one model, from different source questions.
            fingerprint: Of that model.
            progress: Told of every epoch done, `epochs` for each variant.

        Raises:
            DataError: They are traces of different models.
            UsageError: It diverges.
        """
        experts = discovery.store.experts
        mean, std = _standard(discovery.store)
        label = torch.tensor(discovery.labels, dtype=torch.float32)
        fitted = []
        for variant in self.variants:
            weights, losses = self._learn(variant, discovery.store, mean, std, label, progress)
            bare = Trial(
                variant, Auroc(None, 0, 1, 0), 0.0, Rate.of([]), Rate.of([]), 1.0, (losses[0], losses[-1]), {}
            )  # fmt: skip
            gate = FittedGate(experts, fingerprint, mean, std, weights, bare, (bare,), self)
            fitted.append(replace(gate, chosen=self._measured(gate, validation)))
        trials = tuple(gate.chosen for gate in fitted)
        best = max(fitted, key=lambda gate: (*_merit(gate.chosen), -VARIANTS.index(gate.chosen.variant)))
        return replace(best, trials=trials)

    def _learn(
        self, variant: Variant, store: TraceStore, mean: Tensor, std: Tensor, label: Tensor, progress: Progress
    ) -> tuple[Weights, list[float]]:
        """Weights, and the loss before every step. label: shape [N]."""
        weights = self._begin(variant, len(mean))
        adam = torch.optim.Adam(weights.values(), lr=self.lr, weight_decay=self.decay)
        share = torch.where(label > 0, 0.5 / label.sum(), 0.5 / (1 - label).sum())  # shape: [N]; sums to 1
        batches = _Batches(store, mean, std)
        losses = []
        for _ in range(self.epochs):
            adam.zero_grad(set_to_none=True)
            summed = 0.0
            for rows, z, lengths in batches:
                odds = _pooled(variant, weights, z, lengths)
                wanted, weight = (one[rows, None].expand_as(odds) for one in (label, share))  # every start by itself
                loss = functional.binary_cross_entropy_with_logits(odds, wanted, weight, reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
                summed += float(loss.detach()) / odds.shape[1]
            adam.step()
            losses.append(summed)
            progress(1)
        found = {name: value.detach() for name, value in weights.items()}
        if not all(map(math.isfinite, losses)) or not all(bool(value.isfinite().all()) for value in found.values()):
            raise UsageError(f"The gate diverged with a learning rate of {self.lr}", "Use a smaller one")
        return found, losses

    def _begin(self, variant: Variant, features: int) -> dict[str, Tensor]:
        """First weights: zero, but for those of the MLP, which are drawn."""
        generator = torch.Generator().manual_seed(self.seed)
        weights = {}
        for name, shape in shapes(variant, features, self.hidden, self.starts).items():
            drawn = variant == "mlp" and name in ("hidden", "weight")
            value = torch.randn(shape, generator=generator) / math.sqrt(shape[-1]) if drawn else torch.zeros(shape)
            weights[name] = value.requires_grad_()
        return weights

    def _measured(self, gate: FittedGate, validation: LabelledTraces) -> Trial:
        """How a gate does on validation, at a threshold that is set there."""
        scores, label = gate.scores(validation.store), np.asarray(validation.labels)
        sources = np.asarray(validation.sources, dtype=np.str_)
        threshold = threshold_at(scores, validation.labels, self.false_alarms)
        flags = scores > threshold
        kinds = np.asarray(validation.kinds, dtype=np.str_)

        def rate(rows: npt.NDArray[np.bool_]) -> Rate:
            return Rate.of(flags[rows].tolist(), sources[rows].tolist(), self.seed)

        named = dict.fromkeys(kinds[label == 0].tolist()) if len(kinds) else {}
        by_kind = {kind: rate((label == 0) & (kinds == kind)) for kind in named}
        let = flags[label == 0].tolist()
        shown = most_lost(let, [False] * len(let), sources[label == 0].tolist(), CONFIDENCE)
        auroc = Auroc.of(scores, validation.labels, validation.sources, self.seed)
        return replace(
            gate.chosen, auroc=auroc, threshold=threshold, detected=rate(label == 1), false_alarms=rate(label == 0),
            shown=shown, by_kind=by_kind,
        )  # fmt: skip


def threshold_at(scores: Sequence[float] | Floats, labels: Sequence[int], false_alarms: float) -> float:
    """The threshold that flags as many of label 1 as a limit on false alarms lets it, and as few others as that takes.

    The limit is no goal: what is flagged beyond the last request of label 1 would be false alarms for nothing. The
    threshold lies in the middle of the gap below that request; where nothing of label 1 can be flagged, above all.

    Args:
        scores: Shape: [N].
        labels: 0 or 1; some are 0. Shape: [N].
        false_alarms: Share of label 0 that may lie above it, from 0 to below 1.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    others = np.sort(score[label == 0])[::-1]
    highest = others[math.floor(false_alarms * len(others) + 1e-9)]  # the first that must not be flagged
    found = score[(label == 1) & (score > highest)]
    if not len(found):
        return float(others[0])
    return float(found.min() + score[score < found.min()].max()) / 2


# ---------------------------------------------------------------------- arithmetic


def _each_token(weights: Weights, z: Tensor) -> Tensor:
    """Log-odds of every token, of every start. Shapes: [N, F] -> [N, starts]."""
    weight, bias = weights["weight"], weights["bias"]
    if "hidden" not in weights:
        return functional.linear(z, weight, bias)
    units = functional.relu(functional.linear(z, weights["hidden"].flatten(0, 1), weights["hidden_bias"].flatten()))
    return (units.view(len(z), *weight.shape) * weight).sum(-1) + bias


def _pooled(variant: Variant, weights: Weights, z: Tensor, lengths: Tensor) -> Tensor:
    """Log-odds of contexts whose tokens follow one another, of every start. Shapes: [N, F], [B] -> [B, starts]."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)  # shape: [N]
    if variant == "mean":
        total = z.new_zeros(len(lengths), z.shape[1]).index_add(0, row, z)
        return _each_token(weights, total / lengths[:, None])
    odds = _each_token(weights, z)  # shape: [N, starts]
    least = odds.new_full((len(lengths), odds.shape[1]), -math.inf)
    return least.scatter_reduce(0, row[:, None].expand_as(odds), odds, "amax")


class _Batches:
    """Standardised contexts of a store, again and again: rows [B], tokens [N, F] and lengths [B]."""

    def __init__(self, store: TraceStore, mean: Tensor, std: Tensor) -> None:
        self._store, self._mean, self._std = store, mean, std
        every = range(len(store))
        self._held = list(self._read()) if store.bytes_of(every) <= HELD_BYTES else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return iter(self._held) if self._held is not None else self._read()

    def _read(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for chunk in self._store.chunks(range(len(self._store)), CHUNK_BYTES):
            tokens = self._store.tokens(chunk)
            x = torch.cat(list(_of_tokens(tokens)))
            yield torch.from_numpy(chunk), (x - self._mean) / self._std, torch.from_numpy(tokens.lengths)


def _standard(store: TraceStore) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every logit over all tokens, summed in float64; 1 where it never changes."""
    count, total, square = 0, torch.zeros(sum(store.experts)).double(), torch.zeros(sum(store.experts)).double()
    first: Tensor | None = None  # what is squared is close to the mean, so that nothing is lost in the difference
    for chunk in store.chunks(range(len(store))):
        for x in _of_tokens(store.tokens(chunk)):
            first = x.double().mean(0) if first is None else first
            moved = x.double() - first
            count, total, square = count + len(x), total + moved.sum(0), square + moved.square().sum(0)
    if first is None:
        raise DataError("There are no traces to learn a gate from", "Collect some of both labels")
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    return (first + mean).float(), torch.where(std > 1e-6, std, 1.0).float()


def _features(contexts: Contexts, experts: tuple[int, ...]) -> Iterator[Tensor]:
    """Logits of all layers of one context after the other, in depth order. Shapes: [T, F]."""
    if isinstance(contexts, TraceStore):
        if contexts.experts != experts:
            raise DataError(
                f"The traces in {contexts.folder} have {len(contexts.experts)} layers, {sum(contexts.experts)} experts "
                f"in all, the gate knows {len(experts)} and {sum(experts)}",
                "Use traces of the model that the gate was learnt on",
            )
        for chunk in contexts.chunks(range(len(contexts))):
            yield from _of_tokens(contexts.tokens(chunk))
        return
    for layers in contexts:
        tokens = len(layers[0]) if len(layers) else 0
        if not tokens or [np.shape(r) for r in layers] != [(tokens, e) for e in experts]:
            raise DataError(
                f"A request whose logits have the shapes {[np.shape(r) for r in layers]}",
                f"Give one array [tokens, experts] a layer, at least one token, with {list(experts)} experts",
            )
        yield _as_kept(np.concatenate([np.asarray(r, dtype=np.float32) for r in layers], axis=1))


def _of_tokens(tokens: Tokens) -> Iterator[Tensor]:
    """The same, of what was read from a store."""
    placed = {
        layer: block[:, place]
        for block, layers in zip(tokens.blocks, tokens.layers, strict=True)
        for place, layer in enumerate(layers)
    }
    x = np.concatenate([placed[layer] for layer in sorted(placed)], axis=1)  # shape: [N, F]
    for piece in np.split(x, np.cumsum(tokens.lengths)[:-1]):
        yield _as_kept(piece)


def _as_kept(x: Logits) -> Tensor:
    """Rounded as stores keep logits, so that a request has the score that a stored one has.

    Raises:
        BadLogits: One is not finite.
    """
    largest = float(np.abs(x).max())  # NaN if one is
    if not math.isfinite(largest):
        raise BadLogits("A router logit that the gate reads is not finite", "Try another dtype, such as bfloat16")
    return torch.from_numpy(x.astype(np.float16).astype(np.float32) if largest <= _HALF else x.copy())


def _merit(trial: Trial) -> tuple[float, float]:
    """AUROC, and among equals what is detected."""
    return round(trial.auroc.value or 0.0, 9), trial.detected.rate or 0.0


def _rate(data: Mapping[str, Any]) -> Rate:
    """A stored rate; KeyError, TypeError or ValueError if it is none."""
    rate = None if data["rate"] is None else float(data["rate"])
    clusters = None if data["clusters"] is None else int(data["clusters"])
    low, high = float(data["low"]), float(data["high"])
    if not all(math.isfinite(value) for value in (low, high, rate or 0.0)):
        raise ValueError("a rate that is not finite")
    return Rate(int(data["k"]), int(data["n"]), rate, low, high, str(data["method"]), clusters)
