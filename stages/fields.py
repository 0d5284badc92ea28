"""One setting: its field holds default, type, range, unit and meaning, and everything that uses it reads them there.

The options of the commands, the file that `init` writes, the reading of pipeline files, the check of values and the API
page all come from `settings_of`.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from captionmill.data.errors import SettingError
from captionmill.data.urls import is_url

Default = TypeVar("Default")
PathTo = Literal["file", "folder", "model"]

GREATEST_WHOLE = 2**31 - 1  # of a setting that names no other limit
MOST_SHOWN = 200  # characters
_KEY = "setting"  # of a field's metadata
_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", Path: "a path"}


def setting(
    default: Default,
    help_text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    unset: str = "",
    example: object = None,
    words: Mapping[str, object] | None = None,
    path_to: PathTo = "file",
    needs: str = "",
) -> Default:
    """The field of a setting in a `Configuration`; arguments as in `Setting`."""
    known = {"help": help_text, "least": least, "most": most, "unset": unset, "example": example}
    known |= {"words": words or {}, "path_to": path_to, "needs": needs}
    return field(default=default, metadata={_KEY: known})


@dataclass(frozen=True)
class SettingType:
    """The type of a setting, read from its annotation."""

    kind: type
    """bool, int, float, str or Path; for a list, the type of its items."""
    choices: tuple[str, ...] = ()
    """The strings that are allowed; () for any."""
    is_optional: bool = False
    """Whether it may be None."""
    is_list: bool = False


def read_type(annotation: Any) -> SettingType:
    """The type for `annotation`: a Literal of strings, bool, int, float, str, Path, a tuple of these, or one | None.

    `AnyPath`, a path or a string, counts as Path: the configuration holds a Path.

    Raises TypeError for any other annotation.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        others = {argument for argument in arguments if argument is not types.NoneType}
        if len(others) == 1 or others == {str, Path}:
            inner = read_type(Path if len(others) > 1 else others.pop())
            is_optional = types.NoneType in arguments
            return SettingType(inner.kind, inner.choices, is_optional=is_optional, is_list=inner.is_list)
    if origin is tuple and arguments[1:] == (...,):
        inner = read_type(arguments[0])
        return SettingType(inner.kind, inner.choices, is_list=True)
    if origin is Literal:
        return SettingType(str, arguments)
    if annotation in _WANTED:
        return SettingType(annotation)
    raise TypeError(f"{annotation} is not a type that a setting can have")


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration."""

    name: str
    default: Any
    type: SettingType
    help: str
    """Its meaning and unit: one or two sentences."""
    least: float | None = None
    most: float | None = None
    unset: str = ""
    """What None means, if that is the default."""
    example: Any = None
    """A value to show if the default is None."""
    words: Mapping[str, Any] = field(default_factory=dict)
    """Values that can be given as a word, such as {"auto": 0}."""
    path_to: PathTo = "file"
    """What a path leads to; a model may also be at a URL."""
    needs: str = ""
    """Another setting of the configuration, without which this one does nothing."""

    @property
    def limits(self) -> str:
        """The range of a number, in words; "" without one."""
        ends = (("least", self.least), ("most", self.most))
        return " and ".join(f"at {name} {end}" for name, end in ends if end is not None)

    @property
    def shown_default(self) -> Any:
        """The default, or the word for it if there is one."""
        return next((word for word, value in self.words.items() if value == self.default), self.default)

    @property
    def unnamed_choices(self) -> tuple[str, ...]:
        """The choices, or () if the help names all of them."""
        return () if all(choice in self.help for choice in self.type.choices) else self.type.choices

    def description(self) -> str:
        """Help, choices, range and the meaning of None, as one paragraph."""
        parts = [self.help]
        if self.unnamed_choices:
            parts.append(f"One of {', '.join(self.unnamed_choices)}.")
        if self.limits:
            parts.append(f"{self.limits.capitalize()}.")
        if self.words:
            parts.append(" ".join(f"{value} is the command's {word}." for word, value in self.words.items()))
        if self.unset:
            parts.append(f"Default: {self.unset}.")
        return " ".join(parts)

    def accept(self, value: object) -> Any:
        """`value` as the configuration stores it: strings and paths are converted to the setting's type, lists to
        tuples.

        Raises SettingError if it has another type or is out of range.
        """
        if value is None and self.type.is_optional:
            return None
        if not self.type.is_list:
            return self._accept_one(value)
        if not isinstance(value, list | tuple):
            raise self._wrong("a list", value)
        return tuple(self._accept_one(item) for item in value)

    def _accept_one(self, value: object) -> Any:
        kind, choices = self.type.kind, self.type.choices
        if kind in (str, Path) and isinstance(value, str | Path):
            if "\0" in str(value):
                raise self._wrong("without a NUL character", value)
            if kind is Path and is_url(value):
                if self.path_to == "model":
                    return str(value)
                raise self._wrong("a local path", value)
            value = kind(value)
        elif kind in (int, float):
            if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
                raise self._wrong(_WANTED[kind], value)
            return self._within(value)
        if choices and value not in choices:
            raise self._wrong(f"one of {', '.join(choices)}", value)
        if not isinstance(value, kind):
            raise self._wrong(_WANTED[kind], value)
        return value

    def _within(self, value: Any) -> Any:
        if self.type.kind is float and not _is_finite(value):
            raise self._wrong("a finite number", value)
        if self.type.kind is int and self.most is None and value > GREATEST_WHOLE:
            raise self._wrong(f"at most {GREATEST_WHOLE}", value)
        if (self.least is not None and value < self.least) or (self.most is not None and value > self.most):
            raise self._wrong(self.limits, value)
        return value if isinstance(value, int | float) else self.type.kind(value)  # such as NumPy's, which JSON lacks

    def _wrong(self, wanted: str, value: object) -> SettingError:
        return SettingError(f"`{self.name}` must be {wanted}, not {shown(value)}")


def require_least(name: str, value: float | None, least: float, *, whole: bool = True) -> None:
    """Raise SettingError if the parameter `name`, of no configuration, is no such number; None may be."""
    kind = Integral if whole else Real
    if value is not None and not (isinstance(value, kind) and value >= least):
        raise SettingError(
            f"`{name}` must be {'a whole number' if whole else 'a number'} of {least} or more, not {shown(value)}"
        )


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def shown(value: object) -> str:
    """`value` as a message shows it: not longer than a line."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length():,} bits"
    try:
        text = repr(value)
    except ValueError:  # a list with such a number
        text = f"such a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


@dataclass(frozen=True)
class Configuration:
    """A group of settings. Raises SettingError for values that do not fit their fields."""

    def __post_init__(self) -> None:
        for name, known in settings_of(type(self)).items():
            object.__setattr__(self, name, known.accept(getattr(self, name)))
            if known.needs and getattr(self, name) != known.default and not getattr(self, known.needs):
                raise SettingError(f"`{name}` does nothing without `{known.needs}`: set that too, or leave this out")


def settings_of(kind: type[Configuration]) -> Mapping[str, Setting]:
    """The settings of the configuration `kind` by name, in order, without configurations inside it."""
    hints = get_type_hints(kind)
    return types.MappingProxyType(
        {
            one.name: Setting(one.name, one.default, read_type(hints[one.name]), **one.metadata[_KEY])
            for one in fields(kind)
            if _KEY in one.metadata
        }
    )
