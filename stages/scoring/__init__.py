"""What captions are worth: metrics against references, and pages that show them."""
