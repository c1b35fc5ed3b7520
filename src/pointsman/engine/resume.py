"""Compute only what a change of routing changes: resume forwards from (layer l, token t). METHODS section 3.

`Memory` holds what some prompts computed under one routing: keys and values of every layer, and the residual stream
that enters it. If the routing changes at layer l and token t, tokens before t and layers before l are as they were;
`Resume.run` computes the rest, for many changed rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from pointsman.errors import PointsmanError
from pointsman.routing.calling import Calling
from pointsman.routing.control import Controller
from pointsman.routing.intervention import Intervention
from pointsman.routing.replay import CannotReplay, Replay
from pointsman.routing.routers import Router

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Of the start-up proof: largest difference of a logit, relative to the largest logit."""

_SPLIT_FROM = 512

_FAILURES = (PointsmanError, RuntimeError, ValueError, TypeError, AttributeError, LookupError)
"""What code of a model may raise when it is run in a way that it does not know."""

_ROPE_OF_THE_LONGEST = {"longrope", "dynamic"}  # switch or scale by the longest position of a forward


@dataclass
class Memory:
    """What B rows, right-padded to S tokens, computed under one routing in a model of D decoder layers.

    Attributes:
        ids: Token ids. Shape: [B, S].
        residual: Residual stream that enters layer n (entry D: the final norm); entry 0 is None. Shapes: [B, S, d].
        keys, values: Of every layer; empty if the model cannot resume from a token. Shapes: [B, H, S, d_head].
    """

    ids: Tensor
    residual: list[Tensor | None]
    keys: list[Tensor]
    values: list[Tensor]


