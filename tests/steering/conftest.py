from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from families.tiny import FAMILIES, tiny


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def fresh() -> Callable[..., Any]:
    """Makes a tiny model of a family that the test may change."""
    return tiny
