"""Results of audits that older versions of Pointsman wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def from_audit_2(results: dict[str, Any]) -> dict[str, Any]:
    """What `pointsman.audit/2` became: the same figures, and no claims yet."""
    return {**results, "job": "audit"}


OLDER: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"pointsman.audit/2": from_audit_2}
