"""Captions: references, splits, vocabulary, and tables of captions."""
