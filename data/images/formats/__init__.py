"""Image formats: what each needs beyond its decoder, so that the pixels are those that were written."""
