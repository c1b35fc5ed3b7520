"""`Plan`: a routing, resolved into tables once, so that a forward only looks them up.

What happens at a token depends on its row, its phase and its position, and there are few different answers. For each
layer the rules are resolved on the host into *entries* (entry 0: nothing) and a `lookup` from (row, phase, position)
to entry. The cost of a forward does not grow with the number of rules or rows that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InterventionError
from pointsman.routing.intervention import Intervention, Phase, Rule
from pointsman.routing.layout import PHASES_UNKNOWN, Layout
from pointsman.routing.low_rank import LowRankStep, low_rank_shift
from pointsman.routing.noise import NoiseStep
from pointsman.routing.routers import Router

_PAD, _OTHER, _NAMED = (
    0,
    1,
    2,
)  # slots of a lookup: padding, positions that no rule names, then the named ones

_Shift = tuple[str, tuple[Rule, ...], frozenset[int], frozenset[int]]
_Entry = tuple[tuple[_Shift, ...], frozenset[int] | None]


@dataclass
class Edits:
    """What happens to the logits of one router in one forward.

    Attributes:
        outside: Experts that are not allowed. Shape: [B * T, E], or [E] for all tokens; None if all are allowed.
    """

    outside: Tensor | None
    _table: _Table | None = None
    _entry: Tensor | int = 0
    _position: Tensor | None = None  # of every token, only if there is noise. Shape: [B * T]
    _learnt: _Learnt | None = None  # added before anything else; keeps its gradient

    def apply(self, logits: Tensor, x: Tensor | None = None) -> Tensor:
        """The edited logits, a new tensor. Shape: [B * T, E] -> [B * T, E].

        Args:
            logits: Shape: [B * T, E].
            x: What the router made them of; None where that cannot be told. Shape: [B * T, d].

        Raises:
            InterventionError: A rule depends on it, and it cannot be told.
        """
        steps: list[_Step] = []
        if self._learnt is not None:
            logits = self._learnt.apply(logits, x)
        if self._table is None:
            pass
        elif isinstance(self._entry, int):
            steps = self._table.steps_on(logits, self._entry)
        else:
            entry = self._entry.to(logits.device)
            steps = [step.at(entry) for step in self._table.steps_on(logits)]
        for step in steps:
            logits = step.apply(logits)
            if step.low_rank is not None:
                logits = step.low_rank.apply(logits, read(x), self._entry)
            if step.noise is not None and self._position is not None:
                logits = step.noise.apply(logits, self._entry, self._position)
        if self.outside is not None:
            logits = logits.masked_fill(self.outside.to(logits.device), float("-inf"))
        return logits


@dataclass(frozen=True)
class Forced:
    """A set forced in each row at one layer, on top of a plan: the quick way for route searches.

    Attributes:
        layer: MoE layer.
        token: Position; None for every token, padding included.
        experts: The set of each row. Shape: [B, k], int64.
    """

    layer: int
    token: int | None
    experts: Tensor

    def join(self, edits: Edits | None, layout: Layout, router: Router) -> Edits:
        """These sets, and what the plan does at this router."""
        position = layout.position  # shape: [B, T]
        closed = torch.ones(len(self.experts), router.experts, dtype=torch.bool, device=position.device)
        closed.scatter_(1, self.experts.to(position.device), False)
        here = torch.ones_like(position, dtype=torch.bool) if self.token is None else position == self.token
        outside = (here[..., None] & closed[:, None]).reshape(-1, router.experts)  # shape: [B * T, E]
        if edits is None:
            return Edits(outside)
        before = edits.outside
        return replace(edits, outside=outside if before is None else outside | before.to(outside.device))


@dataclass(frozen=True)
class Trainable:
    """What is being learnt: added to the raw logits, on top of a plan, and gradients flow through it.

    Attributes:
        vectors: One per MoE layer, None for none, in logit units; empty for none at all. Shapes: [E].
        phase: Of the tokens that get it.
        maps: A, B and b (None for a linear one) per MoE layer, as in `LowRank`; empty for none at all.
    """

    vectors: Sequence[Tensor | None] = ()
    phase: Phase = "both"
    maps: Sequence[tuple[Tensor, Tensor, Tensor | None] | None] = ()

    def join(self, edits: Edits | None, layout: Layout, layer: int) -> Edits | None:
        """What is learnt of this router, and what the plan does there."""
        vector = self.vectors[layer] if self.vectors else None
        one = self.maps[layer] if self.maps else None
        if vector is None and one is None:
            return edits
        here = None
        if self.phase != "both":
            here = (layout.decode if self.phase == "decode" else ~layout.decode).reshape(-1, 1)  # shape: [B * T, 1]
        return replace(edits or Edits(None), _learnt=_Learnt(vector, one, here))


@dataclass(frozen=True)
class _Learnt:
    """What is learnt of one router, in one forward.

    Attributes:
        vector: Shape: [E].
        low_rank: A, B and b.
        here: Tokens that get it; None for all. Shape: [B * T, 1], bool.
    """

    vector: Tensor | None
    low_rank: tuple[Tensor, Tensor, Tensor | None] | None
    here: Tensor | None

    def apply(self, logits: Tensor, x: Tensor | None) -> Tensor:
        """Shape: [B * T, E] -> [B * T, E]."""
        shift = self.vector
        if self.low_rank is not None:
            down, up, threshold = (part if part is None else part.to(logits.device) for part in self.low_rank)
            assert down is not None
            assert up is not None
            more = low_rank_shift(read(x).to(down.dtype), down, up, threshold)
            shift = more if shift is None else shift + more
        assert shift is not None
        if self.here is not None:
            shift = self.here.to(shift) * shift  # shape: [B * T, E]
        return logits + shift.to(logits)


def read(x: Tensor | None) -> Tensor:
    """What a router reads.

    Raises:
        InterventionError: It cannot be told.
    """
    if x is None:
        raise InterventionError(
            "A conditional rule on a router whose logits are not a product of one input and one matrix",
            "Use a constant rule (Intervention.bias) on this architecture",
        )
    return x


@dataclass
class _Step:
    """One rule of each kind for every entry (S of them); zeros where an entry has none."""

    bias: Tensor | None = None  # shape: [S, E]
    tilt: Tensor | None = None  # a bias in units of each token's own standard deviation. Shape: [S, E]
    on: Tensor | None = None  # shape: [S, E], bool
    off: Tensor | None = None  # shape: [S, E], bool
    eps: Tensor | None = None  # shape: [S, 1]
    noise: NoiseStep | None = None
    low_rank: LowRankStep | None = None

    def at(self, entry: Tensor | int) -> _Step:
        """The rows of these entries: S becomes B * T, or is gone for a single entry."""
        tables = (self.bias, self.tilt, self.on, self.off, self.eps)
        bias, tilt, on, off, eps = (None if t is None else t[entry] for t in tables)
        return _Step(bias, tilt, on, off, eps, self.noise, self.low_rank)

    def apply(self, logits: Tensor) -> Tensor:
        """Shape: [B * T, E] -> [B * T, E]."""
        if self.bias is not None:
            logits = logits + self.bias
        if self.tilt is not None:
            logits = logits + self.tilt * _spread(logits)
        if self.on is not None and self.off is not None and self.eps is not None:
            high, low = logits.amax(-1, keepdim=True) + self.eps, logits.amin(-1, keepdim=True) - self.eps
            logits = torch.where(self.off, low, torch.where(self.on, high, logits))
        return logits

    def like(self, logits: Tensor) -> _Step:
        """The same step in the dtype and on the device of these logits."""

        def cast(table: Tensor | None) -> Tensor | None:
            if table is None or table.dtype == torch.bool:
                return table if table is None else table.to(logits.device)
            cast_to = table.to(logits.dtype)
            if not bool(torch.isfinite(cast_to).all()):
                raise InterventionError(
                    f"A bias or eps is too large for a router that computes in {logits.dtype}",
                    "Use a smaller one, or a mask: it does not depend on size",
                )
            return cast_to.to(logits.device)

        bias, tilt, on, off, eps = map(cast, (self.bias, self.tilt, self.on, self.off, self.eps))
        return _Step(bias, tilt, on, off, eps, self.noise, self.low_rank)


@dataclass
class _Table:
    """The resolved rules of one layer."""

    lookup: np.ndarray  # (row, phase, slot) -> entry. Shape: [rows, 2, slots], int64
    outside: Tensor | None  # shape: [S, E], bool
    steps: list[_Step]
    _on: dict[object, Tensor] = field(default_factory=dict)
    _steps_on: dict[tuple[torch.dtype, torch.device, int | None], list[_Step]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.noisy = any(step.noise is not None for step in self.steps)
        real = self.lookup[:, :, _OTHER:]
        self.constant: list[int | None] = [  # of each phase: the entry of every real token, if there is only one
            int(real[0, phase, 0]) if (real[:, phase] == real[0, phase, 0]).all() else None for phase in (0, 1)
        ]

    def steps_on(self, logits: Tensor, entry: int | None = None) -> list[_Step]:
        """The steps like these logits: of all entries, or of one that holds for all tokens."""
        key = (logits.dtype, logits.device, entry)
        if key not in self._steps_on:
            steps = [step.like(logits) for step in self.steps]
            self._steps_on[key] = steps if entry is None else [step.at(entry) for step in steps]
        return self._steps_on[key]

    def lookup_on(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = torch.from_numpy(self.lookup.reshape(-1)).to(device)
        return self._on[device]

    def outside_on(self, device: torch.device) -> Tensor | None:
        if self.outside is None:
            return None
        key = ("outside", device)
        if key not in self._on:
            self._on[key] = self.outside.to(device)
        return self._on[key]

    def outside_of(self, entry: int, device: torch.device) -> Tensor | None:
        """Of an entry that holds for all tokens. Shape: [E]."""
        table = self.outside_on(device)
        key = (entry, device)
        if table is not None and key not in self._on:
            self._on[key] = table[entry]
        return self._on.get(key)


class Plan:
    """A routing (one intervention for all rows, or one for each), ready to be looked up in every forward.

    Raises:
        InterventionError: Rules that meet at one token leave too few experts for any selection.
    """

    def __init__(self, routing: Intervention | Sequence[Intervention | None], routers: Sequence[Router]) -> None:
        each = [routing] if isinstance(routing, Intervention) else list(routing)
        rules = [i.rules if i is not None else () for i in each]
        named = sorted({r for row in rules for rule in row for r in rule.where.rows or ()})
        self.rows: int | None = None
        self._last_row = named[-1] if named else -1
        if isinstance(routing, Intervention):  # the rows that its rules name, and (the last kind) all others
            self._kinds = {row: kind for kind, row in enumerate(named)}
            kinds: list[int | None] = [*named, None]
            rules = rules * len(kinds)
        else:
            self.rows = len(each)
            self._kinds = {row: row for row in range(len(each))}
            kinds = list(range(len(each)))
        self._rules = [
            [rule for rule in row if rule.where.rows is None or kind in rule.where.rows]
            for kind, row in zip(kinds, rules, strict=True)
        ]
        places = {p for rule in {id(r): r for row in self._rules for r in row}.values() for p in rule.places()}
        self._places = torch.tensor(sorted(places), dtype=torch.long)  # shape: [named positions]
        layers = sorted({layer for row in self._rules for rule in row for layer in rule.layers})
        self.phased = any(rule.where.phase != "both" for row in self._rules for rule in row)
        self._tables = {layer: self._resolve(routers[layer]) for layer in layers}
        self._layout: Layout | None = None
        self._index: Tensor | None = None

    def begin(self, layout: Layout) -> None:
        """Start a forward: check that the batch is the one that the routing was made for."""
        prompts = layout.prompts
        if self.rows is not None and prompts != self.rows:
            raise InterventionError(
                f"{self.rows} interventions for a batch of {prompts} rows",
                "Give one intervention for each row, or a single one for all",
            )
        if self._last_row >= prompts:
            raise InterventionError(f"A rule names row {self._last_row} of a batch of {prompts}", "Count rows from 0")
        if self.phased and not layout.phases_known:
            raise InterventionError(
                "A rule of one phase, and a forward whose tokens may be prompt or answer",
                f"{PHASES_UNKNOWN}; or make the rule one of both phases",
            )
        self._layout, self._index = layout, None

    def edits(self, layer: int) -> Edits | None:
        """What to do at this router in the forward begun last, or None if no rule reaches any of its tokens."""
        table = self._tables.get(layer)
        layout = self._layout
        if table is None or layout is None:
            return None
        before, after = table.constant
        if not layout.prefill_possible:
            before = after
        elif not layout.decode_possible:
            after = before
        if before == 0 == after:
            return None
        device = layout.position.device
        position = layout.position.reshape(-1) if table.noisy else None
        if before is not None and before == after:  # padding gets it too, which no real token can see
            return Edits(table.outside_of(before, device), table, before, position)
        if self._index is None:
            self._index = self._index_of(layout)
        entry = table.lookup_on(device)[self._index]  # shape: [B * T]
        outside = table.outside_on(device)
        return Edits(None if outside is None else outside[entry], table, entry, position)

    def _index_of(self, layout: Layout) -> Tensor:
        """Of every token, its place in a flat lookup. Shape: [B * T], int64."""
        position = layout.position  # shape: [B, T]
        batch = position.shape[0]
        slot = torch.full_like(position, _OTHER)
        count = len(self._places)
        if count:
            places = self._places.to(position.device)
            near = torch.searchsorted(places, position.contiguous()).clamp(max=count - 1)
            slot = torch.where(places[near] == position, near + _NAMED, slot)
        slot = slot.masked_fill(position < 0, _PAD)
        others = len(self._rules) - 1
        kinds = torch.tensor(
            [self._kinds.get(row // layout.copies, others) for row in range(batch)], device=position.device
        )
        return ((kinds[:, None] * 2 + layout.decode) * (count + _NAMED) + slot).reshape(-1)

    def _resolve(self, router: Router) -> _Table:
        """The table of one layer."""
        slot_of = {int(place): n + _NAMED for n, place in enumerate(self._places)}
        lookup = np.zeros((len(self._rules), 2, len(slot_of) + _NAMED), dtype=np.int64)
        entries: dict[_Entry, int] = {((), None): 0}
        alike: dict[tuple[int, ...], int] = {}  # rows with the same rules here are resolved once
        for row, row_rules in enumerate(self._rules):
            rules = [rule for rule in row_rules if router.layer in rule.layers]
            key = tuple(id(rule) for rule in rules)
            if key in alike:
                lookup[row] = lookup[alike[key]]
                continue
            alike[key] = row
            here = {p for rule in rules for p in rule.places(router.layer)}
            for phase, name in enumerate(("prefill", "decode")):
                active = [rule for rule in rules if rule.where.phase in (name, "both")]
                if not active:
                    continue
                other = entries.setdefault(_entry(active, router, None), len(entries))
                lookup[row, phase, _OTHER:] = other
                for place in here:
                    entry = _entry(active, router, place)
                    lookup[row, phase, slot_of[place]] = entries.setdefault(entry, len(entries))
        return _Table(lookup, _outside(entries, router), _steps(entries, router))


def _entry(rules: Sequence[Rule], router: Router, place: int | None) -> _Entry:
    """What these rules do at one position (None: at any that no rule names)."""
    layer = router.layer
    shifts: list[_Shift] = []
    allowed: frozenset[int] | None = None
    for rule in rules:
        if rule.where.positions is not None and place not in rule.positions:
            continue
        if rule.kind == "bias" and rule.per_token:
            shifts.append(("tilt", (rule,), frozenset(), frozenset()))
            continue
        if rule.kind == "bias":
            earlier = shifts.pop()[1] if shifts and shifts[-1][0] == "bias" else ()
            shifts.append(("bias", (*earlier, rule), frozenset(), frozenset()))
            continue
        if rule.kind in ("noise", "conditional"):
            shifts.append((rule.kind, (rule,), frozenset(), frozenset()))
            continue
        here = {None, place}
        sets = [rule.placed[layer, p] for p in here if (layer, p) in rule.placed]
        if rule.kind == "pin":
            off = [rule.stopped_at[layer, p] for p in here if (layer, p) in rule.stopped_at]
            if sets or off:
                shifts.append(("pin", (rule,), frozenset().union(*sets), frozenset().union(*off)))
            continue
        for chosen in sets:
            allowed = chosen if allowed is None else allowed & chosen
    if allowed is not None and not router.can_fill(allowed):
        where = f"layer {layer}" + ("" if place is None else f", position {place}")
        raise InterventionError(
            f"The masks that meet at {where} leave experts {sorted(allowed)}, from which top-{router.top_k} cannot "
            "be selected",
            "Masks add up to their intersection: remove one, or give them different phases, positions or rows",
        )
    if allowed is not None and len(allowed) == router.experts:
        allowed = None
    return tuple(shifts), allowed


def _spread(logits: Tensor) -> Tensor:
    """Standard deviation of each token's logits; in float32 at least, in which squares of float16 fit.

    Shape: [B * T, E] -> [B * T, 1].
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.std(-1, keepdim=True, unbiased=False).to(logits.dtype)


