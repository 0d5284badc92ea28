"""Trained decoders on disk: folders, single files, and where they come from."""
