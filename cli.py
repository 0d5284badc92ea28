"""The `captionmill` command: options -> one call -> a summary. Heavy imports stay inside, so that help is instant."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from captionmill.data.errors import CaptionmillError, InputError
from captionmill.data.urls import is_url
from captionmill.pipeline import summaries
from captionmill.pipeline.summaries import show_count, show_list
from captionmill.stages.config import RANGES, BootstrapConfig, ExtractConfig, LeakConfig, SearchConfig, TrainConfig

if TYPE_CHECKING:
    from captionmill.data.splits import Splits
    from captionmill.pipeline.run import StageOutcome
    from captionmill.stages.decoding.training_state import EpochResult

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

SECONDS_BETWEEN_LINES = 30
_SECONDS_BETWEEN_DRAWINGS = 0.1
_LEAST_BAR, _MOST_BAR = 8, 36  # characters

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE_PATH = click.Path(dir_okay=False, path_type=Path)
_FOLDER_PATH = click.Path(file_okay=False, path_type=Path)


class _PathOrUrl(click.Path):
    """A local path, as Path, or a URL (s3://bucket/photos, https://host/list.txt), as str."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_url(value) else super().convert(value, param, ctx)


_ANY_OR_URL = _PathOrUrl(exists=True, path_type=Path)
_FILE_PATH_OR_URL = _PathOrUrl(dir_okay=False, path_type=Path)


class _Shard(click.ParamType[tuple[int, int]]):
    """I/N: the I-th of N shards."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        index, _, count = str(value).partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            self.fail(f"{value!r} is not I/N with I from 1 to N, such as 2/8", param, ctx)
        return int(index), int(count)


class _Workers(click.ParamType[int]):
    """A number of threads; auto is 0, which leaves it to the machine."""

    name = "INTEGER|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return 0
        low, high = RANGES["workers"]
        return click.IntRange(int(low), int(high or 0)).convert(value, param, ctx)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: a batch system or a shutdown wants the process to end; everything is flushed as for Ctrl-C."""


def _raise_terminated(*_: object) -> None:
    raise _Terminated


class _ErrorGroup(click.Group):
    """Shows what a user can mend as one line on stderr with exit code 1; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:
            click.echo("\nStopped. Features extracted so far are kept, and an output is as it was before.", err=True)
            if isinstance(exc, _Terminated):
                ctx.exit(128 + signal.SIGTERM)
            raise
        except CaptionmillError as exc:
            raise click.ClickException(str(exc)) from exc
        except BrokenPipeError:  # click ends the command in silence
            raise
        except OSError as exc:
            where = f"{exc.filename}: " if exc.filename else ""
            raise click.ClickException(f"{where}{exc.strerror or exc}") from exc


class ProgressBars:
    """On a terminal a bar for each label that a stage reports; in a log, a plain line now and then. On stderr.

    The line of a label that has notes makes way for what comes after it: the stage's results say it better.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._label = ""
        self._line = ""  # on the screen now
        self._bar_width = _MOST_BAR
        self._has_notes = False
        self._started = (0.0, 0)  # when, and with how much done
        self._drawn_at = 0.0
        self._said_at = time.monotonic()

    def __enter__(self) -> "ProgressBars":
        for handler in logging.getLogger("captionmill").handlers:
            if isinstance(handler, _EchoHandler):
                handler.progress = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(stays=kind is not None or not self._has_notes)

    def __call__(self, label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        if sys.stderr.isatty():
            self._draw(label, done, total, note, left_s, now)
        elif now - self._said_at > SECONDS_BETWEEN_LINES:
            left = summaries.show_time_left(left_s) if left_s else ""
            click.echo(f"{label}: " + ", ".join(filter(None, [f"{done:,} of {total:,}", note, left])), err=True)
            self._said_at = now

    def clear(self) -> None:
        """Take away the line that is on the terminal, so that another can be written there."""
        if self._line:
            click.echo(f"\r{' ' * len(self._line)}\r", nl=False, err=True)
            self._line = ""

    def _draw(self, label: str, done: int, total: int, note: str, left_s: float | None, now: float) -> None:
        if label != self._label:
            self._end(stays=not self._has_notes)
            self._label, self._bar_width, self._started = label, _MOST_BAR, (now, done)
        elif done < total and now - self._drawn_at < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._has_notes, self._drawn_at = bool(note), now
        if left_s is None and self._started[1] < done < total:
            left_s = (now - self._started[0]) / (done - self._started[1]) * (total - done)
        facts = (note or f"{done:,} of {total:,}").split(", ")
        self._write(label, done / total if total else 1.0, facts, [summaries.show_time_left(left_s)] if left_s else [])
        if done >= total and not self._has_notes:
            self._end(stays=True)

    def _write(self, label: str, share: float, facts: list[str], left: list[str]) -> None:
        """Where the terminal is narrow, the bar gets shorter and goes, then the last facts go, then it is cut."""
        columns = _terminal_columns() - 1  # a character in the last one makes some terminals begin a new line
        percent = f"{int(100 * share):3}%"
        room = columns - len(f"{label}  []  {percent}  {', '.join(facts + left)}")
        self._bar_width = min(self._bar_width, room)  # it never grows again for a label, since that would flicker
        filled = int(self._bar_width * share)
        bar = f"  [{'#' * filled}{'-' * (self._bar_width - filled)}]" if self._bar_width >= _LEAST_BAR else ""
        start = f"{label}{bar}  {percent}  "
        while facts and len(start + ", ".join(facts + left)) > columns:
            facts = facts[:-1]
        line = (start + ", ".join(facts + left))[:columns]
        click.echo("\r" + line.ljust(len(self._line)), nl=False, err=True)
        self._line = line

    def _end(self, *, stays: bool) -> None:
        """Be done with the label whose line is on the terminal."""
        if self._line and stays:
            click.echo(err=True)
            self._line = ""
        self.clear()
        self._label, self._has_notes = "", False


def _terminal_columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some terminals do not know
    except OSError:
        return 80


class _EchoHandler(logging.Handler):
    """Log records as plain lines on stderr, in place of a bar that is on a terminal now and drawn again below."""

    progress: ProgressBars | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.progress is not None:
            self.progress.clear()
        click.echo(f"{record.levelname.capitalize()}: {record.getMessage()}", err=True)


def _setting(kind: type, name: str, help_text: str) -> Decorator[Any]:
    """An option whose default and type come from the field `name` of the dataclass `kind`."""
    hint, default = get_type_hints(kind)[name], getattr(kind, name)
    value_type: Any
    if get_origin(hint) is Literal:
        value_type = click.Choice(get_args(hint))
    else:
        low, high = RANGES.get(name, (1, None))
        ranges: dict[Any, Any] = {int: click.IntRange, float: click.FloatRange}
        value_type = ranges[hint](min=low, max=high) if hint in ranges else hint
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, name, type=value_type, default=default, show_default=True, help=help_text)


def _options(*decorators: Decorator[Any]) -> Decorator[Any]:
    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


_quiet = click.option("--quiet", is_flag=True, help="Show no progress, only the summary and warnings.")
_overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace an output that exists, once the new one is complete."
)
_device = _setting(ExtractConfig, "device", "auto, cpu, cuda, cuda:N or mps.")
_machine = _options(
    _setting(ExtractConfig, "batch_size", "Images a forward pass of the network."),
    click.option(
        "--workers",
        type=_Workers(),
        default="auto",
        show_default=True,
        help="Threads that decode images; auto is one a core that this process may use.",
    ),
    _device,
    _setting(ExtractConfig, "engine", "What runs the network; auto is openvino on a CPU where it is installed."),
    _setting(ExtractConfig, "precision", "Arithmetic of the network."),
)
_models = click.option(
    "--model",
    "models",
    type=_FOLDER_PATH,
    multiple=True,
    required=True,
    help="Folder that `train` wrote; given several times: the mean of their probabilities.",
)
_search = _options(
    _setting(SearchConfig, "beam_size", "Captions kept at each step; 1 is greedy search."),
    _setting(
        SearchConfig, "length_penalty", "Power of a caption's length that divides its score; 0 favours short ones."
    ),
    _setting(SearchConfig, "max_length", "Words a caption at most."),
)


