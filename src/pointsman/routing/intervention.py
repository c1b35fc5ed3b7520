"""`Intervention`: what to do to the routers, as plain data. METHODS section 0.

An intervention is a sum of rules. A rule acts on the raw router logits r[l, t] of MoE layer l and token t, before
the architecture's own softmax, sigmoid, grouping, bias or top-k:

=========== ====================================================== ===================
rule        effect on r[l, t]                                      source
=========== ====================================================== ===================
mask        r[e] = -inf for every expert e outside an allowed set  arXiv 2602.08621
force       mask with exactly top-k experts allowed                arXiv 2602.08621
bias        r + vector[l]; per token: r + vector[l] * std(r)       arXiv 2604.27818
conditional r + B[l] A[l] x, x the input of the router at t        METHODS section 10
pin         r[e] = max(r) + eps to activate, min(r) - eps to stop  arXiv 2509.09660
noise       r + std[l] * z, z standard normal                      METHODS section 2
=========== ====================================================== ===================

`mask` and `force` promise the *selection*. All other rules are applied first, in their order; then all masks (their
intersection), so no bias can bring a masked expert back. This file is data and arithmetic on it;
`control.py` carries it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from pointsman.errors import InterventionError, WrongModel
from pointsman.routing.low_rank import PARTS, LowRank
from pointsman.routing.phase import Phase as Phase
from pointsman.routing.routers import Router

Kind = Literal["mask", "force", "bias", "conditional", "pin", "noise"]
Layers = int | Iterable[int]

SCHEMA = "pointsman.intervention/1"
_KINDS = get_args(Kind)
_PHASES = ("prefill", "decode", "both")
_Built = TypeVar("_Built")


@dataclass(frozen=True)
class Where:
    """To which tokens a rule applies.

    Attributes:
        phase: ``prefill`` (prompt tokens), ``decode`` (generated or teacher-forced answer tokens) or ``both``.
        positions: Token positions, counted from the first real token of each row; None for all. Left padding does
            not shift them.
        rows: Rows of the batch; None for all.
    """

    phase: Phase = "both"
    positions: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.phase not in _PHASES:
            raise InterventionError(f"Unknown phase {self.phase!r}", f"Use one of {', '.join(_PHASES)}")
        for name in ("positions", "rows"):
            values = getattr(self, name)
            if values is not None and not values:
                raise InterventionError(f"An empty list of {name}", f"Name at least one, or leave {name} out for all")
            if values is not None and any(v < 0 for v in values):
                raise InterventionError(
                    f"Negative {name} {sorted(values)[0]}",
                    f"Count {name} from 0, the first real token or row",
                )


@dataclass(frozen=True)
class Selection:
    """Experts of one layer, at one token position or (None) at all that the rule's `Where` names."""

    layer: int
    experts: tuple[int, ...]
    position: int | None = None


