"""The layouts in which captions of images are published or kept, each read row by row."""
