"""The models that a training starts from or learns from."""
