"""Whose turn it is to ask an engine: threads wait for one another, and an open block has the engine to itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pointsman.errors import InterventionError


class Turns:
    """The calls of one engine, answered one after another."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open = False  # within the block of a scorer, patcher or learner

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call: other threads wait until it is done."""
        with self._lock:
            self._refuse_if_open()
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The engine for one block alone: other threads wait, and the same one asks nothing else meanwhile."""
        with self._lock:
            self._refuse_if_open()
            self._open = True
            try:
                yield
            finally:
                self._open = False

    def _refuse_if_open(self) -> None:
        if self._open:
            raise InterventionError(
                "The engine answers nothing else while its scorer, patcher or learner is open",
                "Leave that `with` block first",
            )
