"""The demo: drawn scenes, captioned without a download."""
