"""What an audit asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman.data.types import Suite
    from pointsman.judges.types import Judge


@dataclass(frozen=True)
class AuditQuestion:
    """Behaviours, benign requests and conversations; and who judges the answers.

    Attributes:
        registered: The name of the suite, if it is a registered one.
        files: What it was read from otherwise, by option.
        columns: What the user says of the columns of these files: ``USE=COLUMN``, or ``FILE.USE=COLUMN``.
        system: A system prompt for every request.
    """

    suite: Suite
    judge: Judge
    registered: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    system: str | None = None
