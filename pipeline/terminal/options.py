"""Kinds of arguments, and options that several commands share. A default stands in stages/settings.py alone."""

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from captionmill.data.urls import is_url
from captionmill.stages.settings import RANGES, ExtractConfig, SearchConfig, TableConfig

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings", ExtractConfig, SearchConfig, TableConfig)
Decorator = Callable[[Command], Command]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE_PATH = click.Path(dir_okay=False, path_type=Path)
FOLDER_PATH = click.Path(file_okay=False, path_type=Path)


class PathOrUrl(click.Path):
    """A local path, as Path, or a URL (s3://bucket/photos, https://host/list.txt), as str."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_url(value) else super().convert(value, param, ctx)


ANY_OR_URL = PathOrUrl(exists=True, path_type=Path)
FILE_PATH_OR_URL = PathOrUrl(dir_okay=False, path_type=Path)


class FiniteFloat(click.FloatRange):
    """A number in a range, neither inf nor nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class ShardType(click.ParamType[tuple[int, int]]):
    """I/N: the I-th of N shards."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        index, _, count = str(value).partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            self.fail(f"{value!r} is not I/N with I from 1 to N, such as 2/8", param, ctx)
        return int(index), int(count)


class Workers(click.ParamType[int]):
    """A number of threads; auto is 0, which leaves it to the machine."""

    name = "INTEGER|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return 0
        low, high = RANGES["workers"]
        return click.IntRange(int(low), int(high or 0)).convert(value, param, ctx)


def setting(kind: type, name: str, help_text: str, *, metavar: str | None = None) -> Decorator[Any]:
    """An option whose default and type come from the field `name` of the dataclass `kind`."""
    hint, default = get_type_hints(kind)[name], getattr(kind, name)
    value_type: Any
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)  # a setting that can be left out
    if get_origin(hint) is Literal:
        value_type = click.Choice(get_args(hint))
    else:
        low, high = RANGES.get(name, (1, None))
        ranges: dict[Any, Any] = {int: click.IntRange, float: FiniteFloat}
        value_type = ranges[hint](min=low, max=high) if hint in ranges else hint
    flag = f"--{name.replace('_', '-')}"
    if hint is bool:
        return click.option(
            f"{flag}/--no-{flag[2:]}" if default else flag, name, is_flag=True, default=default, help=help_text
        )
    return click.option(
        flag, name, type=value_type, default=default, show_default=True, metavar=metavar, help=help_text
    )


def options(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Several options as one decorator, shown in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    expose_value=False,  # `ErrorGroup` has seen it: what is wrong with other options is said in it too
    help="json: all that is said, on stdout and stderr, is one JSON object a line.",
)
quiet_option = options(
    click.option("--quiet", is_flag=True, help="Show no progress, only the summary and warnings."),
    log_format_option,
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace an output that exists, once the new one is complete."
)
device_option = setting(ExtractConfig, "device", "auto, cpu, cuda, cuda:N or mps.")
machine_options = options(
    setting(ExtractConfig, "batch_size", "Images a forward pass of the network.  [default: 8 with openvino, else 32]"),
    click.option(
        "--workers",
        type=Workers(),
        default="auto",
        show_default=True,
        help="Threads that decode images; auto is one a core that this process may use.",
    ),
    device_option,
    setting(ExtractConfig, "engine", "What runs the network; auto is openvino on a CPU where it is installed."),
    setting(ExtractConfig, "precision", "Arithmetic of the network."),
)
models_option = click.option(
    "--model",
    "models",
    type=FOLDER_PATH,
    multiple=True,
    required=True,
    help="Folder that `train` wrote; given several times: the mean of their probabilities.",
)
search_options = options(
    setting(SearchConfig, "beam_size", "Captions kept at each step; 1 is greedy search."),
    setting(
        SearchConfig, "length_penalty", "Power of a caption's length that divides its score; 0 favours short ones."
    ),
    setting(SearchConfig, "min_length", "Words a caption at least."),
    setting(SearchConfig, "max_length", "Words a caption at most."),
    setting(SearchConfig, "no_repeat_ngram", "Words in a row that must not come twice in a caption; 0 lets all."),
    setting(SearchConfig, "alternatives", "Further captions an image, the next best of the beam."),
    setting(SearchConfig, "diversity_groups", "Groups that the beam is cut into; each avoids the earlier ones' words."),
    setting(SearchConfig, "diversity_strength", "What a word loses, in log probability, for each such caption."),
    setting(SearchConfig, "sample", "Draw words at random by their probability; --beam-size does not count."),
    setting(SearchConfig, "temperature", "With --sample: below 1 the likely words gain, above it the others."),
    setting(SearchConfig, "top_k", "With --sample: draw only from so many of the likeliest words; 0 is all."),
    setting(SearchConfig, "top_p", "With --sample: draw only from the likeliest words that together reach this."),
    setting(SearchConfig, "seed", "Of whatever is drawn at random."),
)


def take_settings(kind: type[Settings], options: dict[str, Any]) -> Settings:
    """The settings of the dataclass `kind`, taken out of the `options` of a command."""
    return kind(**{field.name: options.pop(field.name) for field in fields(kind)})
