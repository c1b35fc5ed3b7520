"""`Tap`: what happens inside one router's forward. It sees the logits, edits them, and reads the choice back.

Nothing here knows a model by name. The one matrix product with a column for each expert is the raw logits; a top-k
over all experts is the choice, unless the router itself returns what it chose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pointsman.errors import UncontrollableRouter
from pointsman.routing.plan import Edits
from pointsman.routing.routers import Router

_INPUT_OF: dict[Callable[..., Any], tuple[int, str]] = {  # place and name of what is multiplied with the matrix
    F.linear: (0, "input"),
    torch.matmul: (0, "input"),
    torch.mm: (0, "input"),
    torch.Tensor.matmul: (0, "self"),
    torch.Tensor.__matmul__: (0, "self"),
    torch.Tensor.mm: (0, "self"),
    torch.Tensor.__rmatmul__: (1, "other"),
    torch.addmm: (1, "mat1"),
    torch.Tensor.addmm: (1, "mat1"),
}
_PRODUCTS = frozenset({*_INPUT_OF, torch.einsum, torch.bmm, torch.baddbmm})
_TOP_K = frozenset({torch.topk, torch.Tensor.topk})
_MAXIMA = frozenset({torch.max, torch.Tensor.max, torch.amax, torch.Tensor.amax})

_SELECTIONS = _TOP_K | _MAXIMA
_WATCHED = _PRODUCTS | _SELECTIONS

WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


class Tap(TorchFunctionMode):
    """Sees the operations of one router's forward: keeps the raw logits and the last top-k, applies the edits."""

    def __init__(self, router: Router, edits: Edits | None, tokens: int) -> None:
        self.raw: Tensor | None = None
        self.x: Tensor | None = None  # what the logits are a product of, if that can be told. Shape: [tokens, d]
        self.widths: list[int] = []  # columns of the products that are not the logits
        self.chosen: Tensor | None = None  # shape: [..., k], if the router has a top-k over all experts
        self._router = router
        self._edits = edits
        self._tokens = tokens

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _WATCHED:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        router, edits = self._router, self._edits
        if func in _SELECTIONS:
            if edits is not None and edits.outside is not None and self.raw is not None:
                if not args and isinstance(kwargs.get("input"), Tensor):
                    args = (kwargs.pop("input"),)
                args = self._choose_within(func, args, edits.outside)
            output = func(*args, **kwargs)
            if func in _TOP_K and output[1].numel() == self._tokens * router.top_k:
                self.chosen = output[1]
            return output
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[-1] != router.experts:
            self.widths.append(int(output.shape[-1]) if isinstance(output, Tensor) and output.dim() else 0)
            return output
        if self.raw is not None or output.numel() != self._tokens * router.experts:
            raise UncontrollableRouter(
                f"Router {router.path} computes more than one product with {router.experts} columns, or not one "
                "row for each token",
                "Please report this architecture; Pointsman does not guess which are the logits",
            )
        self.raw = output
        if edits is None:
            return output
        self.x = _input_of(func, args, kwargs, self._tokens)
        if output.dim() == 2:
            return edits.apply(output, self.x)
        return edits.apply(output.reshape(-1, router.experts), self.x).reshape(output.shape)

    def _choose_within(self, func: Callable[..., Any], args: tuple[Any, ...], outside: Tensor) -> tuple[Any, ...]:
        """Carry the mask out on the operand of a selection: the final top-k, or the scores of expert groups."""
        router = self._router
        operand = args[0] if args else None
        if not isinstance(operand, Tensor) or operand.dim() < 2 or operand.numel() != self._tokens * router.experts:
            return args
        closed = outside.to(operand.device)  # shape: [B * T, E] or [E]
        if operand.shape[-1] == router.experts:
            if func in _TOP_K:
                if closed.dim() == 2 and operand.dim() != 2:
                    closed = closed.reshape(operand.shape)
                return (operand.masked_fill(closed, float("-inf")), *args[1:])
        elif operand.shape[-1] * operand.shape[-2] == router.experts:
            # Groups rank by how many allowed experts they offer, then by score: every masked expert gets a finite
            # floor, so far below the others of its token that no allowed score makes up for it.
            finite = operand.masked_fill(~torch.isfinite(operand), 0.0)
            low, high = finite.amin((-1, -2), keepdim=True), finite.amax((-1, -2), keepdim=True)
            closed = closed.expand(self._tokens, -1).reshape(operand.shape)
            return (torch.where(closed, low - 2 * (high - low) - 1, operand), *args[1:])
        return args


def _input_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tokens: int) -> Tensor | None:
    """What a product with one matrix made the logits of; None where it is a product of another kind.

    Shape: [tokens, d].
    """
    place = _INPUT_OF.get(func)
    if place is None:
        return None
    number, name = place
    x = args[number] if len(args) > number else kwargs.get(name)
    if not isinstance(x, Tensor) or x.dim() < 2 or x.numel() // x.shape[-1] != tokens:
        return None
    return x.reshape(tokens, x.shape[-1])


