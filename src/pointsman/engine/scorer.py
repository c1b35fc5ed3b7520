"""Scoring routes that grow pair by pair: resumed where the model allows it, with full forwards where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsman.engine.batching import in_batches
from pointsman.engine.channels import given
from pointsman.engine.resume import Computed, Resume
from pointsman.engine.types import TIE, Cost, Prompt, Score
from pointsman.errors import BadLogits, InterventionError
from pointsman.routing.control import Controller
from pointsman.routing.intervention import Intervention
from pointsman.routing.plan import Forced
from pointsman.routing.routers import Router


class Targets:
    """Where in padded rows the target tokens are predicted, and which they are.

    Args:
        opening: Of answers (`EngineInfo.opening`): not scored.

    Attributes:
        prompt: Prompt tokens of each row (T). Shape: [B].
        length: Tokens of each row that are computed: prompt and target but for its last. Shape: [B].
    """

    def __init__(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], device: Any, opening: Sequence[int] = ()
    ) -> None:
        self.prompt = [len(p) for p in prompts]
        self.length = [len(p) + len(t) - 1 for p, t in zip(prompts, targets, strict=True)]
        end = max(self.length)
        self.ids = torch.zeros(len(prompts), end, dtype=torch.long)
        self.wanted = torch.full((len(prompts), end), -1, dtype=torch.long)  # -1: not a target position
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            self.ids[row, : self.length[row]] = torch.tensor(prompt.ids + target[:-1])
            skipped = given(target, opening)
            self.wanted[row, len(prompt) - 1 + skipped : self.length[row]] = torch.tensor(target[skipped:])
        self.ids, self.wanted = self.ids.to(device), self.wanted.to(device)

    def keep(self, rows: Sequence[int]) -> slice:
        """The positions at which these rows predict target tokens."""
        return slice(min(self.prompt[r] for r in rows) - 1, max(self.length[r] for r in rows))

    def log_p(self, logits: Tensor, of_row: Tensor, keep: slice, name: str) -> Tensor:
        """log p of each target token, 0 elsewhere. Shapes: [R, kept, V] -> [R, kept], on the device of the logits."""
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            raise BadLogits(f"{name} returned NaN or infinite logits", "Try another dtype, such as bfloat16")
        log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
        wanted = self.wanted[of_row, keep].to(log_p.device)  # shape: [R, kept]
        picked = log_p.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
        return picked.masked_fill(wanted < 0, 0.0)


class ResumedScorer:
    """See `RouteScorer`. Every try computes only what it changes; a winner's row becomes what is known.

    Args:
        resume, controller: Attached.
        targets: What is scored.
        rows_that_fit: Rows of a number of tokens that one forward may hold.
        cost: Where forwards are counted.
        name: Of the model, for errors.
    """

    def __init__(
        self,
        resume: Resume,
        controller: Controller,
        targets: Targets,
        *,
        rows_that_fit: Callable[[int], int],
        cost: Cost,
        name: str,
    ) -> None:
        self._resume = resume
        self._controller = controller
        self._rows_that_fit = rows_that_fit
        self._cost = cost
        self._name = name
        self._targets = targets
        started = time.perf_counter()
        every = list(range(len(targets.prompt)))
        keep = self._targets.keep(every)
        controller.set_prompt_lengths(self._targets.prompt)
        self._memory, logits = resume.remember(self._targets.ids, keep)
        index = torch.arange(len(every), device=targets.ids.device)
        self.totals = _sums(self._targets.log_p(logits, index, keep, self._name))
        self._count(self._targets.ids.numel(), resume.replay.count, started)
        self._better: dict[int, tuple[int, float, Computed, int]] = {}

    def tries(self, layer: int, token: int, sets: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """See `RouteScorer.tries`."""
        self._better = {}
        router = self._controller.routers[layer]
        _check_sets(router, sets)
        alive = [b for b in sets if _reaches(router, self._resume.replay.count, token, self._targets.prompt[b])]
        found = {b: np.full(len(tried), self.totals[b]) for b, tried in sets.items()}
        rows = [(b, n) for b in alive for n in range(len(sets[b]))]
        if not rows:
            return found
        end = max(self._targets.length[b] for b in alive)

        def batch(part: Sequence[tuple[int, int]]) -> list[float]:
            return [float(value) for value in self._batch(layer, token, end, part, sets)]

        values = list(in_batches(rows, self._rows_that_fit(end - token), batch))
        for (b, n), value in zip(rows, values, strict=True):
            found[b][n] = value
        return found

    def _batch(
        self, layer: int, token: int, end: int, rows: Sequence[tuple[int, int]], sets: Mapping[int, np.ndarray]
    ) -> np.ndarray:
        started = time.perf_counter()
        device = self._memory.ids.device
        of = [b for b, _ in rows]
        of_row = torch.tensor(of, device=device)
        experts = torch.from_numpy(np.stack([sets[b][n] for b, n in rows])).to(device)
        self._controller.overlay = Forced(layer, token, experts)
        self._controller.set_prompt_lengths([self._targets.prompt[b] for b in of])
        decoder_layer = self._controller.routers[layer].decoder_layer
        keep = self._targets.keep(of)
        keep = slice(max(keep.start, token), end)
        logits, computed = self._resume.run(self._memory, of_row, decoder_layer, token, end, keep, alone=True)
        totals = _sums(self._targets.log_p(logits, of_row, keep, self._name))
        best: dict[int, int] = {}  # of each prompt, its best row here, if that is better than what is known
        for row, b in enumerate(of):
            known = self._better[b][1] if b in self._better else self.totals[b]
            if totals[row] > (totals[best[b]] if b in best else known) + TIE:
                best[b] = row
        if best:
            kept = computed.rows(torch.tensor(list(best.values()), device=device))
            for place, (b, row) in enumerate(best.items()):
                self._better[b] = (rows[row][1], float(totals[row]), kept, place)
        n, layers = end - token, self._resume.replay.count - decoder_layer
        split = computed.first is not None
        token_layers = n * (layers - 1) + 1 if split else n * layers
        self._count(len(rows) * n, token_layers / n, started, forwards=1 + split)
        return totals

    def accept(self, winners: Mapping[int, int]) -> None:
        """See `RouteScorer.accept`. A candidate that is not better than what is known cannot be kept."""
        by_computed: dict[int, tuple[Computed, list[int], list[int]]] = {}
        for b, winner in winners.items():
            number, total, computed, place = self._better[b]
            if number != winner:
                raise ValueError(f"candidate {winner} of prompt {b} is not its best, {number} is")
            self.totals[b] = total
            _, to, places = by_computed.setdefault(id(computed), (computed, [], []))
            to.append(b)
            places.append(place)
        for computed, to, places in by_computed.values():
            self._resume.update(self._memory, torch.tensor(to), computed, torch.tensor(places))

    def _count(self, tokens: int, layers: float, started: float, forwards: int = 1) -> None:
        self._cost.forwards += forwards
        self._cost.tokens += tokens
        self._cost.token_layers += round(tokens * layers)
        self._cost.seconds += time.perf_counter() - started


class FullScorer:
    """See `RouteScorer`. A full forward for every try, for models whose forwards cannot be resumed.

    Args:
        score: As `Engine.score`.
        layers: Decoder layers of the model (D).
        routing: Under the routes.
    """

    def __init__(
        self,
        score: Callable[..., list[Score]],
        routers: Sequence[Router],
        layers: int,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        routing: Intervention | None,
    ) -> None:
        self._score, self._routers, self._layers = score, routers, layers
        self._prompts, self._targets = prompts, targets
        self._base = routing or Intervention()
        self._routes: list[dict[tuple[int, int], Sequence[int]]] = [{} for _ in prompts]
        self.totals = np.array([s.total for s in score(prompts, targets, routing=routing)])
        self._last: tuple[int, int, Mapping[int, np.ndarray], dict[int, np.ndarray]] = (0, 0, {}, {})

    def tries(self, layer: int, token: int, sets: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """See `RouteScorer.tries`."""
        router = self._routers[layer]
        _check_sets(router, sets)
        totals = {b: np.full(len(tried), self.totals[b]) for b, tried in sets.items()}
        alive = [b for b in sets if _reaches(router, self._layers, token, len(self._prompts[b]))]
        rows = [(b, experts) for b in alive for experts in sets[b]]
        routing = [self._base + _forced({**self._routes[b], (layer, token): e.tolist()}) for b, e in rows]
        prompts, targets = [self._prompts[b] for b, _ in rows], [self._targets[b] for b, _ in rows]
        scores = iter(self._score(prompts, targets, routing=routing) if rows else ())
        for b in alive:
            totals[b] = np.array([next(scores).total for _ in sets[b]])
        self._last = (layer, token, sets, totals)
        return totals

    def accept(self, winners: Mapping[int, int]) -> None:
        """See `RouteScorer.accept`."""
        layer, token, sets, totals = self._last
        for b, winner in winners.items():
            self._routes[b][layer, token] = sets[b][winner].tolist()
            self.totals[b] = totals[b][winner]


def read_scores(
    logits: Tensor,
    begins: Sequence[int],
    targets: Sequence[tuple[int, ...]],
    first_tokens: Sequence[int] | None,
    name: str,
    opening: Sequence[int] = (),
) -> list[Score]:
    """Read the log-probabilities of targets off logits.

    Args:
        logits: Shape: [R, kept, V].
        begins: Where in `kept` each row predicts the first token of its target. Shape: [R].
        targets: Token ids. Shape: [R].
        first_tokens: Ids that count as affirmative; None takes the first of each target.
        name: Of the model, for errors.
        opening: Of answers: not scored where a target begins with it.

    Raises:
        BadLogits: A logit is NaN, or a row has an infinite one.
    """
    most_probable = logits.amax(-1)  # shape: [R, kept]
    if not bool(torch.isfinite(most_probable).all()):
        raise BadLogits(f"{name} returned NaN or infinite logits", "Try another dtype, such as bfloat16")
    device, rows = logits.device, torch.arange(len(targets), device=logits.device)
    log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
    begin = torch.tensor(begins, device=device)
    skipped = [given(target, opening) for target in targets]  # shape: [R]
    begin = begin + torch.tensor(skipped, device=device)
    targets = [target[skip:] for target, skip in zip(targets, skipped, strict=True)]
    most = max(len(target) for target in targets)
    wanted = torch.tensor([[*t, *[0] * (most - len(t))] for t in targets], device=device)  # shape: [R, most]
    places = (begin[:, None] + torch.arange(most, device=device)).clamp(max=logits.shape[1] - 1)
    picked = log_p[rows[:, None], places, wanted].cpu()  # shape: [R, most]
    if first_tokens is None:
        first = picked[:, 0]
    else:
        index = torch.tensor(sorted(set(first_tokens)), device=device)
        first = log_p[rows, begin][:, index].logsumexp(-1).cpu()
    best = (logits[rows[:, None], places, wanted] == most_probable[rows[:, None], places]).cpu()  # shape: [R, most]
    return [
        Score(tuple(picked[row, : len(target)].tolist()), float(first[row]), bool(best[row, : len(target)].all()))
        for row, target in enumerate(targets)
    ]


def _reaches(router: Router, layers: int, token: int, prompt: int) -> bool:
    """Whether a set forced here can change a logit that is read: the last layer reaches its own token only."""
    return router.decoder_layer < layers - 1 or token >= prompt - 1


def _check_sets(router: Router, sets: Mapping[int, np.ndarray]) -> None:
    """Refuse sets that the architecture cannot select. Shapes: [N, top_k]."""
    for tried in sets.values():
        if tried.ndim == 2 and tried.shape[1] == router.top_k:
            ordered = np.sort(tried, 1)
            good = (ordered[:, 0] >= 0) & (ordered[:, -1] < router.experts) & (np.diff(ordered) > 0).all(1)
            groups = ordered // (router.experts // router.groups)
            good &= 1 + (np.diff(groups) > 0).sum(1) <= router.groups_used
            if good.all():
                continue
        bad = next((e for e in tried.tolist() if not isinstance(e, list) or not router.selectable(e)), tried.tolist())
        raise InterventionError(
            f"Layer {router.layer} cannot select experts {bad}",
            f"Give sets of {router.top_k} different experts of {router.experts}, such as those of Router.draw",
        )


def _forced(route: Mapping[tuple[int, int], Sequence[int]]) -> Intervention:
    return Intervention.force(dict(route), phase="prefill")


def _sums(log_p: Tensor) -> np.ndarray:
    """Shape: [R, kept] -> [R], float64."""
    total: np.ndarray = log_p.double().sum(-1).cpu().numpy()
    return total
