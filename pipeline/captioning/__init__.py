"""Caption a folder of images."""
