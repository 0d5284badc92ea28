"""Stage two: which of a search's candidates says best what the image shows."""
