"""Train a decoder from cached features."""
