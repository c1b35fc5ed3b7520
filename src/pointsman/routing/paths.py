"""Prove that a model says the same under a routing however it is asked: padded or alone, cached or whole, generated.

A model that is handed its cache under a name that it ignores, or that counts positions in a way of its own, answers
fluently and wrongly. Nothing but a comparison shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from pointsman.errors import ControlFailed, PointsmanError
from pointsman.routing.calling import Calling, cache_among
from pointsman.routing.controller import Controller
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router
from pointsman.routing.trace import Recorder, RouteTrace

_PROMPT = 4  # columns of the probe that are its prompts
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 5e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
"""Largest difference of a logit, relative to the largest one. Wide: a lost cache or a wrong position is off by one."""

_PADDED, _CACHED, _GENERATED = "in a left-padded batch", "with a key-value cache", "in `generate`"
_REMEDY = "Use a transformers that Pointsman was tested with (`pip install -U pointsman`); please report this model"


@dataclass(frozen=True)
class Paths:
    """Largest differences of a logit that were seen, relative to the largest logit.

    Attributes:
        padded: A left-padded batch against its rows alone.
        cached: Prefill and cached decoding against one full forward.
        generated: What `generate` saw against one full forward; None for a model that cannot generate.
        tokens: Tokens that were compared, over all three.
    """

    padded: float
    cached: float
    generated: float | None
    tokens: int


_Token = tuple[int, int]  # row and position


@dataclass(frozen=True)
class _Seen:
    """One path: the logits of its tokens, and what each router saw and chose for them."""

    logits: dict[_Token, Tensor]  # shapes: [V]
    routers: list[dict[_Token, tuple[np.ndarray, frozenset[int]]]]  # of each layer: raw logits, shape [E]; experts

    @staticmethod
    def of(logits: dict[_Token, Tensor], trace: RouteTrace) -> _Seen:
        routers = []
        for layer in trace.layers:
            tokens = zip(layer.row.tolist(), layer.position.tolist(), strict=True)
            chosen = [frozenset(experts) for experts in layer.experts.tolist()]
            routers.append(dict(zip(tokens, zip(layer.logits, chosen, strict=True), strict=True)))
        return _Seen(logits, routers)


def prove_paths(model: nn.Module, routers: tuple[Router, ...], fingerprint: str, ids: Tensor, mask: Tensor) -> Paths:
    """Compare the paths on the probe, a set forced at every router in the first row and a mask in the second.

    Where rounding makes a router choose otherwise within its mask (its logits being equal up to the tolerance), that
    token and the later ones of its row are compared no further.

    Args:
        model: In evaluation mode.
        routers: Its routers.
        fingerprint: Of the model.
        ids, mask: Two rows, padded on the left. Shapes: [2, T].

    Raises:
        ControlFailed: Two paths say different things; the message names them.
    """
    rng = np.random.default_rng(2)
    forced = Intervention.force({r.layer: r.draw(rng, 1)[0].tolist() for r in routers})
    masked = Intervention.mask({r.layer: _half(r, rng) for r in routers})
    probe = _Probe(model, routers, fingerprint, [forced, masked], ids, mask)
    with _named(model, "alone"):
        alone = probe.alone()
    with _named(model, _PADDED):
        padded, n = probe.compare(alone, probe.whole(ids, mask), _PADDED, "alone")
    with _named(model, _CACHED):
        cached, m = probe.compare(alone, probe.cached(), _CACHED, "in one full forward")
    if not _can_generate(model):
        return Paths(padded, cached, None, n + m)
    with _named(model, _GENERATED):
        said, sequences = probe.generated()
        longer = torch.cat([mask[:, :_PROMPT], mask.new_ones(len(mask), sequences.shape[1] - _PROMPT)], 1)
        generated, k = probe.compare(probe.whole(sequences, longer), said, _GENERATED, "in one full forward")
    return Paths(padded, cached, generated, n + m + k)


@contextmanager
def _named(model: nn.Module, way: str) -> Iterator[None]:
    """Say in one line in which way a model failed to be asked, whatever its code raised."""
    try:
        yield
    except PointsmanError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise ControlFailed(
            f"{type(model).__name__} fails {way} ({type(error).__name__}: {text[:160]})", _REMEDY
        ) from error


class _Probe:
    """The probe of one model, asked in several ways under one routing."""

    def __init__(
        self,
        model: Any,
        routers: tuple[Router, ...],
        fingerprint: str,
        routing: list[Intervention],
        ids: Tensor,
        mask: Tensor,
    ) -> None:
        self._model, self._routers, self._fingerprint = model, routers, fingerprint
        self._routing, self._ids, self._mask = routing, ids, mask
        self._calling = Calling(model)
        self._tolerance = _TOLERANCE.get(model.dtype, 0.2)

    def alone(self) -> _Seen:
        """Every row by itself, without padding."""
        every = _Seen({}, [{} for _ in self._routers])
        for row, routing in enumerate(self._routing):
            real = self._ids[row : row + 1, self._mask[row].bool()]
            ones = torch.ones_like(real)
            with self._control([routing]) as controller:
                output = _out(self._call(real, ones, use_cache=False))
            one = _Seen.of(_by_position(output, ones, 0), controller.trace())
            every.logits.update({(row, position): values for (_, position), values in one.logits.items()})
            for layer, seen in zip(every.routers, one.routers, strict=True):
                layer.update({(row, position): values for (_, position), values in seen.items()})
        return every

    def whole(self, ids: Tensor, mask: Tensor) -> _Seen:
        """All rows in one full forward."""
        with self._control(self._routing) as controller:
            output = _out(self._call(ids, mask, use_cache=False))
        return _Seen.of(_by_position(output, mask, 0), controller.trace())

    def cached(self) -> _Seen:
        """The prompts, then token by token with what the model keeps of them."""
        total = self._ids.shape[1]
        logits: dict[tuple[int, int], Tensor] = {}
        cache: Any = None
        with self._control(self._routing) as controller:
            for start, end in ((0, _PROMPT), *((n, n + 1) for n in range(_PROMPT, total))):
                given = {"use_cache": True} if cache is None else self._calling.with_cache(cache)
                output = self._call(self._ids[:, start:end], self._mask[:, :end], **given)
                logits |= _by_position(_out(output), self._mask[:, :end], start)
                cache = cache_among(output if isinstance(output, Mapping) else dict(enumerate(output)))
                if cache is None:
                    raise ControlFailed(
                        f"{type(self._model).__name__} returns no key-value cache when it is asked to keep one", _REMEDY
                    )
        return _Seen.of(logits, controller.trace())

    def generated(self) -> tuple[_Seen, Tensor]:
        """Greedy answers to the prompts, and the whole sequences. Shape: [2, prompt + new]."""
        ids, mask = self._ids[:, :_PROMPT], self._mask[:, :_PROMPT]
        new = self._ids.shape[1] - _PROMPT
        settings = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, guidance_scale=1.0,
            max_new_tokens=new, min_new_tokens=new,
            use_cache=True, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        with self._control(self._routing) as controller:
            output = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        sequences: Tensor = output.sequences
        mask = torch.cat([mask, mask.new_ones(len(mask), sequences.shape[1] - _PROMPT)], 1)
        logits: dict[tuple[int, int], Tensor] = {}
        for step, values in enumerate(output.logits):
            end = _PROMPT + step
            logits |= _by_position(values[:, None], mask[:, :end], end - 1)
        trace = controller.trace()
        prompt = mask[:, :_PROMPT].sum(-1).cpu().numpy()
        for layer in trace.layers:
            if not np.array_equal(layer.decode, layer.position >= prompt[layer.row]):
                raise ControlFailed(
                    f"`generate` of {type(self._model).__name__} does not tell prompt and answer apart", _REMEDY
                )
        return _Seen.of(logits, trace), sequences

    def compare(self, known: _Seen, other: _Seen, way: str, usual: str) -> tuple[float, int]:
        """The largest relative difference, and how many tokens were compared.

        Raises:
            ControlFailed: It is more than rounding.
        """
        name = type(self._model).__name__
        until = self._same_until(known, other, f"{name} {way}", usual)
        scale = max(float(values.abs().max()) for values in known.logits.values()) or 1.0
        largest, tokens = 0.0, 0
        for (row, position), values in other.logits.items():
            if position >= until[row]:
                continue
            error = float((values - known.logits[row, position]).abs().max()) / scale
            largest, tokens = max(largest, error), tokens + 1
            if not error <= self._tolerance:
                rule = "forced experts" if row == 0 else "a mask"
                raise ControlFailed(
                    f"{name} under {rule} does not say {way} what it says {usual}: token {position} of the probe is "
                    f"off by {100 * error:.2g} % of the largest logit",
                    _REMEDY,
                )
        return largest, tokens

    def _same_until(self, known: _Seen, other: _Seen, who: str, usual: str) -> list[float]:
        """Of each row, the first position at which rounding made a router choose otherwise.

        Raises:
            ControlFailed: The paths do not have the same tokens.
        """
        until = [float("inf")] * len(self._routing)
        for here, there in zip(known.routers, other.routers, strict=True):
            scale = max(float(np.abs(logits).max()) for logits, _ in here.values()) or 1.0
            for (row, position), (logits, experts) in there.items():
                if (row, position) not in here:
                    raise ControlFailed(f"{who} counts a token {position} that it does not have {usual}", _REMEDY)
                usually, usual_experts = here[row, position]
                if position >= until[row] or experts == usual_experts:
                    continue
                if float(np.abs(usually - logits).max()) <= self._tolerance * scale:
                    until[row] = position
        return until

    def _call(self, ids: Tensor, mask: Tensor, **given: Any) -> Any:
        given |= self._calling.with_positions(mask, ids.shape[1])
        with torch.no_grad():
            return self._model(input_ids=ids, attention_mask=mask, **given)

    @contextmanager
    def _control(self, routing: Sequence[Intervention]) -> Iterator[Controller]:
        """Control with a recorder, and without the start-up proof, which this is a part of."""
        controller = Controller(self._model, self._routers, self._fingerprint)
        controller.set(routing)
        controller.recorder = Recorder(len(self._routers))
        with controller.attached():
            yield controller


def _half(router: Router, rng: np.random.Generator) -> list[int]:
    """Half of the experts, at least as many as the router uses, from which it can select."""
    size = max(router.top_k, router.experts // 2 + 1)
    for _ in range(100):
        allowed: list[int] = sorted(rng.permutation(router.experts)[:size].tolist())
        if router.can_fill(allowed):
            return allowed
    return list(range(router.experts))


def _out(output: Any) -> Tensor:
    """Logits, or the hidden states of a model without a head. Shape: [B, T, ...]."""
    result: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return result.float().cpu()


def _by_position(output: Tensor, mask: Tensor, start: int) -> dict[_Token, Tensor]:
    """The logits of real tokens, by row and position.

    Args:
        output: Of the columns from `start` on. Shape: [B, T, V].
        mask: Over all columns so far. Shape: [B, start + T].
    """
    position = mask.cumsum(-1) - 1
    real = [(row, column) for row, column in mask[:, start:].nonzero().tolist() if column < output.shape[1]]
    return {(row, int(position[row, start + column])): output[row, column].float().cpu() for row, column in real}


def _can_generate(model: Any) -> bool:
    able = getattr(model, "can_generate", None)
    return bool(able()) if callable(able) else False
