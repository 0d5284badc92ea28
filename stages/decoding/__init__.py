"""Stage two: cached features in, a trained decoder or captions out."""