# torch's threads would spin while they wait for each other: with another busy program beside them, training took seven
# times as long. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@click.group(cls=_ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="captionmill")
def main() -> None:
    """Caption images offline and in bulk.

    Features of a frozen ResNet are cached once (extract); a decoder is trained on them (train), scored (evaluate), and
    captions folders of pictures to CSV (caption). Start with: captionmill demo
    """
    logger = logging.getLogger("captionmill")
    logger.handlers = [_EchoHandler()]
    logger.setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _raise_terminated)


@main.command()
@click.argument("images", type=_ANY_OR_URL)
@click.option(
    "--output", type=_FILE_PATH_OR_URL, required=True, help="Feature store to write or to go on with (HDF5), or a URL."
)
@_setting(ExtractConfig, "backbone", "Network; scenes-resnet14 is the demo's, for drawn scenes only.")
@_setting(ExtractConfig, "weights", "imagenet1k_v1, imagenet1k_v2, or a state_dict file (.pth, .safetensors).")
@_setting(
    ExtractConfig,
    "preprocess",
    "crop: shorter side resized, centre cut out; squash: whole picture made square; whole: nothing cut, shape kept.",
)
@_setting(ExtractConfig, "image_size", "Side of the square that the network sees (whole: the shorter side), pixels.")
@_setting(ExtractConfig, "views", "flip: the mean of the picture and its mirror, at twice the time.")
@_machine
@click.option("--compile/--no-compile", "compile", default=ExtractConfig.compile, help="Use torch.compile (GPUs).")
@_setting(ExtractConfig, "dtype", "Numbers as stored.")
@_setting(ExtractConfig, "flush_every", "Rows a part file: at most these are lost when the process is killed.")
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=0,
    help="Processes on this machine; 0 is up to four a GPU where many images are to be done, else one.",
)
@click.option("--cluster", metavar="URL", help="Spread over dask://HOST:PORT or ray://HOST:PORT.")
@click.option(
    "--shard", type=_Shard(), help="Do the I-th of N parts, for array jobs; then: captionmill features merge."
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many images of the sorted list.")
@click.option("--prune", is_flag=True, help="Remove rows whose image is not among IMAGES any more.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any image cannot be read.")
@_overwrite
@_quiet
def extract(
    images: Path | str,
    output: Path | str,
    limit: int | None,
    shard: tuple[int, int] | None,
    jobs: int,
    cluster: str | None,
    prune: bool,
    strict: bool,
    overwrite: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Cache 2048 numbers for each image of IMAGES.

    IMAGES is a folder, a text file with one path or URL a line, a .tar of images or a folder of such; or a URL of
    these. A rerun does only what is missing. Images that cannot be read are listed in failures.csv beside the output.

    Example: captionmill extract photos --output features.h5
    """
    from captionmill.pipeline.cluster import open_spread
    from captionmill.stages.encoding.extract import extract

    with ProgressBars(quiet=quiet) as progress, open_spread(jobs, cluster, device=settings["device"]) as spread:
        summary = extract(
            images,
            output,
            ExtractConfig(**settings),
            overwrite=overwrite,
            limit=limit,
            shard=shard,
            prune=prune,
            spread=spread,
            progress=progress,
        )
    click.echo(f"{summary.output}: {summaries.extract_line(summary)}")
    if summary.extracted and not quiet:
        click.echo(summaries.meter_line(summary), err=True)
    if summary.unlisted:
        click.echo(summaries.unlisted_line(summary), err=True)
    if summary.failures:
        click.echo(f"Not readable, listed in {summary.failures_name} beside {summary.output}:", err=True)
        click.echo(show_list([f"{failure.key}: {failure.reason}" for failure in summary.failures]), err=True)
        if strict:
            raise InputError(f"{show_count(len(summary.failures), 'image')} cannot be read, and --strict is given")


@main.command()
@click.argument("features", type=_FILE_PATH)
@click.option("--captions", type=_FILE, required=True, help="Flickr token file, COCO or Karpathy JSON, or CSV.")
@click.option("--output", type=_FOLDER_PATH, required=True, help="Folder for the model.")
@click.option("--train-list", type=_FILE, help="Images to train on, one a line; goes with --val-list.")
@click.option("--val-list", type=_FILE, help="Images that choose the best epoch, one a line.")
@click.option(
    "--restval",
    type=click.Choice(["train", "drop"]),
    default="train",
    show_default=True,
    help="What becomes of the restval images of Karpathy's JSON.",
)
@_setting(TrainConfig, "min_count", "Times a training word must occur to get an index.")
@_setting(TrainConfig, "image_input", "The LSTM's initial state, before the first word, or beside every word.")
@_setting(TrainConfig, "feature_scaling", "Each number standardised, the row made one length, or both.")
@_setting(TrainConfig, "embed_dim", "Numbers a word embedding.")
@_setting(TrainConfig, "hidden_dim", "Numbers in the LSTM's state.")
@_setting(TrainConfig, "layers", "LSTM layers.")
@click.option(
    "--tie-weights/--no-tie-weights",
    default=TrainConfig.tie_weights,
    show_default=True,
    help="Use a word's embedding as its output weights too.",
)
@_setting(TrainConfig, "dropout", "Share of values dropped in training, 0 to 1.")
@_setting(TrainConfig, "feature_dropout", "Share of the image's numbers dropped in training, 0 to 1.")
@_setting(TrainConfig, "label_smoothing", "Share of each target spread over all words, 0 to 1.")
@_setting(TrainConfig, "batch_size", "Captions an optimizer step, over all processes.")
@_setting(TrainConfig, "learning_rate", "Largest step size of AdamW; rises, then falls to 0.")
@_setting(TrainConfig, "weight_decay", "AdamW's, of matrices.")
@_setting(TrainConfig, "clip_norm", "A gradient longer than this is made this long.")
@_setting(TrainConfig, "max_epochs", "Passes over the captions.")
@_setting(TrainConfig, "patience", "Epochs without a better validation CIDEr before an early end.")
@_setting(TrainConfig, "self_critical_epochs", "Passes after that with CIDEr-D as the reward.")
@_setting(TrainConfig, "self_critical_learning_rate", "Largest step size in these.")
@_setting(TrainConfig, "self_critical_samples", "Captions sampled an image in these.")
@_setting(TrainConfig, "max_length", "Words of a caption used, and decoded, at most.")
@_setting(TrainConfig, "seed", "Of weights, order and, without splits, the 90/5/5 split.")
@_setting(SearchConfig, "beam_size", "Beam of the validation after each epoch.")
@_setting(SearchConfig, "length_penalty", "Of that validation, as for `caption`.")
@_device
@_overwrite
@click.option("--restart", is_flag=True, help="Begin anew where an unfinished training would be gone on with.")
@_quiet
def train(
    features: Path,
    captions: Path,
    output: Path,
    train_list: Path | None,
    val_list: Path | None,
    restval: str,
    beam_size: int,
    length_penalty: float,
    overwrite: bool,
    restart: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a decoder on the feature store FEATURES and reference captions.

    Images without a row, and rows without captions, are listed before training starts and left out.

    Example: captionmill train features.h5 --captions captions.csv --output model
    """
    from captionmill.stages.decoding.train import train

    search = SearchConfig(beam_size=beam_size, length_penalty=length_penalty, max_length=settings["max_length"])
    with ProgressBars(quiet=quiet) as progress:
        summary = train(
            features,
            captions,
            output,
            TrainConfig(**settings, search=search),
            train_list=train_list,
            val_list=val_list,
            restval=restval,
            overwrite=overwrite,
            restart=restart,
            on_splits=_show_splits,
            on_epoch=_epoch_printer(quiet, progress),
            progress=progress,
        )
    if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun started, one speaks
        click.echo(f"{output}: {summaries.train_line(summary)}")


@main.command()
@click.argument("images", type=_ANY_OR_URL)
@_models
@click.option("--output", type=_FILE_PATH, required=True, help="Table to write (CSV).")
@click.option("--features", type=_FILE_PATH, help="Cache of the features.  [default: OUTPUT with .features.h5]")
@click.option("--weights", type=_FILE, help="The backbone's weights file, if it was moved since training.")
@_search
@_machine
@click.option("--overwrite", is_flag=True, help="Replace a cache that holds other features than the model needs.")
@_quiet
def caption(
    images: Path | str,
    models: tuple[Path, ...],
    output: Path,
    features: Path | None,
    weights: Path | None,
    beam_size: int,
    length_penalty: float,
    max_length: int,
    overwrite: bool,
    quiet: bool,
    **machine: Any,
) -> None:
    """Caption each image of IMAGES to CSV: a folder, a list of paths, a .tar, or a URL, as for `extract`.

    Columns: path, caption, confidence (0 to 1), status, error. A second run reuses the cached features.

    Example: captionmill caption photos --model model --output captions.csv
    """
    from captionmill.pipeline.folder import caption_folder

    with ProgressBars(quiet=quiet) as progress:
        summary = caption_folder(
            images,
            models,
            output,
            features=features,
            search=SearchConfig(beam_size=beam_size, length_penalty=length_penalty, max_length=max_length),
            machine=ExtractConfig(**machine),
            weights=weights,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(f"{output}: {summaries.folder_line(summary)}")


@main.command()
@click.argument("features", type=_FILE_PATH)
@_models
@click.option("--captions", type=_FILE, required=True, help="Reference captions, in any format that `train` reads.")
@click.option(
    "--list",
    "image_list",
    type=_FILE,
    help="Images to score, one a line.  [default: the test split, else all the model has not seen]",
)
@click.option("--output", type=_FILE_PATH, help="Scores and captions as JSON.")
@click.option("--per-image", type=_FILE_PATH, help="Table of each image's caption, scores and traits (CSV).")
@click.option(
    "--against", metavar="MODEL", type=_FOLDER_PATH, help="Another model for the same images; show the differences."
)
@click.option("--java-metrics", is_flag=True, help="METEOR and SPICE too; needs Java and captionmill[java].")
@_setting(BootstrapConfig, "resamples", "Times the images are drawn anew for the 95 % intervals.")
@_setting(BootstrapConfig, "seed", "Of these draws.")
@_search
@_device
@_quiet
def evaluate(
    features: Path,
    models: tuple[Path, ...],
    captions: Path,
    image_list: Path | None,
    output: Path | None,
    per_image: Path | None,
    against: Path | None,
    java_metrics: bool,
    resamples: int,
    seed: int,
    beam_size: int,
    length_penalty: float,
    max_length: int,
    device: str,
    quiet: bool,
) -> None:
    """Caption images of the feature store FEATURES and score the captions against all references.

    Each score comes with its 95 % bootstrap interval over the images. Columns of --per-image: key, caption, confidence,
    bleu_4 (of the image alone), rouge_l, cider_d, meteor and spice if asked for, words, copied (the same words as a
    training caption), repeated_word (twice in a row), repeated_trigram. Text that a spreadsheet could take for a
    formula has a ' in front.

    Example: captionmill evaluate features.h5 --model model --captions captions.csv --output scores.json
    """
    from captionmill.stages.decoding.evaluate import evaluate

    with ProgressBars(quiet=quiet) as progress:
        evaluation = evaluate(
            features,
            models,
            captions,
            image_list=image_list,
            output=output,
            per_image=per_image,
            against=against,
            java_metrics=java_metrics,
            bootstrap=BootstrapConfig(resamples=resamples, seed=seed),
            search=SearchConfig(beam_size=beam_size, length_penalty=length_penalty, max_length=max_length),
            device=device,
            progress=progress,
        )
    click.echo(summaries.score_table(evaluation))
    for line in evaluation.left_out:
        click.echo(f"Note: {line}", err=True)
    if evaluation.missing:
        click.echo(f"Not scored, without features or references: {len(evaluation.missing)}", err=True)
        click.echo(show_list(evaluation.missing), err=True)


@main.command()
@click.argument("features", type=_FILE_PATH)
@click.option("--captions", type=_FILE, help="Captions file that names splits; not needed with lists.")
@click.option("--train-list", type=_FILE, help="Images of the split train, one a line.")
@click.option("--val-list", type=_FILE, help="Images of the split val, one a line.")
@click.option("--test-list", type=_FILE, help="Images of the split test, one a line.")
@_setting(LeakConfig, "threshold", "Least cosine of the features of a pair, 0 to 1.")
@click.option("--within", is_flag=True, default=LeakConfig.within, help="Compare within each split too.")
@click.option("--output", type=_FILE_PATH, help="The pairs as CSV, the closest first.")
@_device
@_quiet
def leaks(
    features: Path,
    captions: Path | None,
    train_list: Path | None,
    val_list: Path | None,
    test_list: Path | None,
    threshold: float,
    within: bool,
    output: Path | None,
    device: str,
    quiet: bool,
) -> None:
    """Report identical and nearly identical images across splits, by the features in the store FEATURES.

    Splits are those of the lists given, or else those of the captions file. Identical are images of the same content.

    Example: captionmill leaks features.h5 --captions captions.csv --output leaks.csv
    """
    from captionmill.stages.scoring.leaks import find_leaks

    lists = {"train": train_list, "val": val_list, "test": test_list}
    with ProgressBars(quiet=quiet) as progress:
        report = find_leaks(
            features,
            captions,
            LeakConfig(threshold=threshold, within=within),
            lists={name: path for name, path in lists.items() if path},
            output=output,
            device=device,
            progress=progress,
        )
    click.echo(summaries.leak_lines(report))
    if report.without_features:
        click.echo(f"Not compared, without features: {len(report.without_features):,}", err=True)
        click.echo(show_list(report.without_features), err=True)
    if report.in_no_split:
        click.echo(f"Not compared, in no split: {show_count(report.in_no_split, 'image')} of the store", err=True)


@main.group()
def features() -> None:
    """Look into feature stores; check, mend, join and export them."""


@features.command()
@click.argument("store", metavar="FILE", type=_FILE_PATH)
def info(store: Path) -> None:
    """Print what FILE holds and what made it.

    Example: captionmill features info features.h5
    """
    from captionmill.data.feature_store import FeatureStore

    opened = FeatureStore.open(store)
    click.echo(f"{store}: {show_count(len(opened), 'image')}, {opened.dtype}, {opened.size_bytes / 1e6:.1f} MB")
    if opened.part_count:
        click.echo(f"  {show_count(opened.part_count, 'part')} beside it, in {store.name}.parts: belong to it")
    for name, value in (opened.spec.to_json() | opened.made_by).items():
        click.echo(f"  {name:15} {value}")


@features.command()
@click.argument("store", metavar="FILE", type=_FILE_PATH)
def verify(store: Path) -> None:
    """Check each row of FILE against its checksum; exit with 1 if any is damaged.

    Example: captionmill features verify features.h5
    """
    from captionmill.data.feature_store import FeatureStore

    opened = FeatureStore.open(store)
    if damaged := opened.verify():
        click.echo(show_list(damaged), err=True)
        raise InputError(
            f"{store}: {len(damaged)} of {len(opened)} rows are damaged; captionmill features repair {store} drops "
            "them, and extract makes them again"
        )
    click.echo(f"{store}: {show_count(len(opened), 'row')}, all as written")


@features.command()
@click.argument("store", metavar="FILE", type=_FILE_PATH)
def repair(store: Path) -> None:
    """Drop the damaged rows of FILE, so that `extract` makes just these again.

    A file of the store that cannot be opened at all is set aside under a name that ends in .damaged.

    Example: captionmill features repair features.h5
    """
    from captionmill.data.store_repair import repair

    summary = repair(store)
    for path in summary.files_set_aside:
        click.echo(f"{path}: set aside, it cannot be read", err=True)
    if summary.rows_dropped:
        click.echo(show_list(summary.rows_dropped), err=True)
    if summary.rows_dropped or summary.files_set_aside:
        click.echo(f"{store}: {show_count(len(summary.rows_dropped), 'damaged row')} dropped; run extract again")
    else:
        click.echo(f"{store}: nothing is damaged")


@features.command()
@click.argument("stores", metavar="FILE...", type=_FILE_PATH, nargs=-1, required=True)
@click.option("--output", type=_FILE_PATH, required=True, help="Feature store to write.")
@_overwrite
def merge(stores: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Join feature stores, such as the shards of an array job, into one.

    Refused: missing or unfinished shards, an image in two stores, differing networks or preprocessing.

    Example: captionmill features merge features-*-of-00008.h5 --output features.h5
    """
    from captionmill.data.store_merge import merge

    summary = merge(stores, output, overwrite=overwrite)
    click.echo(f"{output}: {show_count(summary.rows, 'row')} of {show_count(summary.stores, 'store')}")


@features.command()
@click.argument("store", metavar="FILE", type=_FILE_PATH)
@click.option("--output", type=_FILE_PATH, required=True, help="OUT.npy, with OUT.csv beside it, or OUT.parquet.")
@_overwrite
@_quiet
def export(store: Path, output: Path, overwrite: bool, quiet: bool) -> None:
    """Write the rows of FILE for other tools: .npy with a .csv of the keys, or .parquet.

    Example: captionmill features export features.h5 --output features.npy
    """
    from captionmill.data.store_export import export

    with ProgressBars(quiet=quiet) as progress:
        summary = export(store, output, overwrite=overwrite, progress=progress)
    click.echo(f"{', '.join(map(str, summary.paths))}: {show_count(summary.rows, 'row')}")


@main.command()
@click.argument("model", type=_FOLDER_PATH)
@click.option("--word", help="Print only the index of this word.")
def vocabulary(model: Path, word: str | None) -> None:
    """Print the words of MODEL and their indices.

    Example: captionmill vocabulary model --word tree
    """
    from captionmill.data.bundle import read_bundle

    words = read_bundle(model).vocabulary
    if word is None:
        click.echo("\n".join(f"{index}\t{listed}" for index, listed in enumerate(words.words)))
    elif word.lower() in words:
        click.echo(words.index(word.lower()))
    else:
        raise InputError(
            f"{word}: none of the {len(words)} words of {model}, which reads it as <unk>, index {words.index(word)}"
        )


def _show_stage(_: str, command: str) -> None:
    click.echo(f"$ {command}", err=True)


def _show_splits(splits: "Splits") -> None:
    click.echo(summaries.splits_lines(splits), err=True)


def _show_outcomes(outcomes: Iterable["StageOutcome"]) -> None:
    for outcome in outcomes:
        click.echo(f"{outcome.output}: {outcome.text}")


def _epoch_printer(quiet: bool, progress: ProgressBars) -> Callable[["EpochResult"], None]:
    def show(result: "EpochResult") -> None:
        progress.clear()
        if not quiet:
            click.echo(summaries.epoch_line(result), err=True)

    return show


@main.command()
@click.argument("pipeline", type=_FILE)
@_quiet
def run(pipeline: Path, quiet: bool) -> None:
    """Run the stages that the TOML file PIPELINE describes, in order; what is up to date is skipped.

    Example: captionmill run pipeline.toml
    """
    from captionmill.pipeline.run import run_pipeline

    with ProgressBars(quiet=quiet) as progress:
        outcomes = run_pipeline(
            pipeline,
            on_stage=_show_stage,
            on_splits=_show_splits,
            on_epoch=_epoch_printer(quiet, progress),
            progress=progress,
        )
    _show_outcomes(outcomes)


@main.command()
@click.argument("folder", metavar="[DIR]", type=_FOLDER_PATH, default=Path("captionmill-demo"))
@_quiet
def demo(folder: Path, quiet: bool) -> None:
    """Draw pictures into DIR, extract, train, caption pictures held out, score, and write a page. Offline.

    DIR is captionmill-demo unless given. The commands are shown, to be repeated on photographs.

    Example: captionmill demo
    """
    from captionmill.pipeline.demo import run_demo

    with ProgressBars(quiet=quiet) as progress:
        summary = run_demo(folder, on_stage=_show_stage, on_epoch=_epoch_printer(quiet, progress), progress=progress)
    _show_outcomes(summary.outcomes)
    click.echo(
        f"\n{summary.right_count} of {summary.held_out_count} held-out captions are right in every object, colour, "
        f"size and background ({summaries.show_duration(summary.duration_s)})\n"
        f"  captions  {summary.captions_path}\n  page      {summary.page_path}\n"
        f"  repeat    captionmill run {folder / 'pipeline.toml'}"
    )


if __name__ == "__main__":  # for torchrun: python -m captionmill.cli
    main(prog_name="captionmill")
