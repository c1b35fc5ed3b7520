"""The conditional part of a steering, A and B of some routers: checked, described, kept in files, and added up.

METHODS section 10. Beside the matrix S in the files of a steering stand, for every layer that has a conditional part,
the tensors ``layers.<l>.down`` (A), ``layers.<l>.up`` (B) and, if any, ``layers.<l>.threshold`` (b).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pointsman.errors import InterventionError
from pointsman.routing.low_rank import PARTS, LowRank

Maps = Mapping[int, LowRank]
"""By MoE layer, in logit units at alpha 1."""

_NORM_AGREES = 1e-4  # how far a described norm may be from that of the numbers, which processors round differently


def checked(maps: Any, experts: Sequence[int]) -> Maps:
    """A copy in the order of the layers, which cannot be changed.

    Args:
        maps: What is given as a conditional part.
        experts: Of every MoE layer. Shape: [L].

    Raises:
        InterventionError: It is no such part, or not one for these layers.
    """
    if not isinstance(maps, Mapping) or any(isinstance(n, bool) or not isinstance(n, int | np.integer) for n in maps):
        raise InterventionError("The conditional part of a steering is no mapping", "Give {layer: LowRank(down, up)}")
    for layer, one in maps.items():
        if not isinstance(one, LowRank):
            raise InterventionError(
                f"The conditional part of layer {layer} is {type(one).__name__}", "Give LowRank(down, up)"
            )
        if not 0 <= layer < len(experts):
            raise InterventionError(
                f"A conditional part for layer {layer} of a steering for {len(experts)} layers",
                f"Count MoE layers from 0 to {len(experts) - 1}",
            )
        if one.experts != experts[layer]:
            raise InterventionError(
                f"The conditional part of layer {layer} is for {one.experts} experts, and its matrix for "
                f"{experts[layer]}",
                "Give up [E, q] with a row for every expert",
            )
    return MappingProxyType({int(layer): maps[layer] for layer in sorted(maps)})


def row_norms(one: LowRank) -> np.ndarray:
    """Norms of the rows of B A: how far an input of length 1 can move each expert's logit. Shape: [E], float64."""
    return np.asarray(np.linalg.norm(one.product, axis=1))


def described(maps: Maps) -> list[dict[str, Any]]:
    """What ``steering.json`` says of it, layer by layer: to be read by people, and to be held against the numbers."""
    return [
        {
            "layer": layer,
            "rank": one.rank,
            "width": one.width,
            "threshold": one.threshold is not None,
            "norm": float(np.linalg.norm(one.product)),
            "sha256": one.digest,
        }
        for layer, one in maps.items()
    ]


def tensors_of(maps: Maps) -> dict[str, np.ndarray]:
    """As ``steering.safetensors`` holds it."""
    return {
        f"layers.{layer}.{part}": np.ascontiguousarray(value)
        for layer, one in maps.items()
        for part in PARTS
        if (value := getattr(one, part)) is not None
    }


def read_maps(said: Any, tensors: Mapping[str, np.ndarray]) -> dict[int, LowRank]:
    """The conditional part that files hold. They are untrusted.

    Args:
        said: What ``steering.json`` says of it (`described`).
        tensors: Those of ``steering.safetensors``, without the matrix.

    Raises:
        InterventionError: The numbers are none of a conditional part.
        KeyError, TypeError, ValueError: The two do not belong together.
    """
    if not isinstance(said, list) or not said:
        raise ValueError("its conditional part is described for no layer")
    if any(type(part["layer"]) is not int or type(part["threshold"]) is not bool for part in said):
        raise ValueError("its conditional part is described with something else than layers and thresholds")
    names = {
        f"layers.{part['layer']}.{name}" for part in said for name in PARTS if name != "threshold" or part["threshold"]
    }
    layers = [part["layer"] for part in said]
    if names != set(tensors) or layers != sorted(set(layers)):
        raise ValueError("other layers have a conditional part in the two files")
    maps = {n: LowRank(*(tensors.get(f"layers.{n}.{name}") for name in PARTS)) for n in layers}  # type: ignore[arg-type]
    for part, found in zip(said, described(maps), strict=True):
        near = abs(part["norm"] - found["norm"]) <= _NORM_AGREES * found["norm"]
        if not near or {**part, "norm": 0.0} != {**found, "norm": 0.0}:
            raise ValueError(f"the conditional part of layer {part['layer']} is another one in the two files")
    return maps


def stacked(one: Maps, other: Maps) -> dict[int, LowRank]:
    """The sum of two conditional parts: it adds to the logits what the two add, and its rank is the sum of theirs.

    Where just one has a threshold, the other one gets thresholds of 0 at twice its rank: z = relu(z) - relu(-z).

    Raises:
        InterventionError: They are for inputs of other widths, or the rank of a layer is more than a router can have.
    """
    sums: dict[int, LowRank] = {**one, **other}
    for layer in one.keys() & other.keys():
        both = (one[layer], other[layer])
        experts, width = both[0].experts, both[0].width
        if width != both[1].width:
            raise InterventionError(
                f"The conditional parts of layer {layer} are for inputs of {width} and {both[1].width}",
                "Add only steerings made for one model",
            )
        linear = all(part.threshold is None for part in both)
        downs, ups, thresholds = zip(*(_parts(part, linear) for part in both), strict=True)
        rank = sum(map(len, downs))
        if rank > min(width, experts):
            raise InterventionError(
                f"The sum has a rank of {rank} at layer {layer}, and a router of {experts} experts that reads an input "
                f"of {width} has at most {min(width, experts)}",
                "Learn one steering for both, or add steerings of a smaller rank",
            )
        sums[layer] = LowRank(np.vstack(downs), np.hstack(ups), None if linear else np.concatenate(thresholds))
    return sums


def _parts(one: LowRank, linear: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and b of one part of a sum that is linear or has thresholds. Shapes: [q, d], [E, q], [q]."""
    if linear or one.threshold is not None:
        return one.down, one.up, np.zeros(one.rank) if one.threshold is None else one.threshold
    return np.vstack([one.down, -one.down]), np.hstack([one.up, -one.up]), np.zeros(2 * one.rank)
