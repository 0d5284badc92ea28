"""Reads one TOML file into what each stage needs. An unknown key is an error that names the nearest known one."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from captionmill.data.annotations import RESTVAL_CHOICES
from captionmill.data.errors import InputError, PipelineError
from captionmill.stages.config import ExtractConfig, SearchConfig, TrainConfig

Config = TypeVar("Config", ExtractConfig, TrainConfig, SearchConfig)
_TABLES = ("extract", "train", "evaluate", "caption")


@dataclass(frozen=True)
class ExtractPlan:
    """The [extract] table."""

    images: Path
    output: Path
    config: ExtractConfig


@dataclass(frozen=True)
class TrainPlan:
    """The [train] table."""

    captions: Path
    output: Path
    train_list: Path | None
    val_list: Path | None
    restval: str
    config: TrainConfig


@dataclass(frozen=True)
class EvaluatePlan:
    """The [evaluate] table."""

    output: Path
    image_list: Path | None
    search: SearchConfig


@dataclass(frozen=True)
class CaptionPlan:
    """The [caption] table."""

    images: Path
    output: Path
    search: SearchConfig


@dataclass(frozen=True)
class Plan:
    """A pipeline file: what is made from what. Paths are absolute; in the file they start at the file's folder."""

    path: Path
    extract: ExtractPlan
    train: TrainPlan
    evaluate: EvaluatePlan | None
    caption: CaptionPlan | None


def read_plan(path: Path) -> Plan:
    """The plan in the TOML file `path`; PipelineError with the key at fault if it cannot be understood."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise PipelineError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise PipelineError(f"{path}: not TOML: {exc}") from exc
    for name, table in tables.items():
        if name not in _TABLES:
            raise PipelineError(f"{path}: {_unknown('table', name, _TABLES)}")
        if not isinstance(table, dict):
            raise PipelineError(f"{path}: {name} is to be a table, [{name}]")
    reader = {name: _TableReader(path, name, tables.get(name)) for name in _TABLES}
    return Plan(
        path=path,
        extract=_read_extract(reader["extract"]),
        train=_read_train(reader["train"]),
        evaluate=_read_evaluate(reader["evaluate"]) if reader["evaluate"].present else None,
        caption=_read_caption(reader["caption"]) if reader["caption"].present else None,
    )


def _read_extract(table: "_TableReader") -> ExtractPlan:
    images, output = table.path("images"), table.path("output", "features.h5")
    return ExtractPlan(images, output, table.config(ExtractConfig))


def _read_train(table: "_TableReader") -> TrainPlan:
    captions, output = table.path("captions"), table.path("output", "model")
    train_list, val_list = table.optional_path("train_list"), table.optional_path("val_list")
    restval = table.choice("restval", RESTVAL_CHOICES)
    config = table.config(TrainConfig)
    config = replace(config, search=replace(config.search, max_length=config.max_length))  # as the command does
    return TrainPlan(captions, output, train_list, val_list, restval, config)


def _read_evaluate(table: "_TableReader") -> EvaluatePlan:
    output, image_list = table.path("output", "scores.json"), table.optional_path("list")
    return EvaluatePlan(output, image_list, table.config(SearchConfig))


def _read_caption(table: "_TableReader") -> CaptionPlan:
    images, output = table.path("images"), table.path("output", "captions.csv")
    return CaptionPlan(images, output, table.config(SearchConfig))


class _TableReader:
    """Takes the keys of one table one by one; what is left over at the end is unknown."""

    def __init__(self, plan_path: Path, name: str, table: Mapping[str, Any] | None) -> None:
        self.present = table is not None
        self._plan_path, self._name, self._left = plan_path, name, dict(table or {})
        self._known: list[str] = []

    def path(self, key: str, default: str | None = None) -> Path:
        self._known.append(key)
        value = self._left.pop(key, default)
        if value is None:
            raise PipelineError(f"{self._plan_path}: [{self._name}] needs `{key}`, a path")
        if not isinstance(value, str):
            raise self._wrong(key, value, "a path in quotes")
        return self._plan_path.parent.absolute() / value

    def optional_path(self, key: str) -> Path | None:
        if key in self._left:
            return self.path(key)
        self._known.append(key)
        return None

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """The value of `key`, by default the first of `choices`."""
        self._known.append(key)
        value = self._left.pop(key, choices[0])
        if value not in choices:
            raise self._wrong(key, value, "one of " + ", ".join(choices))
        return str(value)

    def config(self, kind: type[Config]) -> Config:
        """The settings that are left in the table; whatever is not one is an error."""
        hints = get_type_hints(kind)
        scalars: list[str] = [name for name in hints if hints[name] is not SearchConfig]
        for key in self._left:
            if key not in scalars:
                raise PipelineError(f"{self._plan_path}: {_unknown('key', key, [*self._known, *scalars], self._name)}")
        values = {key: self._convert(key, value, hints[key]) for key, value in self._left.items()}
        if "weights" in values and (file := self._plan_path.parent.absolute() / str(values["weights"])).is_file():
            values["weights"] = str(file)
        try:
            return kind(**values)
        except InputError as exc:
            raise PipelineError(f"{self._plan_path}: [{self._name}]: {exc}") from exc

    def _convert(self, key: str, value: Any, hint: Any) -> Any:
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise self._wrong(key, value, "one of " + ", ".join(map(str, get_args(hint))))
            return value
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not hint:
            kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text in quotes"}
            raise self._wrong(key, value, kinds[hint])
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> PipelineError:
        return PipelineError(f"{self._plan_path}: [{self._name}] {key} = {value!r}: is to be {wanted}")


def _unknown(what: str, name: str, known: list[str] | tuple[str, ...], table: str = "") -> str:
    where = f"[{table}] has no key `{name}`" if table else f"there is no {what} [{name}]"
    nearest = difflib.get_close_matches(name, known, 1)
    return where + (f"; did you mean `{nearest[0]}`?" if nearest else f"; known are {', '.join(known)}")
