"""What made each output of a pipeline, so that a second run does only what changed.

Beside `pipeline.toml` stands `pipeline.made.json`: for each stage the settings and the contents of its inputs when its
output was made, and the output's own hash. A stage is up to date if all of them are the same now.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from captionmill.data.atomic import write_text
from captionmill.data.bundle import BUNDLE_NAME, bundle_exists
from captionmill.data.errors import PipelineError
from captionmill.data.feature_store import FeatureStore, store_exists
from captionmill.data.image_files import find_images

Ingredients = dict[str, dict[str, Any]]
"""What an output is made from: "settings" by name, and the fingerprints of "inputs" by name."""


@dataclass(frozen=True)
class Record:
    """What one stage was last made from."""

    ingredients: Ingredients
    replaces: bool
    """While it runs: whether it replaces an output that was made from something else."""
    made: str
    """Fingerprint of the output when it was done; "" while it runs, or if it was cut short."""


class Workspace:
    """The record of what made the outputs of one pipeline file."""

    def __init__(self, plan_path: Path) -> None:
        """Read the record that stands beside `plan_path`, if there is one."""
        self.path = plan_path.with_name(f"{plan_path.stem}.made.json")
        self._records: dict[str, Record] = {}
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            for stage, record in values.items():
                self._records[stage] = Record(**record)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            raise PipelineError(f"{self.path}: not readable ({exc}); delete it and run again") from exc

    def made(self, stage: str) -> "Record | None":
        """What made the output of `stage`, or None if this pipeline has not begun to make it."""
        return self._records.get(stage)

    def is_up_to_date(self, stage: str, ingredients: Ingredients, output: Path) -> bool:
        """Whether `output` exists, was made from `ingredients`, and is still what was made then."""
        record = self._records.get(stage)
        if record is None or record.ingredients != ingredients or not (output.exists() or store_exists(output)):
            return False
        return record.made == fingerprint(output)

    def begin(self, stage: str, ingredients: Ingredients, *, replaces: bool) -> None:
        """Note that `stage` is about to run: until `end`, its output is this pipeline's own, but not made."""
        self._records[stage] = Record(ingredients, replaces, made="")
        self._write()

    def end(self, stage: str, output: Path) -> None:
        """Note that `stage` has made `output`."""
        self._records[stage] = replace(self._records[stage], made=fingerprint(output), replaces=False)
        self._write()

    def _write(self) -> None:
        values = {stage: asdict(record) for stage, record in self._records.items()}
        write_text(self.path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def describe(settings: Mapping[str, Any], inputs: Mapping[str, Path | None]) -> Ingredients:
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
            status = Path(image.path).stat()
            digest.update(f"{image.key}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    else:
        try:
            digest.update(path.read_bytes())
        except OSError as exc:
            raise PipelineError(f"{path}: cannot be read ({exc.strerror})") from exc
    return digest.hexdigest()
