"""The parameters of an audit."""

from __future__ import annotations

import pytest

from pointsman.errors import UsageError
from pointsman.jobs.audit.plan import Audit


@pytest.mark.parametrize("name", ["limit", "samples", "routers", "candidates", "restarts", "together"])
def test_options_out_of_range(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Audit(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value"), [("seed", -1), ("min_gain", float("inf")), ("min_gain", float("nan")), ("min_gain", -0.1)]
)
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        Audit(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("routers", "layers", "masked"), [(9, 3, 3), (2, 3, 2), (None, 3, 1), (None, 16, 4), (None, 99, 5)]
)
def test_how_many_routers_are_masked(routers: int | None, layers: int, masked: int) -> None:
    assert Audit(routers=routers).most_masked(layers) == masked
