"""The transformers engine: any MoE chat model that transformers loads, under any routing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from pointsman.engine.abilities import Guides, HoldsModule, Learns, Patches
from pointsman.engine.batching import in_batches, tokens_that_fit
from pointsman.engine.chat import Chat
from pointsman.engine.generation import most_probable
from pointsman.engine.gradient_memory import bytes_of_gradient, free_bytes, resident
from pointsman.engine.learning import BACKWARD, Learner, weights_held
from pointsman.engine.patching import Patcher
from pointsman.engine.resume import Resume, how_resumed
from pointsman.engine.route_gradients import Guide, RouteGradient
from pointsman.engine.rows import padded_left, per_row, refuse_length, refuse_targets
from pointsman.engine.scorer import FullScorer, ResumedScorer, Targets, read_scores
from pointsman.engine.settings import settings_of
from pointsman.engine.shared_scoring import SharedScoring, shared_rows
from pointsman.engine.turns import Turns
from pointsman.engine.types import (
    Ability,
    Completion,
    Cost,
    EngineInfo,
    GradientMemory,
    Prompt,
    RouteScorer,
    Routing,
    Score,
    refuse_no_prompts,
    refuse_rows,
)
from pointsman.errors import InterventionError, ModelError, UsageError
from pointsman.routing.calling import Calling, without_wrappers
from pointsman.routing.control import Controller, prove
from pointsman.routing.given import HasIntervention, plain, warn_of_other_weights
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router, find_routers, router_norm
from pointsman.routing.trace import LayerTrace, Recorder, RouteTrace
from pointsman.routing.weights import weights_hash

_Out = TypeVar("_Out")
_Asked = ParamSpec("_Asked")


def _in_turn(verb: Callable[Concatenate[HFEngine, _Asked], _Out]) -> Callable[Concatenate[HFEngine, _Asked], _Out]:
    """Other threads wait until this call is done."""

    @wraps(verb)
    def asked(self: HFEngine, /, *args: _Asked.args, **kwargs: _Asked.kwargs) -> _Out:
        with self._turns.call():
            return verb(self, *args, **kwargs)

    return asked


class HFEngine:
    """An `Engine` over a transformers model. Make one with `pointsman.load`.

    Control is proven on the model when the engine is made. Rows are batched by length and left-padded; what a row
    gets does not depend on the rows beside it. Threads may share an engine: their calls are answered one after
    another, each under its own routing. The model behind it belongs to the engine meanwhile, and refuses them.

    Args:
        model: A causal LM with routers, in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        name: What the user calls the model.
        path: The folder or hub id it came from.
        revision: Hub revision, if known.
        batch_size: Rows in one forward; None chooses it from memory.

    Attributes:
        resumes: From where forwards can be resumed, in words; proven on this model like control.
        resumes_fully: Whether from any layer and token.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        path: str = "",
        revision: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        model = without_wrappers(model)
        self.model = model
        self.tokenizer = tokenizer
        self.routers: tuple[Router, ...] = find_routers(model)
        self.proof = prove(model)
        self.cost = Cost()
        self._chat = Chat(tokenizer, name)
        self._controller = Controller(model, self.routers, self.proof.fingerprint)
        resume = Resume.of(model, self._controller)
        self._resume = resume if isinstance(resume, Resume) else None
        self.resumes = how_resumed(resume)
        self.resumes_fully = self._resume is not None and self._resume.tokens
        self._layers = int(model.config.get_text_config().num_hidden_layers)
        self._batch_size = batch_size
        self._guide: Guide | None = None
        self._tokens_that_fit: float | None = None
        self._turns = Turns()
        self._device = model.get_input_embeddings().weight.device
        self._vocabulary = len(model.get_input_embeddings().weight)
        self._calling = Calling(model)
        ends = model.generation_config.eos_token_id
        if ends is None:
            ends = tokenizer.eos_token_id
        self._ends: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        pad = tokenizer.pad_token_id
        self._pad: int = pad if pad is not None else (self._ends[0] if self._ends else 0)
        config = model.config.get_text_config()
        self.info = EngineInfo(
            name=name,
            path=path or name,
            architecture=type(model).__name__,
            parameters=sum(p.numel() for p in model.parameters()),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(self._device),
            context=int(getattr(config, "max_position_embeddings", 0) or 1 << 20),
            fingerprint=self.proof.fingerprint,
            revision=revision,
            channels=self._chat.channels,
            opening=self._chat.opening,
            extra={"resumes": self.resumes},
        )

    # -- text to tokens ----------------------------------------------------------------------------------------

    def encode(
        self, turns: str | Sequence[str], *, answers: str | Sequence[str] = (), system: str | None = None
    ) -> Prompt:
        """See `Engine.encode`."""
        prompt = self._chat.encode(turns, answers, system)
        if max(prompt.ids, default=0) >= self._vocabulary:
            raise ModelError(
                f"The tokenizer of {self.info.name} knows more tokens than the model ({self._vocabulary})",
                "Put the model's own tokenizer into its folder",
            )
        return prompt

    def encode_target(self, text: str) -> tuple[int, ...]:
        """See `Engine.encode_target`."""
        return self._chat.encode_target(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Engine.decode`."""
        return self._chat.decode(ids)

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer, if the model has one: of several, the one that the tokenizer names."""
        named = self.tokenizer.eos_token_id
        return named if named in self._ends else self._ends[0] if self._ends else None

    # -- asking ------------------------------------------------------------------------------------------------

    def can(self, routing: Routing) -> Ability:
        """See `Engine.can`."""
        try:
            rules = self._controller.check(routing)
            if isinstance(rules, list):
                refuse_rows(rules)
        except InterventionError as error:
            return Ability(error.problem, error.remedy)
        return Ability()

    @_in_turn
    def generate(
        self, prompts: Sequence[Prompt], *, routing: Routing = None, max_new_tokens: int = 512
    ) -> list[Completion]:
        """See `Engine.generate`. A prompt that leaves less room than `max_new_tokens` gets what the context holds."""
        refuse_no_prompts(prompts)
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}", "Give 1 or more")
        for prompt in prompts:
            refuse_length(len(prompt) + 1, self.info)
        each = self._per_row(routing, len(prompts))

        def batch(rows: Sequence[int]) -> list[Completion]:
            return self._generate([prompts[i] for i in rows], [each[i] for i in rows], max_new_tokens)

        lengths = [len(p) for p in prompts]
        return self._by_length(lengths, max(lengths, default=0) + max_new_tokens, batch)

    @_in_turn
    def score(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Routing = None,
        first_tokens: Sequence[int] | None = None,
    ) -> list[Score]:
        """See `Engine.score`. Logits at target positions only.

        Rows of one prompt whose routings touch late layers only share what comes before (METHODS section 3).
        """
        return self._score_rows(prompts, targets, routing=routing, first_tokens=first_tokens)

    def _score_rows(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Routing = None,
        first_tokens: Sequence[int] | None = None,
    ) -> list[Score]:
        refuse_targets(prompts, targets, self.info)
        lengths = [len(p) + len(t) for p, t in zip(prompts, targets, strict=True)]
        each = self._per_row(routing, len(prompts))
        if self._resume is not None:
            shared = shared_rows(prompts, targets, each)
            if shared:
                with self._resume.attached():
                    together = SharedScoring(
                        self._resume, self._controller, rows_that_fit=self._rows, count=self._count,
                        layers=self._layers, device=self._device, info=self.info,
                    )  # fmt: skip
                    return together.scores(prompts, targets, each, first_tokens, shared)

        def batch(rows: Sequence[int]) -> list[Score]:
            chosen = [each[i] for i in rows]
            return self._score([prompts[i] for i in rows], [targets[i] for i in rows], chosen, first_tokens)

        return self._by_length(lengths, max(lengths, default=0), batch)

    @contextmanager
    def scorer(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Intervention | HasIntervention | None = None,
    ) -> Iterator[RouteScorer]:
        """See `Engine.scorer`. Resumed from (layer, token) where the model allows it, else with full forwards."""
        refuse_targets(prompts, targets, self.info)
        given, routing = routing, plain(routing)
        refuse_rows([routing])
        self._controller.check(routing)
        warn_of_other_weights(given, self.model)
        with self._turns.alone():
            if self._resume is None or not self._resume.tokens or not prompts:
                yield FullScorer(self._score_rows, self.routers, self._layers, prompts, targets, routing)
                return
            self._controller.set(routing)
            self._controller.recorder = None
            with self._resume.attached():
                aimed = Targets(prompts, targets, self._device, self.info.opening)
                yield ResumedScorer(
                    self._resume, self._controller, aimed, rows_that_fit=self._rows, cost=self.cost,
                    name=self.info.name,
                )  # fmt: skip

    @contextmanager
    def patcher(self) -> Iterator[Patcher]:
        """Exchange residual streams between runs; the engine answers nothing else meanwhile.

        Raises:
            UsageError: The forwards of this model cannot be resumed from a layer.
        """
        if self._resume is None:
            raise UsageError(f"{self.info.name} cannot be patched: {self.resumes}", "Patch another model")
        with self._turns.alone(), self._resume.attached():
            yield Patcher(
                self._resume, self._controller, rows_that_fit=self._rows, cost=self.cost, device=self._device,
                name=self.info.name,
            )  # fmt: skip

    @contextmanager
    def learner(self) -> Iterator[Learner]:
        """See `Learns.learner`."""
        with self._turns.alone(), weights_held(self.model), self._controller.attached():
            yield Learner(
                self._controller, self._pad_left, self._forward, self._rows, self.cost, self._layers, self.info.name,
                self.info.opening,
            )  # fmt: skip

    def router_norms(self) -> list[float]:
        """See `Learns.router_norms`."""
        return [router_norm(self.model, router) for router in self.routers]

    @_in_turn
    def route_gradients(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], *, routing: Routing = None
    ) -> list[RouteGradient]:
        """See `Guides.route_gradients`."""
        refuse_targets(prompts, targets, self.info)
        each = self._per_row(routing, len(prompts))
        if self._guide is None:
            self._guide = Guide(
                self.model, self._controller, self._forward, self._pad_left, rows_that_fit=self._rows, cost=self.cost,
                info=self.info, replay=self._resume.replay if self._resume is not None else None,
            )  # fmt: skip
        guide, lengths = self._guide, [len(p) + len(t) for p, t in zip(prompts, targets, strict=True)]
        by_layer = self._holds_no_row(lengths)

        def batch(rows: Sequence[int]) -> list[RouteGradient]:
            return guide.gradients(
                [prompts[i] for i in rows], [targets[i] for i in rows], [each[i] for i in rows], by_layer=by_layer
            )

        return self._by_length(lengths, BACKWARD * max(lengths, default=0), batch)

    def gradient_memory(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], *, tries: int = 0
    ) -> GradientMemory | None:
        """See `Guides.gradient_memory`."""
        if getattr(self.model, "is_quantized", False) or len({p.device for p in self.model.parameters()}) > 1:
            return None
        lengths = [len(p) + len(t) for p, t in zip(prompts, targets, strict=True)]
        tokens, rows = max(lengths) - 1, min(self._rows(BACKWARD * max(lengths)), len(lengths))
        by_layer = self._holds_no_row(lengths) and self._resume is not None
        needed = bytes_of_gradient(
            self.model, self.routers, rows=rows, tokens=tokens, by_layer=by_layer,
            logits=max(map(len, targets)) if self._calling.keeps_logits else tokens,
            sets=max(1, self._rows(tokens) // rows), tries=min(tries * len(lengths), self._rows(tokens + 1)),
        )  # fmt: skip
        return GradientMemory(resident(needed, self._device), free_bytes(self._device), rows, by_layer)

    @_in_turn
    def trace(self, prompts: Sequence[Prompt], *, routing: Routing = None) -> RouteTrace:
        """See `Engine.trace`."""
        refuse_no_prompts(prompts)
        each = self._per_row(routing, len(prompts))

        def batch(rows: Sequence[int]) -> list[RouteTrace]:
            ids, mask = self._pad_left([prompts[i].ids for i in rows])
            recorder = Recorder(len(self.routers))
            started = time.perf_counter()
            with self._under([each[i] for i in rows], [len(prompts[i]) for i in rows], recorder), torch.no_grad():
                self._forward(ids, mask, 1)
            self._count(1, ids.numel(), started)
            numbers = torch.tensor(rows).numpy()
            layers = (replace(t, row=numbers[t.row].astype(t.row.dtype)) for t in recorder.trace().layers)
            return [RouteTrace(tuple(_ordered(layer) for layer in layers)), *[RouteTrace(())] * (len(rows) - 1)]

        lengths = [len(p) for p in prompts]
        for length in lengths:
            refuse_length(length, self.info)
        parts = self._by_length(lengths, max(lengths, default=0), batch)
        return RouteTrace.concatenate([part for part in parts if len(part)])

    # -- the work ----------------------------------------------------------------------------------------------

    def _generate(
        self, prompts: list[Prompt], routing: list[Intervention | None], max_new_tokens: int
    ) -> list[Completion]:
        ids, mask = self._pad_left([p.ids for p in prompts])
        rooms = [min(max_new_tokens, self.info.context - len(p)) for p in prompts]  # shape: [B]
        started = time.perf_counter()
        with self._calling.handed_over(self.model), self._under(routing, None):
            new = most_probable(
                self.model, ids, mask, max(rooms), ends=self._ends, pad=self._pad, name=self.info.name
            )  # fmt: skip
        steps = len(new[0]) if new else 0
        self._count(steps, ids.numel() + len(prompts) * max(steps - 1, 0), started)
        return [self._completion(prompt, row[:room]) for prompt, row, room in zip(prompts, new, rooms, strict=True)]

    def _completion(self, prompt: Prompt, row: list[int]) -> Completion:
        for n, token in enumerate(row):
            if token in self._ends:
                return Completion(self._chat.answer(prompt, row[:n]), tuple(row[:n]), True)
        return Completion(self._chat.answer(prompt, row), tuple(row), False)

    def _score(
        self,
        prompts: list[Prompt],
        targets: list[tuple[int, ...]],
        routing: list[Intervention | None],
        first_tokens: Sequence[int] | None,
    ) -> list[Score]:
        ids, mask = self._pad_left([p.ids + t[:-1] for p, t in zip(prompts, targets, strict=True)])
        most = max(len(t) for t in targets)
        started = time.perf_counter()
        with self._under(routing, [len(p) for p in prompts]), torch.no_grad():
            logits = self._forward(ids, mask, most)  # shape: [B, most, V]
        begins = [most - len(t) for t in targets]
        scores = read_scores(logits, begins, targets, first_tokens, self.info.name, self.info.opening)
        self._count(1, ids.numel(), started)
        return scores

    @property
    def weights(self) -> str:
        """See `weights_hash`: which checkpoint this is, all of it."""
        return weights_hash(self.model)

    @property
    def settings(self) -> dict[str, str]:
        """See `settings_of`: hashes of what decides what it says besides its weights."""
        return settings_of(self.model, self.tokenizer, self.info.channels)

    def _per_row(self, routing: Routing, rows: int) -> list[Intervention | None]:
        each = per_row(routing, rows)
        self._controller.check(each)  # all of it, before the first batch is computed
        warn_of_other_weights(routing, self.model)
        return each

    def _rows(self, tokens: int) -> int:
        return self._batch_size or max(1, int(self._fit() // max(tokens, 1)))

    def _holds_no_row(self, lengths: Sequence[int]) -> bool:
        """Whether not even the longest of these rows has room for a forward with its backward."""
        return self._fit() < BACKWARD * max(lengths, default=0)

    def _fit(self) -> float:
        """Tokens that one forward without gradients may hold."""
        if self._tokens_that_fit is None:
            self._tokens_that_fit = tokens_that_fit(self.model)
        return self._tokens_that_fit

    def _forward(self, ids: Tensor, mask: Tensor, keep: int) -> Tensor:
        """Logits at the last `keep` positions; all for 0 where the model cannot leave any out. Shape: [B, keep, V].

        They are picked by position, where the model knows how. A slice of several positions would be no contiguous
        tensor, for which a product with a matrix copies that matrix once for every row: half of the time of a row of
        OLMoE-1B-7B, and 0.2 GB.
        """
        extra: dict[str, Any] = {"logits_to_keep": keep} if self._calling.keeps_logits else {}
        if self._calling.picks_logits:
            length = ids.shape[1]
            extra["logits_to_keep"] = torch.arange(length - min(keep, length), length, device=ids.device)
        extra |= self._calling.with_positions(mask, ids.shape[1])
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
        return logits[:, -keep:]

    def _pad_left(self, rows: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask. Shapes: [B, T] each."""
        return padded_left(rows, self._pad, self._device)

    @contextmanager
    def _under(
        self, routing: list[Intervention | None], prompt_lengths: list[int] | None, recorder: Recorder | None = None
    ) -> Iterator[None]:
        """Control with this routing; the untouched model where there is nothing to do."""
        if recorder is None and not any(routing):
            yield
            return
        self._controller.set(routing, prompt_lengths=prompt_lengths)
        self._controller.recorder = recorder
        try:
            with self._controller.attached():
                yield
        finally:
            self._controller.recorder = None

    def _by_length(self, lengths: list[int], longest: int, batch: Callable[[Sequence[int]], list[_Out]]) -> list[_Out]:
        """Run `batch` over row numbers, longest rows first (so that memory fails early), and restore the order."""
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        results = dict(zip(order, in_batches(order, self._rows(longest), batch), strict=True))
        return [results[i] for i in range(len(lengths))]

    def _count(self, forwards: int, tokens: int, started: float, layers: int | None = None) -> None:
        self.cost.forwards += forwards
        self.cost.tokens += tokens
        self.cost.token_layers += tokens * (self._layers if layers is None else layers)
        self.cost.seconds += time.perf_counter() - started


def _ordered(layer: LayerTrace) -> LayerTrace:
    order = np.lexsort((layer.position, layer.row))
    return LayerTrace(*(a[order] for a in (layer.row, layer.position, layer.decode, layer.logits, layer.experts)))


if TYPE_CHECKING:

    def _meets(engine: HFEngine) -> tuple[Learns, Guides, Patches, HoldsModule]:
        """What it can do, held to the protocols by the type checker."""
        return engine, engine, engine, engine
