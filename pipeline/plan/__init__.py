"""Pipeline files: reads them, finds what is up to date and runs the rest."""
