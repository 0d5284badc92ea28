"""How hypothesis runs here: few examples, the same ones each time; nothing is kept on the disk, no time is measured."""

from hypothesis import HealthCheck, settings

plain = settings(
    max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
few = settings(plain, max_examples=10)
"""For what writes many files."""
