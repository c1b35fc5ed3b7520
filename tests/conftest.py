"""One thread (the models are tiny), the folder of the helpers on the path, and an ear for deprecations."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

_GOING = re.compile(r"deprecat|will be removed", re.IGNORECASE)


class _Ear(logging.Handler):
    """Keeps what is said of things that will go: transformers says much of it through its logger, not as a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if _GOING.search(message):
            self.heard.append(f"{record.name}: {message}")


_ear = _Ear()
logging.getLogger("transformers").addHandler(_ear)


@pytest.fixture(autouse=True)
def _no_deprecation_is_logged(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which, or in whose fixtures, transformers says that something we use will go.

    The marker `outdated` names, as a pattern, what a test or its checkpoint uses on purpose.
    """
    yield
    heard, _ear.heard = _ear.heard, []
    once = getattr(logging.Logger, "warning_once", None)  # transformers' own; there once it is imported
    if once is not None:
        once.cache_clear()  # to be said again in the next test
    meant = [pattern for mark in request.node.iter_markers("outdated") for pattern in mark.args]
    unforeseen = [message for message in heard if not any(re.search(pattern, message) for pattern in meant)]
    if unforeseen:
        pytest.fail("\n".join(dict.fromkeys(unforeseen)), pytrace=False)
