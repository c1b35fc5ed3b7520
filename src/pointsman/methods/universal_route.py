"""`UniversalRoute`: one route for all prompts, and the places at which it forces experts, as plain data.

A route of one prompt names its tokens by number. A universal one names *places* that every prompt has: tokens of the
chat template, counted from either end of the prompt, and tokens of the user's message, counted from either end of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pointsman.engine.types import Prompt
from pointsman.errors import InterventionError
from pointsman.routing.intervention import Intervention, Phase
from pointsman.routing.routers import Router

Anchor = Literal["start", "end", "content_start", "content_end"]
ANCHORS: tuple[Anchor, ...] = get_args(Anchor)
Shape = tuple[int, int, int, int]
"""Of a router: experts, top-k, groups, groups used."""

SCHEMA = "pointsman.universal_route/1"
MOST_OFFSET = 1 << 20
MOST_BYTES = 1 << 24
_KEEP = "Give the file that UniversalRoute.save wrote"


@dataclass(frozen=True, order=True)
class Place:
    """A token that is named by where it stands, not by its number.

    Attributes:
        anchor: From where it is counted: the ``start`` or the ``end`` of the prompt (then it is a token of the chat
            template or of the system prompt, before or behind all that was said), or the start or the end of the last
            user message.
        offset: Tokens between it and the first (the last) one there, which has 0.
    """

    anchor: Anchor
    offset: int

    def __post_init__(self) -> None:
        if self.anchor not in ANCHORS:
            raise InterventionError(f"Unknown anchor {str(self.anchor)[:40]!r}", f"Use one of {', '.join(ANCHORS)}")
        if isinstance(self.offset, bool) or not isinstance(self.offset, int) or not 0 <= self.offset < MOST_OFFSET:
            raise InterventionError(f"An offset of {str(self.offset)[:40]}", "Count tokens from 0")

    def position(self, prompt: Prompt) -> int | None:
        """The token of this prompt; None if it has none there."""
        said = [n for n, role in enumerate(prompt.roles) if role in ("history", "content")]
        content = [n for n in said if prompt.roles[n] == "content"]
        if self.anchor == "start":
            return self.offset if self.offset < (said[0] if said else len(prompt)) else None
        if self.anchor == "end":
            behind = len(prompt) - 1 - said[-1] if said else 0
            return len(prompt) - 1 - self.offset if self.offset < behind else None
        if self.offset >= len(content):
            return None
        return content[self.offset if self.anchor == "content_start" else -1 - self.offset]


def places_of(prompts: Sequence[Prompt], content: int) -> tuple[Place, ...]:
    """The places that these prompts have; of two that are the same token in each of them, the first.

    Args:
        content: Tokens from either end of the user's message, at most; those of the template are all among them.
    """
    longest = max(map(len, prompts), default=0)
    found: dict[tuple[int | None, ...], Place] = {}
    for anchor in ANCHORS:
        for offset in range(longest if anchor in ("start", "end") else content):
            positions = tuple(Place(anchor, offset).position(prompt) for prompt in prompts)
            if all(each is None for each in positions):
                break
            found.setdefault(positions, Place(anchor, offset))
    return tuple(found.values())


@dataclass(frozen=True)
class ForcedPlace:
    """Experts that are forced at a place of one MoE layer."""

    layer: int
    place: Place
    experts: tuple[int, ...]


@dataclass(frozen=True)
class UniversalRoute:
    """One route for all prompts. Immutable, savable; it fits every model whose routers have these shapes.

    Example:
        >>> route = UniversalRoute.load("route.json")                                               # doctest: +SKIP
        >>> prompts = [engine.encode(request) for request in requests]                              # doctest: +SKIP
        >>> engine.generate(prompts, routing=route.on_each(prompts, engine.routers))                # doctest: +SKIP

    Attributes:
        forced: Where, and which experts. Where two places are one token of a prompt, the first is in force.
        routers: Shape of every router, in depth order.
        phase: When it is in force while the model answers.
        model: On which it was found, for display.

    Raises:
        InterventionError: It names what such routers do not have, or something twice.
    """

    forced: tuple[ForcedPlace, ...]
    routers: tuple[Shape, ...]
    phase: Phase = "prefill"
    model: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.phase not in ("prefill", "both"):
            raise InterventionError(
                f"A universal route in phase {str(self.phase)[:40]!r}", "It forces prompt tokens: use prefill or both"
            )
        twice = len(self.forced) - len({(each.layer, each.place) for each in self.forced})
        if twice:
            raise InterventionError("A universal route names a layer and place twice", "Give one set for each")
        if self.forced:
            sets = {(each.layer, n): each.experts for n, each in enumerate(self.forced)}
            Intervention.force(sets, phase=self.phase).check(self._as_routers)

    @cached_property
    def _as_routers(self) -> tuple[Router, ...]:
        return tuple(Router(n, n, "", *shape) for n, shape in enumerate(self.routers))

    def on(self, prompt: Prompt) -> Intervention:
        """The route on one prompt; places that it does not have are left out. Empty if it has none of them."""
        sets: dict[tuple[int, int], tuple[int, ...]] = {}
        for each in self.forced:
            position = each.place.position(prompt)
            if position is not None:
                sets.setdefault((each.layer, position), each.experts)
        return Intervention.force(sets, phase=self.phase) if sets else Intervention()

    def on_each(self, prompts: Sequence[Prompt], routers: Sequence[Router]) -> list[Intervention]:
        """The route on some prompts of a model with these routers.

        Raises:
            InterventionError: The model has routers of other shapes.
        """
        self.check(routers)
        return [self.on(prompt) for prompt in prompts]

    def check(self, routers: Sequence[Router]) -> None:
        """Refuse a model whose routers have other shapes.

        Raises:
            InterventionError: They have.
        """
        there = shapes_of(routers)
        if there != self.routers:
            raise InterventionError(
                f"This universal route is for {_told(self.routers)}, and the model has {_told(there)}",
                "Load a model of the family that it was found on, or find a route on this one",
            )

    # -- saving ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "phase": self.phase,
            "routers": [list(shape) for shape in self.routers],
            "forced": [[f.layer, f.place.anchor, f.place.offset, list(f.experts)] for f in self.forced],
        }

    @staticmethod
    def from_json(data: Any) -> UniversalRoute:
        """The inverse of `to_json`; everything is checked, since a file is untrusted.

        Raises:
            InterventionError: It is no universal route, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            schema = data.get("schema") if isinstance(data, Mapping) else None
            raise InterventionError(f"Not a universal route (schema {str(schema)[:60]!r})", _KEEP)
        try:
            forced = tuple(
                ForcedPlace(_count(layer), Place(anchor, _count(offset)), tuple(sorted(map(_count, experts))))
                for layer, anchor, offset, experts in data["forced"]
            )
            shapes = tuple(_shape(each) for each in data["routers"])
            model = " ".join(str(data["model"]).split())[:200]
            return UniversalRoute(forced, shapes, data["phase"], model)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise InterventionError(f"The universal route is damaged ({why})", _KEEP) from error

    def save(self, path: str | Path) -> Path:
        """Write it into a JSON file.

        Raises:
            InterventionError: It cannot be written.
        """
        target = Path(path)
        try:
            target.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InterventionError(
                f"Cannot write {target} ({error.strerror or error})", "Give a file that can be written"
            ) from error
        return target

    @staticmethod
    def load(path: str | Path) -> UniversalRoute:
        """Read what `save` wrote.

        Raises:
            InterventionError: There is no such file, or it holds something else.
        """
        source = Path(path)
        try:
            with source.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise InterventionError(f"Cannot read {source} ({error.strerror or error})", _KEEP) from error
        if len(content) > MOST_BYTES:
            raise InterventionError(f"{source} is larger than a universal route can be", _KEEP)
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InterventionError(f"{source} is not JSON ({' '.join(str(error).split())[:120]})", _KEEP) from error
        try:
            return UniversalRoute.from_json(data)
        except InterventionError as error:
            raise InterventionError(f"{source}: {error.problem}", error.remedy) from error


def shapes_of(routers: Sequence[Router]) -> tuple[Shape, ...]:
    """What two models must share to share a route."""
    return tuple((r.experts, r.top_k, r.groups, r.groups_used) for r in routers)


def _shape(values: Any) -> Shape:
    experts, top_k, groups, used = map(_count, values)
    if not (0 < top_k <= experts and 0 < used <= groups <= experts and experts % groups == 0):
        raise ValueError(f"a router that activates {top_k} of {experts} experts, in {used} of {groups} groups")
    return experts, top_k, groups, used


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_OFFSET:
        raise ValueError(f"{str(value)[:40]} where a count is wanted")
    return value


def _told(shapes: Sequence[Shape]) -> str:
    kinds = dict.fromkeys(shapes)
    said = [
        f"top {k} of {e}" + (f" in {used} of {groups} groups" if groups > 1 else "") for e, k, groups, used in kinds
    ]
    return f"{len(shapes)} router{'s' * (len(shapes) != 1)} ({' or '.join(said[:3])})"
