"""Pointsman sees and sets the switches of Mixture-of-Experts language models: their routers.

Names are imported when they are first used, so that ``import pointsman`` is quick and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load": "pointsman.engine.load",
    "find_routers": "pointsman.routing.routers",
    "Router": "pointsman.routing.routers",
    "control": "pointsman.routing.control",
    "prove": "pointsman.routing.control",
    "Intervention": "pointsman.routing.intervention",
    "LowRank": "pointsman.routing.low_rank",
    "Steering": "pointsman.steering.artefact",
    "RouteTrace": "pointsman.routing.trace",
    "Behaviour": "pointsman.data.types",
    "Conversation": "pointsman.data.types",
    "RoSais": "pointsman.methods.rosais",
    "Masking": "pointsman.methods.masking",
    "FSour": "pointsman.methods.fsour",
    "Guided": "pointsman.methods.guided",
    "Conditional": "pointsman.methods.conditional",
    "PointsmanError": "pointsman.errors",
}

__all__ = [
    "Behaviour",
    "Conditional",
    "Conversation",
    "FSour",
    "Guided",
    "Intervention",
    "LowRank",
    "Masking",
    "PointsmanError",
    "RoSais",
    "RouteTrace",
    "Router",
    "Steering",
    "__version__",
    "control",
    "find_routers",
    "load",
    "prove",
]

if TYPE_CHECKING:
    from pointsman.data.types import Behaviour, Conversation
    from pointsman.engine.load import load
    from pointsman.errors import PointsmanError
    from pointsman.methods.conditional import Conditional
    from pointsman.methods.fsour import FSour
    from pointsman.methods.guided import Guided
    from pointsman.methods.masking import Masking
    from pointsman.methods.rosais import RoSais
    from pointsman.routing.control import control, prove
    from pointsman.routing.intervention import Intervention
    from pointsman.routing.low_rank import LowRank
    from pointsman.routing.routers import Router, find_routers
    from pointsman.routing.trace import RouteTrace
    from pointsman.steering.artefact import Steering


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from pointsman.environment import importing

        with importing():
            return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pointsman' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
