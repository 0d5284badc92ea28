"""Runs the stages in order and skips what is done already."""
