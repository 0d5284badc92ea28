"""Stage one: images in, a feature store out."""
