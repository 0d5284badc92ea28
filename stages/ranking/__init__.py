"""Stage two: which of a search's candidates describes the image best."""
