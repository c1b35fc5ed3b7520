from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from families.tiny import FAMILIES, tiny


@cache
def _load(family: str) -> Any:
    return tiny(family, dtype=torch.float32)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def model(family: str) -> Any:
    """A tiny float32 model of every family, with the experts kernel that transformers chooses; shared."""
    return _load(family)
