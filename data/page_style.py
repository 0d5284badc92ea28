"""The one look of all pages: colours, type and cards, light and dark."""

from pathlib import Path

_PATH = Path(__file__).parent / "assets" / "page.css"


def page_style() -> str:
    """The style sheet that a page carries in its head; it is ours, and safe to stand in a `style` element."""
    return _PATH.read_text(encoding="utf-8")
