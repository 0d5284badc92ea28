"""The demo: drawn scenes, captioned without any download."""