@dataclass(frozen=True)
class Rule:
    """One rule. Made by the constructors of `Intervention`, which check it.

    Attributes:
        kind: mask, force, bias, conditional, pin or noise.
        where: The tokens it applies to.
        selections: For mask and force the allowed experts; for pin those to activate.
        stopped: For pin, the experts to deactivate.
        vectors: For bias, one vector per layer: (layer, values of shape [E]), in logit units.
        per_token: For bias, whether the vectors are in units of the standard deviation of each token's own logits.
        maps: For conditional, (layer, what is added as a function of the router's input).
        eps: For pin, the margin in logit units.
        stds: For noise, (layer, standard deviation in logit units).
        seed: For noise.
    """

    kind: Kind
    where: Where = Where()
    selections: tuple[Selection, ...] = ()
    stopped: tuple[Selection, ...] = ()
    vectors: tuple[tuple[int, tuple[float, ...]], ...] = ()
    eps: float = 1.0
    stds: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    per_token: bool = False
    maps: tuple[tuple[int, LowRank], ...] = ()

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """MoE layers that the rule touches, ascending."""
        touched = {s.layer for s in self.selections} | {s.layer for s in self.stopped}
        return tuple(sorted(touched | {layer for layer, _ in (*self.vectors, *self.stds, *self.maps)}))

    @cached_property
    def placed(self) -> dict[tuple[int, int | None], frozenset[int]]:
        """The experts selected (for pin: activated) at each layer and position (None: at all)."""
        return {(s.layer, s.position): frozenset(s.experts) for s in self.selections}

    @cached_property
    def stopped_at(self) -> dict[tuple[int, int | None], frozenset[int]]:
        """For pin, the experts deactivated at each layer and position (None: at all)."""
        return {(s.layer, s.position): frozenset(s.experts) for s in self.stopped}

    @cached_property
    def vector_of(self) -> dict[int, tuple[float, ...]]:
        """For bias, the vector of each layer."""
        return dict(self.vectors)

    @cached_property
    def std_of(self) -> dict[int, float]:
        """For noise, the standard deviation of each layer, in logit units."""
        return dict(self.stds)

    @cached_property
    def map_of(self) -> dict[int, LowRank]:
        """For conditional, what is added at each layer."""
        return dict(self.maps)

    @cached_property
    def positions(self) -> frozenset[int]:
        """The positions of `where`, for looking up."""
        return frozenset(self.where.positions or ())

    @cached_property
    def _places(self) -> dict[int, frozenset[int]]:
        grouped: dict[int, set[int]] = {layer: set(self.positions) for layer in self.layers}
        for selection in self.selections + self.stopped:
            if selection.position is not None:
                grouped[selection.layer].add(selection.position)
        return {layer: frozenset(places) for layer, places in grouped.items()}

    def places(self, layer: int | None = None) -> frozenset[int]:
        """Positions that the rule names, in one layer or (None) in any."""
        if layer is not None:
            return self._places.get(layer, frozenset())
        return frozenset().union(*self._places.values())