def _outside(entries: dict[_Entry, int], router: Router) -> Tensor | None:
    if all(allowed is None for _, allowed in entries):
        return None
    table = np.zeros((len(entries), router.experts), dtype=np.bool_)
    for (_, allowed), n in entries.items():
        if allowed is not None:
            table[n] = True
            table[n, list(allowed)] = False
    return torch.from_numpy(table)


def _steps(entries: dict[_Entry, int], router: Router) -> list[_Step]:
    steps: list[_Step] = []
    size = (len(entries), router.experts)
    for depth in range(max(len(shifts) for shifts, _ in entries)):
        step = _Step()
        for (shifts, _), n in entries.items():
            if depth >= len(shifts):
                continue
            kind, rules, on, off = shifts[depth]
            if kind == "bias":
                if step.bias is None:
                    step.bias = torch.zeros(size, dtype=torch.float64)
                for rule in rules:
                    step.bias[n] += torch.tensor(rule.vector_of[router.layer], dtype=torch.float64)
            elif kind == "tilt":
                if step.tilt is None:
                    step.tilt = torch.zeros(size, dtype=torch.float64)
                step.tilt[n] = torch.tensor(rules[0].vector_of[router.layer], dtype=torch.float64)
            elif kind == "noise":
                if step.noise is None:
                    step.noise = NoiseStep(router.layer, router.experts, [None] * len(entries))
                step.noise.rules[n] = rules[0]
            elif kind == "conditional":
                if step.low_rank is None:
                    step.low_rank = LowRankStep([None] * len(entries))
                step.low_rank.maps[n] = rules[0].map_of[router.layer]
            else:
                if step.on is None or step.off is None or step.eps is None:
                    step.on, step.off = (
                        torch.zeros(size, dtype=torch.bool),
                        torch.zeros(size, dtype=torch.bool),
                    )
                    step.eps = torch.zeros(len(entries), 1, dtype=torch.float64)
                step.on[n, list(on)] = True
                step.off[n, list(off)] = True
                step.eps[n] = rules[0].eps
        steps.append(step)
    return steps
