"""Handing a cache to a model by hand, under the name that its forward takes it by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointsman.routing.calling import Calling


def cached(model: Any, cache: Any) -> dict[str, Any]:
    """Keyword arguments of a forward that continues this cache, or the cache in this output of an earlier forward."""
    if isinstance(cache, Mapping):
        (cache,) = [value for value in cache.values() if hasattr(value, "get_seq_length")]
    return Calling(model).with_cache(cache)
