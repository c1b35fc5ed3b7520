"""What an audit asks."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.data.types import Suite
from pointsman.judges.types import Judge


@dataclass(frozen=True)
class AuditQuestion:
    """Behaviours, benign requests and conversations; and who judges the answers."""

    suite: Suite
    judge: Judge
