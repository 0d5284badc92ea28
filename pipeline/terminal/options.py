"""Types of arguments, the options made from settings (`setting_options`), and others that several commands share."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from captionmill.data.regular import read_stream
from captionmill.data.urls import is_url
from captionmill.stages.fields import Configuration, Setting, settings_of, shown
from captionmill.stages.settings import MACHINE_SETTINGS, ExtractConfig, SearchConfig

if TYPE_CHECKING:
    from captionmill.data.captions.files import CaptionFiles
    from captionmill.data.images.lists import ListedImages
    from captionmill.data.paths import AnyPath

    _AnyType = click.ParamType[Any]
    _PairType = click.ParamType[tuple[int, int]]
else:
    _AnyType = _PairType = click.ParamType  # which takes no parameters before click 8.4

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings", bound=Configuration)
Decorator = Callable[[Command], Command]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE_OR_FOLDER = click.Path(exists=True, path_type=Path)
FILE_PATH = click.Path(dir_okay=False, path_type=Path)
FOLDER_PATH = click.Path(file_okay=False, path_type=Path)


_METAVARS = {"sidecar": "SUFFIX", "tar_suffix": "SUFFIX"}
"""Of settings whose type says too little."""


class PathOrUrl(click.Path):
    """A local path, as Path, or a URL (s3://bucket/photos, https://host/list.txt), as str."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_url(value) else super().convert(value, param, ctx)


ANY_OR_URL = PathOrUrl(exists=True, path_type=Path)
ANY_URL_OR_DASH = PathOrUrl(exists=True, allow_dash=True, path_type=Path)
FILE_PATH_OR_URL = PathOrUrl(dir_okay=False, path_type=Path)
MODEL = PathOrUrl(path_type=Path)
"""A folder, a packed file or a URL."""


class FiniteFloat(click.FloatRange):
    """A number in a range, neither inf nor nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class ShardType(_PairType):
    """I/N: the I-th of N shards."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{shown(value)} is not I/N with I from 1 to N, such as 2/8", param, ctx)
        return int(found[1]), int(found[2])


