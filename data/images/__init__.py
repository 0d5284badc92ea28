"""Images: find them, give each its key, read and decode it."""
