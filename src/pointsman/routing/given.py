"""What is given as a routing: an `Intervention`, or an object that has one and may know more of itself.

Such an object is a `Steering`, of which nothing is known here but what these protocols say.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, overload, runtime_checkable

from torch import nn

from pointsman.routing.intervention import Intervention
from pointsman.routing.weights import weights_hash


@runtime_checkable
class HasIntervention(Protocol):
    """What says in rules what it does to the routers. It is accepted wherever an `Intervention` is."""

    @property
    def intervention(self) -> Intervention:
        """What it does."""
        ...


@runtime_checkable
class MadeForWeights(HasIntervention, Protocol):
    """What also knows for which weights it was made: the routers of a model may stand in another one."""

    @property
    def weights(self) -> str | None:
        """`weights_hash` of the model that it was made for; None if it does not know."""
        ...

    def on_other_weights(self, weights: str) -> str:
        """A sentence if the model with this `weights_hash` is another one with the same routers; else nothing."""
        ...


@overload
def plain(routing: None) -> None: ...
@overload
def plain(routing: Intervention | HasIntervention) -> Intervention: ...
@overload
def plain(routing: Intervention | HasIntervention | None) -> Intervention | None: ...
@overload
def plain(routing: Sequence[Intervention | HasIntervention | None]) -> list[Intervention | None]: ...
@overload
def plain(
    routing: Intervention | HasIntervention | Sequence[Intervention | HasIntervention | None] | None,
) -> Intervention | list[Intervention | None] | None: ...
def plain(
    routing: Intervention | HasIntervention | Sequence[Intervention | HasIntervention | None] | None,
) -> Intervention | list[Intervention | None] | None:
    """A routing in which everything that has an `Intervention` is that."""
    if routing is None or isinstance(routing, Intervention):
        return routing
    if isinstance(routing, HasIntervention):
        return routing.intervention
    return [_plain(each) for each in routing]


def _plain(each: Intervention | HasIntervention | None) -> Intervention | None:
    """That of one row. Protocols are slow to ask for, and rows are many: the common case comes first."""
    if each is None or isinstance(each, Intervention):
        return each
    return each.intervention if isinstance(each, HasIntervention) else each  # what is no routing is refused later


def warn_of_other_weights(
    routing: Intervention | HasIntervention | Sequence[Intervention | HasIntervention | None] | None, model: nn.Module
) -> None:
    """Warn (`UserWarning`) of what was made for the same routers in another model.

    All weights of the model are read for it, and only if something in the routing knows its own.
    """
    each = routing if isinstance(routing, list | tuple) else [routing]
    for one in {id(one): one for one in each if not isinstance(one, Intervention)}.values():
        if isinstance(one, MadeForWeights) and one.weights:
            sentence = one.on_other_weights(weights_hash(model))
            if sentence:
                warnings.warn(sentence[0].upper() + sentence[1:], UserWarning, stacklevel=4)
