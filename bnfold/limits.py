"""Defaults that the command shows in its help and the core works with; no imports, so that help stays quick."""

PRECISION_LIMIT = 32.0
"""The default of the precision guard; docs/precision.md has the measurement that it comes from."""
MULTIPLE = 8.0
"""How many times the error of the original a model may have; docs/judging.md has the measurement."""
LEFTOVERS = ("fast", "all", "none")
"""In which forms a norm that cannot go may be left; the first is the default. See `gauge.leftovers`."""
