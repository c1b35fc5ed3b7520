"""`Phase`: when a rule on routers is in force. Alone here, so that what only names a phase imports nothing."""

from __future__ import annotations

from typing import Literal

Phase = Literal["prefill", "decode", "both"]
