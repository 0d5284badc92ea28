"""Captions: references, splits and the vocabulary."""
