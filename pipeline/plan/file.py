"""Reads the tables of a pipeline file key by key; errors name the line."""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from captionmill.data.errors import PipelineError, SettingError
from captionmill.data.regular import read_text
from captionmill.data.urls import is_url
from captionmill.stages.fields import Configuration, Setting, settings_of, shown

Config = TypeVar("Config", bound=Configuration)
GRID = "grid"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class PlanFile:
    """A pipeline file: its tables, and errors that name its lines."""

    def __init__(self, path: Path) -> None:
        """Read `path`; PipelineError if it is not TOML."""
        self.path = path
        self.folder = path.parent.absolute()
        try:
            self._text = read_text(path, "utf-8-sig")
            self.values = tomllib.loads(self._text)
        except OSError as exc:
            raise PipelineError(f"{path}: cannot be read ({exc.strerror})") from exc
        except ValueError as exc:
            raise PipelineError(f"{path}: not TOML: {exc}") from exc
        except RecursionError as exc:
            raise PipelineError(f"{path}: not TOML: nested too deeply") from exc

    def error(self, names: Sequence[str], message: str) -> PipelineError:
        """An error at the table or key at `names`, or at the table around it."""
        for count in range(len(names), 0, -1):
            if line := find_line(self._text, names[:count]):
                return PipelineError(f"{self.path}:{line}: {message}")
        return PipelineError(f"{self.path}: {message}")

    def sections(self, kind: str) -> list["Section"]:
        """The tables of one kind: [kind] itself, or each [kind.NAME] with what [kind] sets for all."""
        table = self.values.get(kind)
        if table is None:
            return []
        if not isinstance(table, dict):
            hint = f"for several, write [{kind}.NAME] for each" if isinstance(table, list) else f"write [{kind}]"
            raise self.error([kind], f"`{kind}` must be a table: {hint}")
        named = {name: values for name, values in table.items() if isinstance(values, dict) and name != GRID}
        shared = {name: values for name, values in table.items() if name not in named}
        if not named:
            return [Section(self, (kind,), table, {})]
        for name in named:
            if not _NAME.fullmatch(name):
                raise self.error([kind, name], f"[{kind}.{name}]: a name has letters, digits, - and _")
        return [Section(self, (kind, name), values, shared) for name, values in named.items()]


