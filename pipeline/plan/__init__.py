"""A pipeline file: what it describes, what is up to date, and doing the rest."""
