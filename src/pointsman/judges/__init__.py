"""Judges: one file each; a judge maps behaviours and answers to `Verdict`s. Found by name in `pointsman.registry`."""