class Section:
    """Reads the keys of one table one by one; the keys left at the end are unknown."""

    def __init__(
        self, file: PlanFile, place: tuple[str, ...], values: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> None:
        self._file, self._place, self._own = file, place, set(values)
        self._left = {**shared, **values}
        self._known: list[str] = []

    @property
    def name(self) -> str:
        """The NAME of [kind.NAME], else ""."""
        return ".".join(self._place[1:])

    def error(self, key: str | None, message: str) -> PipelineError:
        """An error at `key`, or at the whole table."""
        table = f"[{'.'.join(self._place)}]"
        if key is None:
            return self._file.error(self._place, f"{table} {message}")
        names = key.split(".")
        place = self._place if names[0] in self._own else self._place[:1]
        return self._file.error([*place, *names], f"{table} {message}")

    def take(self, key: str) -> Any:
        """The value of `key`, None if it is not there."""
        self._known.append(key)
        return self._left.pop(key, None)

    def text(self, key: str) -> str | None:
        """The text of `key`, None if it is not there."""
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "a text in quotes")
        return value

    def texts(self, key: str) -> list[str]:
        """The texts of `key`, one or a list; empty if it is not there."""
        value = self.take(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in values):
            raise self._wrong(key, value, "a text in quotes, or a list of texts")
        return values

    def path(self, key: str, default: str | None = None) -> Path:
        """The path of `key`, which starts at the file's folder."""
        path = self.optional_path(key)
        if path is None and default is None:
            raise self.error(None, f"needs `{key}`, a path")
        return path or self.resolve(str(default))

    def optional_path(self, key: str) -> Path | None:
        """The path of `key`, None if it is not there."""
        value = self.take(key)
        if value is not None and (not isinstance(value, str) or is_url(value)):
            raise self._wrong(key, value, "a path in quotes")
        return None if value is None else self.resolve(value)

    def paths(self, key: str) -> list[Path]:
        """The paths of `key`, one or a list; empty if it is not there."""
        value = self.take(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) and not is_url(item) for item in values):
            raise self._wrong(key, value, "a path in quotes, or a list of paths")
        return [self.resolve(item) for item in values]

    def images(self, key: str) -> Path | str:
        """The path or URL of `key`."""
        value = self._left.get(key)
        if isinstance(value, str) and is_url(value):
            self.take(key)
            return value
        return self.path(key)

    def resolve(self, value: str) -> Path:
        """The absolute path of a path in the file."""
        if "\0" in value:
            raise self.error(None, "has a path with a NUL character")
        return Path(os.path.normpath(self._file.folder / value))

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """The value of `key`, by default the first of `choices`."""
        value = self.take(key)
        if value is not None and value not in choices:
            raise self._wrong(key, value, "one of " + ", ".join(choices))
        return str(choices[0] if value is None else value)

    def grid(self, known: Mapping[str, Setting]) -> dict[str, list[Any]]:
        """The lists of the table's own [grid]: for each setting in it, one of `known`, the values to try."""
        table = self.take(GRID) or {}
        if not isinstance(table, dict):
            raise self._wrong(GRID, table, f"a table, [{'.'.join([*self._place, GRID])}]")
        for key, values in table.items():
            if key not in known:
                raise self.error(f"{GRID}.{key}", f"{GRID} has no key `{key}`{_nearest(key, [*known])}")
            if not isinstance(values, list) or not values:
                raise self._wrong(f"{GRID}.{key}", values, "a list of values to try")
        return {
            key: [self._convert(f"{GRID}.{key}", value, known[key]) for value in values]
            for key, values in table.items()
        }

    def settings(self, base: Config, names: Sequence[str] | None = None) -> Config:
        """`base` with the settings in the table: all keys that are left, or only `names`.

        Without `names`, a key that is not a setting is an error.
        """
        known = {name: one for name, one in settings_of(type(base)).items() if names is None or name in names}
        self._known += known
        if names is None:
            self._refuse_unknown()
        values = {key: self._convert(key, self._left.pop(key), known[key]) for key in list(self._left) if key in known}
        if "weights" in values and (file := self.resolve(values["weights"])).is_file():
            values["weights"] = str(file)
        return self.changed(base, values)

    def changed(self, config: Config, values: Mapping[str, Any]) -> Config:
        """`config` with other `values`; PipelineError for one out of its range."""
        try:
            return replace(config, **values)
        except SettingError as exc:
            raise self.error(next((name for name in exc.names if name in values), None), str(exc)) from exc

    def _refuse_unknown(self) -> None:
        for key in self._left:
            if key not in self._known:
                raise self.error(key, f"has no key `{key}`{_nearest(key, self._known)}")

    def _convert(self, key: str, value: Any, setting: Setting) -> Any:
        """The value of a TOML file converted for `setting`; paths start at the file's folder."""
        try:
            if isinstance(value, list) and setting.type.is_list:
                return setting.accept([self._read(item, setting) for item in value])
            return setting.accept(self._read(value, setting))
        except SettingError as exc:
            several = isinstance(value, list) and not setting.type.is_list
            hint = f"; to try several, write them in [{'.'.join([*self._place, GRID])}]" if several else ""
            raise self.error(key, f"{exc}{hint}") from exc

    def _read(self, value: Any, setting: Setting) -> Any:
        if isinstance(value, str):
            is_path = setting.type.kind is Path and not is_url(value)
            return self.resolve(value) if is_path else setting.words.get(value, value)
        is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        return float(value) if is_whole and setting.type.kind is float else value

    def _wrong(self, key: str, value: object, wanted: str) -> PipelineError:
        return self.error(key, f"{key} = {_as_toml(value)}: must be {wanted}")


def refuse_unknown_tables(file: PlanFile, known: Sequence[str]) -> None:
    """Raise PipelineError for a table of `file` that is not among the `known`."""
    for name in file.values:
        if name not in known:
            raise file.error([name], f"there is no table [{name}]{_nearest(name, known)}")


def unknown_name(name: str, what: str, known: Sequence[str]) -> str:
    """A message that there is no `what` called `name`, with the nearest of the `known`."""
    return f"there is no {what} `{name}`{_nearest(name, known)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, 1)
    return f"; did you mean `{nearest[0]}`?" if nearest else f"; known are {', '.join(known) or 'none'}"


def _as_toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)


def find_line(text: str, names: Sequence[str]) -> int | None:
    """The line, from 1, where the key or table at `names` begins in the valid TOML `text`; None if it is not there.

    It works for quoted, dotted and inline keys: the text up to and including that statement is the shortest that parses
    and contains it. The statement begins on the line after the longest shorter text that parses.
    """
    lines = text.splitlines(keepends=True)
    begins = 0
    for count in range(1, len(lines) + 1):
        try:
            values = tomllib.loads("".join(lines[:count]))
        except ValueError:  # in the middle of a value of several lines
            continue
        if _has(values, names):
            return begins + 1
        begins = count
    return None


def _has(values: object, names: Sequence[str]) -> bool:
    for name in names:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True
