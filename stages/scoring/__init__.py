"""Scoring captions: metrics against references, intervals, caption statistics, leaks between splits."""