@dataclass(frozen=True)
class Intervention:
    """A sum of rules: immutable, hashable, savable. ``a + b`` applies both.

    Attributes:
        rules: The rules, in order.
        fingerprint: The model it was made for; None fits any model whose layers and experts it names. With a
            fingerprint it is refused on another model.
        notes: Free text kept with it.
    """

    rules: tuple[Rule, ...] = ()
    fingerprint: str | None = None
    notes: str = field(default="", compare=False)

    @staticmethod
    def mask(
        experts: Mapping[int, Iterable[int]] | Iterable[int],
        *,
        layers: Layers | None = None,
        phase: Phase = "both",
        positions: Iterable[int] | None = None,
        rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Allow only `experts`: no other expert of these layers is used.

        Args:
            experts: Allowed experts, as ``{layer: experts}``, or one set for all of `layers`.
            layers: MoE layers, needed if `experts` is one set.
            phase, positions, rows: See `Where`.
        """
        where = _where(phase, positions, rows)
        return Intervention((Rule("mask", where, selections=_selections(experts, layers, "mask")),))

    @staticmethod
    def force(
        experts: Mapping[int, Iterable[int]] | Mapping[tuple[int, int], Iterable[int]] | Iterable[int],
        *,
        layers: Layers | None = None,
        phase: Phase = "both",
        positions: Iterable[int] | None = None,
        rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Select exactly these experts (top-k of them), weighted by the model's own rule.

        Args:
            experts: ``{layer: experts}``; or a route, ``{(layer, position): experts}`` (METHODS section 3); or one
                set for all of `layers`.
            layers, phase, positions, rows: As for `mask`.
        """
        where = _where(phase, positions, rows)
        return Intervention((Rule("force", where, selections=_selections(experts, layers, "force")),))

    @staticmethod
    def bias(
        vectors: Mapping[int, Sequence[float] | np.ndarray],
        *,
        alpha: float = 1.0,
        per_token: bool = False,
        phase: Phase = "both",
        positions: Iterable[int] | None = None,
        rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Add ``alpha * vectors[layer]`` to the raw logits.

        Args:
            vectors: One vector for each layer, shape [E], in logit units (sigma already multiplied in).
            alpha: Strength, a finite factor.
            per_token: The vectors are in units of sigma instead, which is for each token the standard deviation over
                the E logits that the rules before have left it (divided by E, not E - 1).
            phase, positions, rows: See `Where`.
        """
        if not isinstance(per_token, bool):
            raise InterventionError(f"per_token is {per_token!r}", "Use True or False")
        built: list[tuple[int, tuple[float, ...]]] = []
        for layer, vector in sorted((_natural(key, "layer"), value) for key, value in vectors.items()):
            try:
                with np.errstate(over="ignore", invalid="ignore"):
                    scaled = (np.asarray(vector, dtype=np.float64) * alpha).astype(np.float32)  # shape: [E]
            except (TypeError, ValueError) as error:
                raise InterventionError(
                    f"The bias of layer {layer} is not numbers ({error})", "Give one finite number per expert"
                ) from error
            if scaled.ndim != 1 or not len(scaled) or not np.isfinite(scaled).all():
                raise InterventionError(
                    f"The bias of layer {layer} is not a finite vector in float32",
                    "Give one finite number per expert",
                )
            built.append((layer, tuple(scaled.tolist())))
        if not built:
            raise InterventionError("A bias without layers", "Give at least one {layer: vector}")
        rule = Rule("bias", _where(phase, positions, rows), vectors=tuple(built), per_token=per_token)
        return Intervention((rule,))

    @staticmethod
    def conditional(
        maps: Mapping[int, LowRank],
        *,
        alpha: float = 1.0,
        phase: Phase = "both",
        positions: Iterable[int] | None = None,
        rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Add ``alpha * B A x`` to the raw logits, x the input of the router at that token (METHODS section 10).

        Args:
            maps: For each layer A and B of rank q, in logit units.
            alpha: Strength, a finite factor.
            phase, positions, rows: See `Where`.
        """
        built: list[tuple[int, LowRank]] = []
        for layer, one in sorted((_natural(key, "layer"), value) for key, value in maps.items()):
            if not isinstance(one, LowRank):
                raise InterventionError(
                    f"The conditional rule of layer {layer} is {type(one).__name__}", "Give LowRank(down, up)"
                )
            built.append((layer, one if alpha == 1 else one.scaled(alpha)))
        if not built:
            raise InterventionError("A conditional rule without layers", "Give at least one {layer: LowRank}")
        return Intervention((Rule("conditional", _where(phase, positions, rows), maps=tuple(built)),))

    @staticmethod
    def pin(
        activate: Mapping[int, Iterable[int]] | None = None,
        deactivate: Mapping[int, Iterable[int]] | None = None,
        *,
        eps: float = 1.0,
        phase: Phase = "both",
        positions: Iterable[int] | None = None,
        rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Lift experts to ``max(r) + eps`` and push others to ``min(r) - eps`` (SteerMoE, arXiv 2509.09660)."""
        on = _selections(activate or {}, None, "pin", allow_empty=True)
        off = _selections(deactivate or {}, None, "pin", allow_empty=True)
        if not on and not off:
            raise InterventionError("A pin without experts", "Name experts to activate or to deactivate")
        both = {(s.layer, e) for s in on for e in s.experts} & {(s.layer, e) for s in off for e in s.experts}
        if both:
            layer, expert = sorted(both)[0]
            raise InterventionError(f"Expert {expert} of layer {layer} is pinned on and off", "Name it once, on or off")
        if not isinstance(eps, int | float | np.number) or not 0 < eps <= float(np.finfo(np.float32).max):
            raise InterventionError(f"eps {eps!r} is not a positive, finite number", "Use for example eps=1.0")
        rule = Rule("pin", _where(phase, positions, rows), selections=on, stopped=off, eps=float(eps))
        return Intervention((rule,))

    @staticmethod
    def noise(
        stds: Mapping[int, float],
        *,
        seed: int,
        phase: Phase = "both",
        positions: Iterable[int] | None = None,
        rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Add Gaussian noise to the raw logits: ``stds[layer] * z``, independent for every expert.

        z is a pure function of seed, layer, position and expert. So rows with the same seed get the same noise,
        whatever is beside them: give each row an intervention with a seed of its own for independent noise.

        Args:
            stds: Standard deviation for each layer, in logit units (sigma already multiplied in).
            seed: From 0 to 2^64 - 1.
            phase, positions, rows: See `Where`.
        """
        built: list[tuple[int, float]] = []
        for layer, std in sorted((_natural(key, "layer"), value) for key, value in stds.items()):
            number = isinstance(std, int | float | np.number) and not isinstance(std, bool)
            if not number or not 0 < std <= float(np.finfo(np.float32).max):
                raise InterventionError(
                    f"The noise of layer {layer} has a standard deviation of {std!r}",
                    "Give a positive, finite number, or leave the layer out",
                )
            built.append((layer, float(std)))
        if not built:
            raise InterventionError("A noise without layers", "Give at least one {layer: standard deviation}")
        if _natural(seed, "seed") >= 1 << 64:
            raise InterventionError(f"A seed of {seed}", "Give one from 0 to 2^64 - 1")
        rule = Rule("noise", _where(phase, positions, rows), stds=tuple(built), seed=int(seed))
        return Intervention((rule,))

    def __add__(self, other: Intervention) -> Intervention:
        """Both: the rules of the left one, then those of the right one."""
        if not isinstance(other, Intervention):
            return NotImplemented
        prints = {p for p in (self.fingerprint, other.fingerprint) if p}
        if len(prints) > 1:
            raise WrongModel(
                f"These interventions are for different models ({' and '.join(sorted(prints))})",
                "Add only interventions made for one model",
            )
        notes = "; ".join(n for n in (self.notes, other.notes) if n)
        return Intervention(self.rules + other.rules, next(iter(prints), None), notes)

    def __bool__(self) -> bool:
        return bool(self.rules)

    def for_model(self, fingerprint: str) -> Intervention:
        """The same intervention, bound to the model with this fingerprint."""
        return replace(self, fingerprint=fingerprint)

    def check(self, routers: Sequence[Router], fingerprint: str | None = None) -> None:
        """Refuse what these routers cannot carry out, before anything is run.

        Raises:
            WrongModel: It was made for another model.
            InterventionError: A layer or expert does not exist, a mask leaves fewer than top-k, a forced set is
                not one that the architecture can select.
        """
        if self.fingerprint and fingerprint and self.fingerprint != fingerprint:
            raise WrongModel(
                f"This intervention is for {self.fingerprint}, and the model is {fingerprint}",
                "Load the model it was made for, or find the intervention again on this one",
            )
        for rule in self.rules:
            for layer in rule.layers:
                if layer >= len(routers):
                    raise InterventionError(
                        f"There is no MoE layer {layer}: the model has {len(routers)}",
                        f"Count MoE layers from 0 to {len(routers) - 1}",
                    )
            for layer, vector in rule.vectors:
                if len(vector) != routers[layer].experts:
                    raise InterventionError(
                        f"The bias of layer {layer} has {len(vector)} entries for {routers[layer].experts} experts",
                        "Give one number per expert",
                    )
            for layer, one in rule.maps:
                _check_map(one, routers[layer])
            for selection in rule.selections + rule.stopped:
                _check_selection(rule.kind, selection, routers[selection.layer])

    # -- saving ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As JSON data. Vectors and matrices are included as lists; `save` puts them into safetensors instead."""
        rules = [_rule_to_json(rule) for rule in self.rules]
        for data, rule in zip(rules, self.rules, strict=True):
            if rule.vectors:
                data["vectors"] = {str(layer): list(vector) for layer, vector in rule.vectors}
            if rule.maps:
                data["maps"] = {str(layer): one.to_json() for layer, one in rule.maps}
        return {"schema": SCHEMA, "fingerprint": self.fingerprint, "notes": self.notes, "rules": rules}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Intervention:
        """The inverse of `to_json`; everything is checked again, since the file is untrusted."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise InterventionError(
                f"Not an intervention file (schema {data.get('schema') if isinstance(data, Mapping) else None!r})",
                f"Expected a file with schema {SCHEMA!r}, as written by Intervention.save",
            )
        try:
            rules = [rule for part in data["rules"] for rule in _rule_from_json(part).rules]
            notes, made_for = str(data.get("notes", "")), data.get("fingerprint")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InterventionError(
                f"The intervention file is damaged ({type(error).__name__}: {error})", "Save it again"
            ) from error
        if made_for is not None and not isinstance(made_for, str):
            raise InterventionError("The intervention file's fingerprint is not text", "Save it again")
        return Intervention(tuple(rules), made_for, notes)

    def save(self, folder: str | Path) -> Path:
        """Write ``intervention.json``, and ``intervention.safetensors`` for vectors and matrices, into `folder`.

        Returns:
            The folder.
        """
        from safetensors.numpy import save_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"rules.{n}.layers.{layer}": np.asarray(vector, dtype=np.float32)  # shape: [E]
            for n, rule in enumerate(self.rules)
            for layer, vector in rule.vectors
        }
        tensors |= {
            f"rules.{n}.layers.{layer}.{part}": np.ascontiguousarray(value)
            for n, rule in enumerate(self.rules)
            for layer, one in rule.maps
            for part in PARTS
            if (value := getattr(one, part)) is not None
        }
        if tensors:
            save_file(tensors, target / "intervention.safetensors")
        else:
            (target / "intervention.safetensors").unlink(missing_ok=True)
        data = {"schema": SCHEMA, "fingerprint": self.fingerprint, "notes": self.notes,
                "rules": [_rule_to_json(rule) for rule in self.rules]}  # fmt: skip
        (target / "intervention.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        return target

    @staticmethod
    def load(folder: str | Path) -> Intervention:
        """Read what `save` wrote."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        source = Path(folder)
        path = source / "intervention.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InterventionError(
                f"Cannot read {path} ({error.strerror or error})",
                "Give the folder that Intervention.save wrote",
            ) from error
        except (ValueError, RecursionError) as error:
            raise InterventionError(f"{path} is not JSON ({error})", "Save the intervention again") from error
        rules = data.get("rules") if isinstance(data, dict) else None
        each = [rule for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []
        holders = {"bias": "vectors", "conditional": "maps"}
        with_tensors = [rule for rule in each if rule.get("kind") in holders]
        if with_tensors:
            for rule in with_tensors:
                rule[holders[rule["kind"]]] = {}
            try:
                tensors = load_file(source / "intervention.safetensors")
                for key, value in tensors.items():
                    _, n, _, layer, *part = key.split(".")
                    rule = data["rules"][int(n)]
                    if part:
                        rule["maps"].setdefault(layer, {})[part[0]] = value
                    else:
                        rule["vectors"][layer] = value.tolist()
            except (OSError, SafetensorError, ValueError, KeyError, IndexError, TypeError) as error:
                raise InterventionError(
                    f"Cannot read the numbers in {source / 'intervention.safetensors'} ({error})",
                    "Keep intervention.json and intervention.safetensors together, or save again",
                ) from error
        return Intervention.from_json(data)


def _check_map(one: LowRank, router: Router) -> None:
    if one.experts != router.experts or (router.width is not None and one.width != router.width):
        raise InterventionError(
            f"The conditional rule of layer {router.layer} is for {one.experts} experts and an input of {one.width}, "
            f"and the router has {router.experts} and reads {router.width or 'an input of unknown width'}",
            "Give down [q, d] and up [E, q]",
        )


def _check_selection(kind: Kind, selection: Selection, router: Router) -> None:
    experts = set(selection.experts)
    outside = sorted(e for e in experts if e >= router.experts)
    if outside:
        raise InterventionError(
            f"Layer {selection.layer} has no expert {outside[0]}: it has {router.experts}",
            f"Count experts from 0 to {router.experts - 1}",
        )
    if kind == "mask" and len(experts) < router.top_k:
        raise InterventionError(
            f"The mask of layer {selection.layer} allows {len(experts)} experts, fewer than its top-{router.top_k}",
            f"Allow at least {router.top_k}",
        )
    if kind == "mask" and not router.can_fill(experts):
        raise InterventionError(
            f"Layer {selection.layer} selects within {router.groups_used} of {router.groups} expert groups, in which "
            f"the mask {sorted(experts)} never allows {router.top_k} experts",
            "Allow more experts in the same groups",
        )
    if kind == "force" and len(experts) != router.top_k:
        raise InterventionError(
            f"Layer {selection.layer} activates {router.top_k} experts, and {len(experts)} are forced",
            f"Name exactly {router.top_k} different experts, or use a mask",
        )
    if kind == "force" and not router.selectable(experts):
        raise InterventionError(
            f"Layer {selection.layer} selects within {router.groups_used} of {router.groups} expert groups, and "
            f"experts {sorted(experts)} lie in more",
            "Draw forced sets with Router.draw, which keeps to what the architecture can select",
        )


def _selections(
    experts: Mapping[Any, Iterable[int]] | Iterable[int],
    layers: Layers | None,
    kind: str,
    allow_empty: bool = False,
) -> tuple[Selection, ...]:
    built: list[Selection] = []
    if isinstance(experts, Mapping):
        if layers is not None:
            raise InterventionError("Layers are given twice", "Give {layer: experts}, or one set with layers=")
        for key, chosen in experts.items():
            layer, position = key if isinstance(key, tuple) else (key, None)
            place = None if position is None else _natural(position, "position")
            built.append(Selection(_natural(layer, "layer"), _experts(chosen), place))
    else:
        if layers is None:
            raise InterventionError(f"A {kind} without layers", "Give {layer: experts}, or layers=")
        chosen = _experts(experts)
        for layer in [layers] if isinstance(layers, int | np.integer) else layers:
            built.append(Selection(_natural(layer, "layer"), chosen))
    twice = len(built) - len({(s.layer, s.position) for s in built})
    if twice:
        raise InterventionError(f"A {kind} names a layer and position twice", "Give one set of experts for each")
    if not built and not allow_empty:
        raise InterventionError(f"A {kind} without layers", "Give at least one {layer: experts}")
    if any(not s.experts for s in built):
        raise InterventionError(f"A {kind} without experts", "Name at least one expert for every layer")
    return tuple(sorted(built, key=lambda s: (s.layer, -1 if s.position is None else s.position)))


def _experts(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({_natural(v, "expert") for v in values}))


def _natural(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise InterventionError(f"{value!r} is not a {what} number", f"Count {what}s from 0")
    return int(value)


def _where(phase: Phase, positions: Iterable[int] | None, rows: Iterable[int] | None) -> Where:
    def ordered(values: Iterable[int] | None, what: str) -> tuple[int, ...] | None:
        return None if values is None else tuple(sorted({_natural(v, what) for v in values}))

    return Where(phase, ordered(positions, "position"), ordered(rows, "row"))


def _rule_to_json(rule: Rule) -> dict[str, Any]:
    def rows(selections: tuple[Selection, ...]) -> list[list[Any]]:
        return [[s.layer, s.position, list(s.experts)] for s in selections]

    data: dict[str, Any] = {"kind": rule.kind, "phase": rule.where.phase}
    if rule.where.positions is not None:
        data["positions"] = list(rule.where.positions)
    if rule.where.rows is not None:
        data["rows"] = list(rule.where.rows)
    if rule.kind == "pin":
        data |= {"activate": rows(rule.selections), "deactivate": rows(rule.stopped), "eps": rule.eps}
    elif rule.kind == "noise":
        data |= {"std": {str(layer): std for layer, std in rule.stds}, "seed": rule.seed}
    elif rule.kind == "bias":
        data |= {"per_token": True} if rule.per_token else {}
    elif rule.kind != "conditional":  # its numbers stand apart
        data["experts"] = rows(rule.selections)
    return data


def _rule_from_json(data: Mapping[str, Any]) -> Intervention:
    def table(rows: Iterable[Any]) -> dict[Any, list[int]]:
        built: dict[Any, list[int]] = {}
        for layer, position, experts in rows:
            place = layer if position is None else (layer, position)
            if place in built:
                raise ValueError(f"layer {layer}, position {position} twice")
            built[place] = experts
        return built

    kind = data["kind"]
    where: dict[str, Any] = {name: data.get(name) for name in ("positions", "rows")}
    where["phase"] = data["phase"]
    if kind == "mask":
        return Intervention.mask(table(data["experts"]), **where)
    if kind == "force":
        return Intervention.force(table(data["experts"]), **where)
    if kind == "bias":
        vectors = {int(layer): vector for layer, vector in data["vectors"].items()}
        return Intervention.bias(vectors, per_token=data.get("per_token", False), **where)
    if kind == "pin":
        on, off = table(data["activate"]), table(data["deactivate"])
        return Intervention.pin(on, off, eps=data["eps"], **where)
    if kind == "noise":
        stds = {int(layer): std for layer, std in data["std"].items()}
        return Intervention.noise(stds, seed=data["seed"], **where)
    if kind == "conditional":
        return Intervention.conditional({int(n): LowRank.from_json(one) for n, one in data["maps"].items()}, **where)
    raise InterventionError(f"Unknown rule {kind!r}", f"Use one of {', '.join(_KINDS)}")