@dataclass
class Computed:
    """What R changed rows computed from (layer, token) on. Tensors are of the rows' new tokens (n) only."""

    layer: int
    token: int
    first: Tensor | None  # output of `layer` at `token` alone, if it was computed apart. Shape: [R, 1, d]
    outputs: list[Tensor | None]  # of each layer. Shapes: [R, n, d]
    keys: list[Tensor | None]
    values: list[Tensor | None]  # shapes: [R, H, n, d_head]

    def rows(self, rows: Tensor) -> Computed:
        """Some rows as a copy, so that the others can be let go. Shape of `rows`: [W]."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(0, rows.to(tensor.device))

        def each(tensors: list[Tensor | None]) -> list[Tensor | None]:
            return [pick(t) for t in tensors]

        return Computed(
            self.layer, self.token, pick(self.first), each(self.outputs), each(self.keys), each(self.values)
        )


class _Prefix(DynamicLayer):  # type: ignore[misc]
    """The cache of one layer: known keys and values of the first tokens, read only; it keeps the new ones apart."""

    def __init__(self, keys: Tensor | None, values: Tensor | None, of_row: Tensor | None, tokens: int) -> None:
        super().__init__()
        self._known = (keys, values)
        self._of_row = of_row
        self._tokens = tokens
        self.new: tuple[Tensor, Tensor] | None = None
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.new = (key_states, value_states)
        if self._tokens == 0:
            return self.new
        keys, values = (self._joined(known, new) for known, new in zip(self._known, self.new, strict=True))
        return keys, values

    def _joined(self, known: Tensor | None, new: Tensor) -> Tensor:
        """Shapes: [B, H, S, d_head], [R, H, n, d_head] -> [R, H, tokens + n, d_head]."""
        if known is None or self._of_row is None:
            raise CannotReplay("a layer without known keys was asked for them")
        before = known[:, :, : self._tokens].index_select(0, self._of_row.to(known.device))
        return torch.cat([before, new], dim=-2)

    def get_seq_length(self) -> int:
        return self._tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._tokens + query_length, 0


class Resume:
    """Resumed forwards of one model.

    Attributes:
        replay: Its layers.
        tokens: Whether forwards can be resumed from a token too; else only from a layer.
        why_not: Why `tokens` is False.
        split_from: From this many rows x tokens on, the first layer computes the changed token alone, since the
            others' output is known. Changes no result.
    """

    def __init__(self, model: Any, controller: Controller) -> None:
        self._model = model
        self._controller = controller
        self._calling = Calling(model)
        self.replay = Replay(model, controller.routers)
        self.tokens = True
        self.why_not = ""
        self.split_from = _SPLIT_FROM
        self._headless = False  # whether a forward can be asked for no logits at all

    @staticmethod
    def of(model: Any, controller: Controller) -> Resume | str:
        """Resumed forwards, if they give what full ones give on this very model; else the reason why not."""
        if _rope_of_the_longest(model):
            return "its position embedding depends on the longest row of a batch"
        try:
            resume = Resume(model, controller)
            try:
                if _keeps_states(model):
                    raise CannotReplay("some of its layers keep a recurrent state, which is not cached by token")
                resume._prove()
            except (CannotReplay, *_FAILURES) as error:
                resume.tokens, resume.why_not = False, _in_a_line(error)
                resume._prove()
        except CannotReplay as error:
            return str(error)
        except _FAILURES as error:
            return _in_a_line(error)
        return resume

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Control and replay on; forwards run by this object belong inside."""
        with self._controller.attached(), self.replay.attached():
            try:
                yield
            finally:
                self._controller.overlay, self._controller.first_layer = None, 0
                self._controller.last_layer = None

    # -- the work ----------------------------------------------------------------------------------------------

    def remember(self, ids: Tensor, keep: slice) -> tuple[Memory, Tensor]:
        """A full forward of rows padded on the right, remembered.

        Args:
            ids: Shape: [B, S].
            keep: Positions whose logits are wanted.

        Returns:
            The memory, and logits. Shape: [B, kept, V].
        """
        self.replay.between(0, self.replay.count)
        self._controller.first_layer, self._controller.last_layer = 0, None
        caches = [_Prefix(None, None, None, 0) for _ in range(self.replay.count)] if self.tokens else []
        logits = self._forward(ids, caches, keep)
        outputs = self.replay.outputs
        if any(output is None for output in outputs):
            raise CannotReplay("some of its layers were not run")
        new = [cache.new for cache in caches]
        if any(pair is None for pair in new):
            raise CannotReplay("some of its layers keep no keys and values (a recurrent state cannot be resumed)")
        keys = [pair[0].clone() for pair in new if pair is not None]
        values = [pair[1].clone() for pair in new if pair is not None]
        residual = [None, *(None if output is None else output.clone() for output in outputs)]
        return Memory(ids, residual, keys, values), logits

    def run(
        self, memory: Memory, of_row: Tensor, layer: int, token: int, end: int, keep: slice, *, alone: bool = False
    ) -> tuple[Tensor, Computed]:
        """Compute rows whose routing differs from that of `memory` from (layer, token) on.

        Args:
            memory: What is known.
            of_row: The row of `memory` that each row continues. Shape: [R].
            layer: Decoder layer at which the routing changes.
            token: First token at which it does; 0 if the model cannot resume from tokens.
            end: Tokens from here on are left out.
            keep: Positions whose logits are wanted.
            alone: The routing of `layer` changes at `token` only.

        Returns:
            Logits, shape [R, kept, V], and what was computed.
        """
        replay, entering, first = self.replay, memory.residual[layer], None
        if alone and end - token > 1 and len(of_row) * (end - token) >= self.split_from:
            none = slice(token, token if self._headless else token + 1)
            _, one = self._between(memory, of_row, layer, layer + 1, token, token + 1, none, entering)
            first, after = one.outputs[layer], memory.residual[layer + 1]
            if first is None or after is None:
                raise CannotReplay("a layer did not compute")
            rest = after[:, token + 1 : end].index_select(0, of_row.to(after.device))
            joined = torch.cat([first, rest], dim=1)
            logits, computed = self._between(
                memory, of_row, layer + 1, replay.count, token, end, keep, joined, rows_given=True
            )
            computed.layer, computed.first = layer, first
            return logits, computed
        return self._between(memory, of_row, layer, replay.count, token, end, keep, entering)

    def _between(
        self, memory: Memory, of_row: Tensor, begin: int, stop: int, token: int, end: int, keep: slice,
        entering: Tensor | None, *, rows_given: bool = False,
    ) -> tuple[Tensor, Computed]:  # fmt: skip
        """Layers ``begin .. stop - 1`` at tokens ``token .. end - 1``."""
        if entering is not None and not rows_given:
            entering = entering[:, token:end].index_select(0, of_row.to(entering.device))
        self.replay.between(begin, stop, entering)
        self._controller.first_layer, self._controller.last_layer = begin, stop - 1
        caches: list[_Prefix] = []
        if self.tokens:
            known = zip(memory.keys, memory.values, strict=True)
            caches = [_Prefix(keys, values, of_row, token) for keys, values in known]
        ids = memory.ids[:, token:end].index_select(0, of_row.to(memory.ids.device))
        logits = self._forward(ids, caches, slice(keep.start - token, keep.stop - token))
        outputs = self.replay.outputs
        new = [cache.new for cache in caches]
        keys = [None if pair is None else pair[0] for pair in new]
        values = [None if pair is None else pair[1] for pair in new]
        return logits, Computed(begin, token, None, outputs, keys, values)

    def update(self, memory: Memory, to: Tensor, computed: Computed, rows: Tensor) -> None:
        """Make some computed rows what `memory` knows from now on.

        Args:
            memory: Changed in place.
            to: Rows of the memory. Shape: [W].
            computed: What they computed.
            rows: Rows of `computed`. Shape: [W].
        """
        begin = computed.token
        entering = memory.residual[computed.layer + 1]
        if computed.first is not None and entering is not None:
            entering[_on(to, entering), begin] = computed.first[_on(rows, entering), 0]
        for known, new in zip(memory.residual[1:], computed.outputs, strict=True):
            if known is not None and new is not None:
                known[_on(to, known), begin : begin + new.shape[1]] = new[_on(rows, new)]
        for all_known, all_new in ((memory.keys, computed.keys), (memory.values, computed.values)):
            for one, part in zip(all_known, all_new, strict=False):
                if part is not None:
                    one[_on(to, one), :, begin : begin + part.shape[-2]] = part[_on(rows, part)]

    def _forward(self, ids: Tensor, caches: list[_Prefix], keep: slice) -> Tensor:
        """Logits at the positions `keep`, counted from the first of `ids`. Shape: [R, kept, V]."""
        extra: dict[str, Any] = {}
        whole = keep.start == 0 and keep.stop == ids.shape[1]
        if self._calling.picks_logits and not whole:
            extra["logits_to_keep"] = torch.arange(keep.start, keep.stop, device=ids.device)
        if caches:
            extra |= self._calling.with_cache(Cache(layers=caches))
        else:
            extra["use_cache"] = False
        with torch.no_grad():
            logits: Tensor = self._model(input_ids=ids, **extra).logits
        return logits if self._calling.picks_logits or whole else logits[:, keep]

    # -- the proof ---------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        """Resume two rows of seven tokens at some layers and tokens, every router forced: equal to full forwards.

        With every set forced, a rounding error cannot turn into another choice of experts, so the tolerance is tight
        in every dtype.
        """
        routers, rng = self._controller.routers, np.random.default_rng(1)
        vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        device = self._model.get_input_embeddings().weight.device
        ids = (torch.arange(14, device=device).reshape(2, 7) * 5 + 1) % vocabulary
        keep, of_row = slice(0, 7), torch.tensor([0, 1, 1], device=device)
        base = {(r.layer, t): r.draw(rng, 1)[0].tolist() for r in routers for t in range(7)}
        tolerance = _TOLERANCE.get(self._model.dtype, 1e-3)
        with self.attached():
            self._set(base)
            memory, before = self.remember(ids, keep)
            self._headless = self._calling.picks_logits and self._runs_headless(memory, of_row)
            for router in _some(routers):
                for token in (0, 3) if self.tokens else (0,):
                    changed = {**base, (router.layer, token): _another(router, base[router.layer, token], rng)}
                    self._set(changed)
                    _, full = self.remember(ids[[0, 1, 1]], keep)
                    from_token = slice(token, 7)
                    for alone in (False, True):
                        self.split_from = 0 if alone else _SPLIT_FROM
                        logits, _ = self.run(memory, of_row, router.decoder_layer, token, 7, from_token, alone=alone)
                        error = float((logits - full[:, token:]).abs().max())
                        if not error <= tolerance * float(full.abs().max()):
                            raise CannotReplay(
                                f"resumed from layer {router.decoder_layer} and token {token}, it is off by {error:.2g}"
                            )
            self.split_from = _SPLIT_FROM
            if torch.equal(before, full[:2]):
                raise CannotReplay("the forced sets of the proof changed nothing")

    def _runs_headless(self, memory: Memory, of_row: Tensor) -> bool:
        """Whether the first layer can be run with no logit asked for."""
        try:
            logits, computed = self._between(memory, of_row, 0, 1, 0, 1, slice(0, 0), None)
        except (CannotReplay, *_FAILURES):
            return False
        return logits.shape[1] == 0 and computed.outputs[0] is not None

    def _set(self, sets: dict[tuple[int, int], list[int]]) -> None:
        self._controller.set(Intervention.force(sets))


def _on(index: Tensor, beside: Tensor) -> Tensor:
    return index.to(beside.device)


def _keeps_states(model: Any) -> bool:
    """Whether a layer caches something else than keys and values, as Mamba-like ones do."""
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return not all(isinstance(layer, CacheLayerMixin) for layer in layers)


def _rope_of_the_longest(model: Any) -> bool:
    config = model.config.get_text_config()
    given = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    while given:
        part = given.pop()
        if isinstance(part, Mapping):  # of all layers, or one for each kind of layer
            if {part.get("rope_type"), part.get("type")} & _ROPE_OF_THE_LONGEST:
                return True
            given += [inner for inner in part.values() if isinstance(inner, Mapping)]
    return False


def _some(routers: Sequence[Router]) -> list[Router]:
    """First, second, middle, last."""
    chosen = {0, 1, len(routers) // 2, len(routers) - 1}
    return [routers[n] for n in sorted(chosen) if n < len(routers)]


def _another(router: Router, experts: list[int], rng: np.random.Generator) -> list[int]:
    for drawn in router.draw(rng, 64).tolist():
        if drawn != experts:
            return list(drawn)
    return experts


def _in_a_line(error: Exception) -> str:
    if isinstance(error, CannotReplay):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def how_resumed(resume: Resume | str) -> str:
    """From where forwards are resumed, in words, from what `Resume.of` gave."""
    if isinstance(resume, str):
        return f"forwards are not resumed, every score takes a full one ({resume})"
    if not resume.tokens:
        return f"forwards are resumed from any layer, but not from a token ({resume.why_not})"
    return "forwards are resumed from any layer and token"
