"""`RANKS`: the highest rank of a conditional rule. Alone here, so that a plan that names it imports nothing."""

from __future__ import annotations

RANKS = 8
