"""Runs that survive a kill, what is done in them, and live progress."""
