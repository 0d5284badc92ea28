"""What made each output of a pipeline, so that a second run does only what changed.

Beside `pipeline.toml` stands `pipeline.made.json`: for each stage the settings and the contents of its inputs when its
outputs were made. A stage is up to date if both are the same now and its outputs exist.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captionmill.data.atomic import write_text
from captionmill.data.bundle import BUNDLE_NAME, bundle_exists
from captionmill.data.errors import PipelineError
from captionmill.data.feature_store import FeatureStore, store_exists
from captionmill.data.images import find_images

Record = dict[str, Any]


class Workspace:
    """The record of what made the outputs of one pipeline file."""

    def __init__(self, plan_path: Path) -> None:
        """Read the record that stands beside `plan_path`, if there is one."""
        self.path = plan_path.with_name(f"{plan_path.stem}.made.json")
        try:
            self._records: dict[str, Record] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._records = {}
        except (OSError, ValueError) as exc:
            raise PipelineError(f"{self.path}: not readable ({exc}); delete it and run again") from exc

    def made(self, stage: str) -> Record | None:
        """What made the outputs of `stage`, or None if this pipeline has not made them."""
        return self._records.get(stage)

    def record(self, stage: str, made_from: Record) -> None:
        """Note that `stage` has just been made from `made_from`."""
        self._records[stage] = made_from
        write_text(self.path, json.dumps(self._records, indent=1, ensure_ascii=False) + "\n")

    def forget(self, stage: str) -> None:
        """Note that the outputs of `stage` are about to change."""
        if self._records.pop(stage, None) is not None:
            write_text(self.path, json.dumps(self._records, indent=1, ensure_ascii=False) + "\n")


def describe(settings: Mapping[str, Any], inputs: Mapping[str, Path | None]) -> Record:
    """What a stage is made from: its settings, and the content of each input by name."""
    return {"settings": dict(settings), "inputs": {name: fingerprint(path) for name, path in inputs.items() if path}}


def fingerprint(path: Path) -> str:
    """A text that changes when the content of `path` does.

    A feature store: its keys and checksums. A model: its bundle. A folder of images: names, sizes and times. Any other
    file: its bytes.
    """
    digest = hashlib.sha256()
    if path.suffix == ".h5" and store_exists(path):
        digest.update(FeatureStore.open(path).digest())
    elif path.is_dir() and bundle_exists(path):
        digest.update((path / BUNDLE_NAME).read_bytes())
    elif path.is_dir():
        for image in find_images(path):
            status = image.path.stat()
            digest.update(f"{image.key}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    else:
        try:
            digest.update(path.read_bytes())
        except OSError as exc:
            raise PipelineError(f"{path}: cannot be read ({exc.strerror})") from exc
    return digest.hexdigest()
