"""Of the old page of a steer run."""

SIGNIFICANT = 0.05
"""Family-wise: below it a router is marked."""
