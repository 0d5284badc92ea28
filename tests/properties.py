"""How hypothesis runs here: few examples, the same ones each time, and nothing kept on the disk."""

from hypothesis import settings

plain = settings(max_examples=25, derandomize=True, database=None, deadline=None)
few = settings(plain, max_examples=10)
"""For what writes files."""
