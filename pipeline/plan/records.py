"""Records how each output of a pipeline was made, so that a second run does only what has changed.

They are in `pipeline.made.json` beside `pipeline.toml`: for each output the settings, the fingerprints of the inputs
and the version of captionmill that made it, and its own fingerprint.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from captionmill.data.errors import PipelineError
from captionmill.data.files import write_text
from captionmill.data.foreign import WRONG_VALUES, parse_json
from captionmill.data.locks import hold_lock
from captionmill.data.regular import read_text
from captionmill.pipeline.plan.fingerprints import Fingerprint, take_fingerprint

FORMAT = "captionmill-pipeline"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Ingredients:
    """The settings and inputs that an output is made from."""

    settings: dict[str, Any]
    """By name, as JSON values."""
    inputs: dict[str, Fingerprint]
    """By name."""


@dataclass(frozen=True)
class Record:
    """How one output was made."""

    task: str
    """The name of the task that made it."""
    ingredients: Ingredients
    replaces: bool
    """While it is being made: whether it replaces an output that was made from something else."""
    made: Fingerprint | None
    """The fingerprint of the finished output; None while it is being made, or if that was interrupted."""
    captionmill: str
    """The version of captionmill that made it."""
    ended: str = ""
    """The time when it was finished, local time."""
    duration_s: float = 0.0


class Workspace:
    """The records of the outputs of one pipeline file."""

    def __init__(self, plan_path: Path) -> None:
        """Read the records beside `plan_path`; PipelineError if they are not valid."""
        self.path = plan_path.with_name(f"{plan_path.stem}.made.json")
        self._folder = plan_path.parent.absolute()
        self._records: dict[str, Record] = {}
        try:
            values = parse_json(read_text(self.path))
            if (values["format"], values["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise ValueError("of another version of captionmill")
            self._records = {name: _read_record(record) for name, record in values["outputs"].items()}
        except FileNotFoundError:
            return
        except (OSError, *WRONG_VALUES) as exc:
            raise PipelineError(f"{self.path}: not readable ({exc}); delete it and run again") from exc

    def record(self, output: Path) -> Record | None:
        """How `output` was made, or None if this pipeline has not begun to make it."""
        return self._records.get(self._name(output))

    def begin(self, task: str, output: Path, ingredients: Ingredients, *, replaces: bool) -> None:
        """Record that `task` is about to run: until `end`, its output belongs to this pipeline but is not made."""
        version = metadata.version("captionmill")
        self._records[self._name(output)] = Record(task, ingredients, replaces, made=None, captionmill=version)
        self._write()

    def end(self, output: Path, inputs: dict[str, Fingerprint], duration_s: float) -> None:
        """Record that `output` is made, with the `inputs` it was made from."""
        record = self._records[self._name(output)]
        self._records[self._name(output)] = replace(
            record,
            ingredients=replace(record.ingredients, inputs=inputs),
            replaces=False,
            made=take_fingerprint(output),
            ended=datetime.now().isoformat(sep=" ", timespec="seconds"),
            duration_s=round(duration_s, 1),
        )
        self._write()

    def refresh(self, output: Path, inputs: dict[str, Fingerprint], made: Fingerprint) -> None:
        """Record new times of `inputs` and output whose contents are the same, so that the next comparison is quick."""
        record = self._records[self._name(output)]
        refreshed = replace(record, ingredients=replace(record.ingredients, inputs=inputs), made=made)
        if refreshed != record:
            self._records[self._name(output)] = refreshed
            self._write()

    def _name(self, output: Path) -> str:
        """Relative to the pipeline's folder, so that the whole folder can be moved."""
        try:
            return Path(os.path.relpath(output, self._folder)).as_posix()
        except ValueError:  # another drive on Windows
            return output.as_posix()

    def _write(self) -> None:
        outputs = {name: asdict(record) for name, record in self._records.items()}
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, "outputs": outputs}
        write_text(self.path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def claim_pipeline(plan_path: Path) -> Iterator[None]:
    """Keep every other process from running `plan_path` while the block lasts; PipelineError if one runs it already."""
    error = PipelineError(f"{plan_path}: another process is running this pipeline; wait for it to end")
    with hold_lock(plan_path.with_name(f".{plan_path.stem}.lock"), error):
        yield


def _read_record(values: dict[str, Any]) -> Record:
    ingredients = values.pop("ingredients")
    inputs = {name: Fingerprint(**fingerprint) for name, fingerprint in ingredients["inputs"].items()}
    made = values.pop("made")
    return Record(
        ingredients=Ingredients(dict(ingredients["settings"]), inputs),
        made=Fingerprint(**made) if made else None,
        **values,
    )
