"""Which stage runs, in which order, and what is done already."""