def chosen_experts(output: Any, router: Router, tokens: int, chosen: Tensor | None) -> Tensor:
    """The experts that a router tells the model to use, from what it returns. Shape: [tokens, k].

    It returns them as an integer tensor with k columns; or as a score for every expert, zero where it is not used; or
    as tokens sorted by expert, with the number of tokens of each. The last two must agree with the top-k that was
    seen in its forward, and in nothing less than every token.

    Args:
        output: What the router returned.
        router: The router.
        tokens: B * T.
        chosen: The indices of its last top-k, if it had one. Shape: [..., k].

    Raises:
        UncontrollableRouter: It returns something else.
    """
    parts = list(output) if isinstance(output, tuple | list) else [output]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    found = [
        part
        for part in tensors
        if part.dtype in WHOLE and part.shape[-1:] == (router.top_k,) and part.dim() > 1
        if part.numel() == tokens * router.top_k
    ]
    if len(found) == 1:
        return found[0].reshape(-1, router.top_k).long()
    if chosen is not None and not found:
        seen = chosen.reshape(-1, router.top_k)
        if _scores_say(tensors, router, seen) or _lists_say(parts, router, seen):
            return seen
    raise UncontrollableRouter(
        f"Router {router.path} does not say which experts it chose",
        "Please report this architecture; without that, control cannot be checked",
    )


def _scores_say(tensors: list[Tensor], router: Router, seen: Tensor) -> bool:
    """Whether one of these tensors has a score for every expert, zero outside `seen`. Shape of `seen`: [tokens, k]."""
    size = len(seen) * router.experts
    tables = [t for t in tensors if t.is_floating_point() and t.shape[-1] == router.experts and t.numel() == size]
    empty = [not bool(t.reshape(-1, router.experts).scatter(-1, seen, 0.0).any()) for t in tables]
    return router.top_k < router.experts and sum(empty) == 1


def _lists_say(parts: list[Any], router: Router, seen: Tensor) -> bool:
    """Whether these are all (token, expert) pairs of `seen` sorted by expert, with the number of each expert."""
    counts = [p for p in parts if isinstance(p, list) and len(p) == router.experts and sum(p) == seen.numel()]
    orders = [p for p in parts if isinstance(p, Tensor) and p.dtype in WHOLE and p.shape == (seen.numel(),)]
    if len(counts) != 1 or len(orders) != 2:
        return False
    experts = torch.arange(router.experts, device=seen.device)
    sorted_ = experts.repeat_interleave(torch.tensor(counts[0], device=seen.device))  # shape: [tokens * k]
    for order, token in (orders, orders[::-1]):
        if torch.equal(token, order // router.top_k) and torch.equal(seen.flatten()[order], sorted_):
            return bool((order.sort()[0] == torch.arange(len(order), device=order.device)).all())
    return False


@dataclass(frozen=True)
class Weights:
    """Where in what a router returns the weights stand with which the chosen experts enter.

    Attributes:
        part: Which of its parts.
        column: Of every token and chosen expert, its place in that part, flattened. Shape: [tokens, k], int64.
    """

    part: int
    column: Tensor


def weights_among(parts: Sequence[Any], router: Router, chosen: Tensor) -> list[Weights]:
    """Where the weights of the chosen experts may stand among the parts that a router returns.

    They are a number for every chosen expert; or one for every expert, in the order of the experts; or one for every
    pair of token and expert, in the order in which the router lists them.

    Args:
        parts: What it returned.
        router: The router.
        chosen: The chosen experts. Shape: [tokens, k].
    """
    tokens, k = chosen.shape
    rows = torch.arange(tokens, device=chosen.device)[:, None]
    found = []
    for number, part in enumerate(parts):
        if not isinstance(part, Tensor) or not part.is_floating_point():
            continue
        if part.shape[-1:] == (k,) and part.numel() == tokens * k and part.dim() > 1:
            found.append(Weights(number, rows * k + torch.arange(k, device=chosen.device)))
        elif part.shape[-1:] == (router.experts,) and part.numel() == tokens * router.experts:
            found.append(Weights(number, rows * router.experts + chosen))
        elif part.dim() == 1 and part.numel() == tokens * k:
            order = _order_of_pairs(parts, chosen)
            if order is not None:
                found.append(Weights(number, order))
    return found


def _order_of_pairs(parts: Sequence[Any], chosen: Tensor) -> Tensor | None:
    """Of every token and chosen expert, its place in a list of all pairs sorted by expert. Shape: [tokens, k]."""
    for order in parts:
        if not isinstance(order, Tensor) or order.dtype not in WHOLE or order.shape != (chosen.numel(),):
            continue
        if not torch.equal(order.sort()[0], torch.arange(chosen.numel(), device=order.device)):
            continue
        by_expert = chosen.flatten()[order]
        if bool((by_expert.diff() >= 0).all()):
            place = torch.empty_like(order, dtype=torch.long)
            place[order.long()] = torch.arange(chosen.numel(), device=order.device)
            return place.reshape(chosen.shape)
    return None
