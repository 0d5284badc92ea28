"""The folder in which captionmill keeps what it can fetch or make again."""

import os
from pathlib import Path

VARIABLE = "CAPTIONMILL_CACHE"


def cache_dir(name: str) -> Path:
    """The folder `name` of the cache, which need not exist: below $CAPTIONMILL_CACHE, or the user's cache folder."""
    own = os.environ.get(VARIABLE)
    users = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else Path(users or Path.home() / ".cache") / "captionmill"
    return root / name
