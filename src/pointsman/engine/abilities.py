"""What some engines can do beyond being asked: learn, have residual streams exchanged, hand out their module.

A verb that needs one of them takes any `Engine` and refuses, in one line and before it begins, the one that lacks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from pointsman.engine.types import Engine, GradientMemory, Prompt, Routing
from pointsman.errors import UsageError

if TYPE_CHECKING:
    from pointsman.engine.learning import Learner
    from pointsman.engine.patching import Patcher
    from pointsman.engine.route_gradients import RouteGradient

_REMEDY = "Load the model with transformers, as pointsman.load does"


class Learns(Engine, Protocol):
    """An engine through which what is added to the router logits can be learnt."""

    def learner(self) -> AbstractContextManager[Learner]:
        """Learn what is added to the router logits; the engine answers nothing else meanwhile."""
        ...

    def router_norms(self) -> list[float]:
        """Mean norm of a row of the weight of every router; 1 where there is not one matrix. Shape: [L]."""
        ...


class Guides(Engine, Protocol):
    """An engine that says by one backward pass how much every expert would raise log p(target)."""

    def route_gradients(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], *, routing: Routing = None
    ) -> list[RouteGradient]:
        """What forcing any set of experts at any token would change, to first order (METHODS section 9).

        Args:
            prompts, targets: As for `Engine.score`.
            routing: At which it is taken. Sets that it forces are free again where others are tried.

        Raises:
            ModelError: The model passes no gradient to its experts, or weighs them by a rule that is not known.
        """
        ...

    def gradient_memory(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], *, tries: int = 0
    ) -> GradientMemory | None:
        """What `route_gradients` of these needs on top of the model, about, and what is free; nothing is computed.

        Args:
            tries: Rows of each prompt that are scored side by side in between.

        Returns:
            None where it cannot be told: of quantised weights, and of a model on several devices.
        """
        ...


class Patches(Engine, Protocol):
    """An engine whose residual streams can be exchanged between runs."""

    def patcher(self) -> AbstractContextManager[Patcher]:
        """Exchange residual streams between runs; the engine answers nothing else meanwhile.

        Raises:
            UsageError: The forwards of this model cannot be resumed from a layer.
        """
        ...


class HoldsModule(Engine, Protocol):
    """An engine whose model is a module of transformers in this process."""

    model: Any
    tokenizer: Any


def learns(engine: Engine) -> TypeGuard[Learns]:
    """Whether vectors can be learnt through this engine."""
    return callable(getattr(engine, "learner", None))


def that_learns(engine: Engine) -> Learns:
    """The engine, if vectors can be learnt through it.

    Raises:
        UsageError: They cannot.
    """
    if not learns(engine):
        raise UsageError(
            f"{engine.info.name} cannot learn through the model: its engine ({type(engine).__name__}) has no gradients",
            f"Steer with --method mascing, without through_model in the grid and without --upper-bound. Or: {_REMEDY}",
        )
    return engine


def that_guides(engine: Engine) -> Guides:
    """The engine, if it says where routes to a target lie.

    Raises:
        UsageError: It does not.
    """
    if not _guides(engine):
        raise UsageError(
            f"{engine.info.name} cannot be searched by its gradient: its engine ({type(engine).__name__}) has none",
            f"Search its routes with F-SOUR (--attack fsour). Or: {_REMEDY}",
        )
    return engine


def that_patches(engine: Engine) -> Patches:
    """The engine, if residual streams can be exchanged in it.

    Raises:
        UsageError: They cannot.
    """
    if not _patches(engine):
        raise UsageError(
            f"{engine.info.name} cannot be patched: its engine ({type(engine).__name__}) shows no residual streams",
            _REMEDY,
        )
    return engine


def that_holds_module(engine: Engine) -> HoldsModule:
    """The engine, if its model is a module of transformers in this process.

    Raises:
        UsageError: It is not.
    """
    if not _holds_module(engine):
        raise UsageError(
            f"{engine.info.name} is not at hand as a module: its engine ({type(engine).__name__}) keeps it elsewhere",
            _REMEDY,
        )
    return engine


def _guides(engine: Engine) -> TypeGuard[Guides]:
    return callable(getattr(engine, "route_gradients", None))


def _patches(engine: Engine) -> TypeGuard[Patches]:
    return callable(getattr(engine, "patcher", None))


def _holds_module(engine: Engine) -> TypeGuard[HoldsModule]:
    return hasattr(engine, "model") and hasattr(engine, "tokenizer")