class ValueOrWord(_AnyType):
    """A value of another type, or a word that means one."""

    def __init__(self, value_type: _AnyType, words: Mapping[str, Any]) -> None:
        self._value_type, self._words = value_type, words
        self.name = "|".join([value_type.name.split()[0].upper(), *words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._words[value] if value in self._words else self._value_type.convert(value, param, ctx)


def setting_options(kind: type[Configuration], *names: str, note: str = "") -> Decorator[Any]:
    """The options of the settings of `kind`, all or those called `names`; `note` is added to the help of each."""
    known = settings_of(kind)
    return options(*(_setting_option(known[name], note) for name in names or known))


def _setting_option(setting: Setting, note: str) -> Decorator[Any]:
    name = setting.name.replace("_", "-")
    is_flag = setting.type.kind is bool
    return click.option(
        f"--{name}/--no-{name}" if is_flag else f"--{name}",
        setting.name,
        type=None if is_flag else _value_type(setting),
        is_flag=is_flag,
        multiple=setting.type.is_list,
        metavar=_METAVARS.get(setting.name),
        default=setting.shown_default,
        show_default=setting.unset or True,
        help=f"{setting.help} {note}".rstrip(),
    )


def _value_type(setting: Setting) -> _AnyType:
    ends: dict[str, Any] = {"min": setting.least, "max": setting.most}
    kinds: dict[type, _AnyType] = {
        int: click.IntRange(**ends),
        float: FiniteFloat(**ends),
        str: click.STRING,
        Path: {"file": FILE_PATH, "folder": FOLDER_PATH, "model": MODEL}[setting.path_to],
    }
    value_type = click.Choice(setting.type.choices) if setting.type.choices else kinds[setting.type.kind]
    return ValueOrWord(value_type, setting.words) if setting.words else value_type


def take_settings(kind: type[Settings], options: dict[str, Any], *names: str) -> Settings:
    """The configuration `kind` with its settings, all or those called `names`, taken out of a command's `options`."""
    return kind(**{name: options.pop(name) for name in names or settings_of(kind)})


def options(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Several options as one decorator, shown in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def take_images(images: tuple[Path | str, ...]) -> "AnyPath | ListedImages":
    """The images that the arguments of a command name: a folder, a list, a tar or a URL, several images, or - for a
    list on standard input.
    """
    from captionmill.data.images.find import is_single_image
    from captionmill.data.images.lists import ListedImages, as_images

    if Path("-") in images:
        if len(images) > 1:
            raise click.UsageError("- reads a list from standard input: give it by itself")
        return ListedImages.of_lines(read_stream(sys.stdin.buffer, "standard input"), "standard input")
    return images[0] if len(images) == 1 and not is_single_image(images[0]) else as_images(images)


images_argument = click.argument("images", metavar="IMAGES...", type=ANY_URL_OR_DASH, nargs=-1, required=True)
log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    expose_value=False,  # `ErrorGroup` reads it, so that errors about other options use the format too
    help="Format of all output. json: one JSON object per line, on stdout and stderr.",
)
quiet_option = options(
    click.option("--quiet", is_flag=True, help="Show only the summary and warnings, no progress."),
    log_format_option,
)
wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="With --cluster: how long to wait for its scheduler and for its first worker.",
)
spread_options = options(
    click.option(
        "--jobs",
        type=click.IntRange(min=0),
        default=0,
        help="Processes on this machine; 0 is up to four per GPU if there are many images to extract, else one.",
    ),
    click.option("--cluster", metavar="URL", help="Extract on a cluster: dask://HOST:PORT or ray://HOST:PORT."),
    wait_option,
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace an existing output, once the new one is complete."
)
strict_option = click.option("--strict", is_flag=True, help="Exit with code 1 if any image cannot be read.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be read, skipped and done again, and change nothing."
)
NETWORK_SETTINGS = ("device", "engine", "precision")
"""How the network runs on one image."""
network_options = setting_options(ExtractConfig, *NETWORK_SETTINGS)
device_option = setting_options(ExtractConfig, "device")
machine_options = setting_options(ExtractConfig, *MACHINE_SETTINGS)
search_options = setting_options(SearchConfig)
models_option = click.option(
    "--model",
    "models",
    type=MODEL,
    multiple=True,
    required=True,
    help="Folder that `train` wrote, file that `pack` wrote, or a URL of one; several form an ensemble: all rank "
    "the candidates that any of them finds; without re-ranking, the mean of their probabilities finds the caption.",
)


matcher_option = click.option(
    "--model", type=MODEL, required=True, help="Model with a matcher, which `train` makes beside the decoder."
)


def captions_options(help_text: str = "", *, required: bool = True) -> Decorator[Any]:
    """The options that name reference captions; `take_captions` makes one value of them."""
    read = (
        "a Flickr token file, COCO or Karpathy JSON, CSV, JSON lines, Parquet, or a folder of .txt files beside images"
    )
    return options(
        click.option(
            "--captions",
            type=FILE_OR_FOLDER,
            multiple=True,
            required=required,
            help=f"{help_text or f'Reference captions: {read}'}; may be given several times.",
        ),
        click.option(
            "--image-column",
            metavar="NAME",
            help="Column that names the image.  [default: image, image_name, file_name, filename or path]",
        ),
        click.option(
            "--caption-column",
            metavar="NAME",
            help="Column that holds the caption.  [default: caption, comment or text]",
        ),
        click.option(
            "--only",
            type=click.Choice(["reviewed"]),
            help="Use of the tables that `caption` wrote only the captions that a person corrected or accepted.",
        ),
    )


def take_captions(options: dict[str, Any]) -> "CaptionFiles":
    """The reference captions, taken out of a command's `options`; without paths if none are given.

    The beginning of each file is checked here, so that a wrong one is named before torch is imported.
    """
    from captionmill.data.captions.files import CaptionFiles

    files = CaptionFiles(*(options.pop(name) for name in ("captions", "image_column", "caption_column", "only")))
    if files.paths:
        files.check()
    elif files.image_column is not None or files.caption_column is not None:
        raise click.UsageError("--image-column and --caption-column need --captions")
    elif files.only is not None:
        raise click.UsageError("--only needs --captions")
    return files


moved_weights_option = click.option(
    "--weights", type=FILE, help="File of the backbone's weights, if it was moved since training."
)
