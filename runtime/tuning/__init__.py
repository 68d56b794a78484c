"""Verified tuning: a search over launch configurations in which only what was checked is timed, and is remembered."""
