"""A hook of mkdocs: shows mkdocstrings the package as it is installed, without what else lies in the checkout.

The package's folders are the checkout's own (setup.cfg), beside `.venv` and much else that would be searched.
"""

import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]
_PARTS = ("__init__.py", "cli.py", "data", "pipeline", "stages")
_folder = tempfile.TemporaryDirectory(prefix="captionmill-site-")  # removed when mkdocs ends


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: Any) -> Any:
    """Put a folder that holds `captionmill` and nothing else where mkdocstrings looks for sources."""
    package = Path(_folder.name, "captionmill")
    package.mkdir(exist_ok=True)
    for name in _PARTS:
        if not (package / name).exists():
            (package / name).symlink_to(ROOT / name)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_folder.name]
    return config
