"""`captionmill extract`."""

from pathlib import Path
from typing import Any

import click

from captionmill.data.errors import InputError
from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.names import as_typed
from captionmill.pipeline.terminal.options import (
    ANY_OR_URL,
    FILE_PATH_OR_URL,
    ShardType,
    machine_options,
    overwrite_option,
    quiet_option,
    setting,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.words import show_count, show_list
from captionmill.stages.settings import ExtractConfig


@click.command()
@click.argument("images", type=ANY_OR_URL)
@click.option(
    "--output", type=FILE_PATH_OR_URL, required=True, help="Feature store to write or to go on with (HDF5), or a URL."
)
@setting(ExtractConfig, "backbone", "Network; scenes-resnet14 is the demo's, for drawn scenes only.")
@setting(ExtractConfig, "weights", "imagenet1k_v1, imagenet1k_v2, or a state_dict file (.pth, .safetensors).")
@setting(
    ExtractConfig,
    "preprocess",
    "crop: shorter side resized, centre cut out; squash: whole picture made square; whole: nothing cut, shape kept.",
)
@setting(ExtractConfig, "image_size", "Side of the square that the network sees (whole: the shorter side), pixels.")
@setting(ExtractConfig, "views", "flip: the mean of the picture and its mirror, at twice the time.")
@machine_options
@click.option("--compile/--no-compile", "compile", default=ExtractConfig.compile, help="Use torch.compile (GPUs).")
@setting(ExtractConfig, "dtype", "Numbers as stored.")
@setting(ExtractConfig, "flush_every", "Rows a part file: at most these are lost when the process is killed.")
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=0,
    help="Processes on this machine; 0 is up to four a GPU where many images are to be done, else one.",
)
@click.option("--cluster", metavar="URL", help="Spread over dask://HOST:PORT or ray://HOST:PORT.")
@click.option(
    "--shard", type=ShardType(), help="Do the I-th of N parts, for array jobs; then: captionmill features merge."
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many images of the sorted list.")
@click.option("--prune", is_flag=True, help="Remove rows whose image is not among IMAGES any more.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any image cannot be read.")
@overwrite_option
@quiet_option
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
        click.echo(as_typed(summaries.meter_line(summary)), err=True)
    if summary.unlisted:
        click.echo(as_typed(summaries.unlisted_line(summary)), err=True)
    if summary.failures:
        click.echo(f"Not readable, listed in {summary.failures_name} beside {summary.output}:", err=True)
        click.echo(show_list([f"{failure.key}: {failure.reason}" for failure in summary.failures]), err=True)
        if strict:
            raise InputError(f"{show_count(len(summary.failures), 'image')} cannot be read, and --strict is given")
