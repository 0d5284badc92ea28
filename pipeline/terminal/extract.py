"""`captionmill extract`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captionmill.data.errors import InputError
from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import extraction_fields, forecast_fields
from captionmill.pipeline.terminal.names import as_typed
from captionmill.pipeline.terminal.options import (
    FILE_PATH_OR_URL,
    ShardType,
    dry_run_option,
    images_argument,
    overwrite_option,
    quiet_option,
    setting_options,
    spread_options,
    strict_option,
    take_images,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_result
from captionmill.pipeline.words import show_count, show_list
from captionmill.stages.settings import ExtractConfig

if TYPE_CHECKING:  # the stages import torch, and `--help` must be instant
    from captionmill.stages.encoding.extract import ExtractSummary


@click.command(short_help="Compute the features of images and cache them.")
@images_argument
@click.option(
    "--output", type=FILE_PATH_OR_URL, required=True, help="Feature store to write or to resume (HDF5), or a URL."
)
@setting_options(ExtractConfig)
@spread_options
@click.option(
    "--shard", type=ShardType(), help="Extract the I-th of N shards, for array jobs; then: captionmill features merge."
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many images of the sorted list.")
@click.option("--prune", is_flag=True, help="Remove rows whose image is no longer among IMAGES.")
@strict_option
@dry_run_option
@overwrite_option
@quiet_option
def extract(
    images: tuple[Path | str, ...],
    output: Path | str,
    jobs: int,
    cluster: str | None,
    wait_s: int,
    strict: bool,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compute 2048 features for each image of IMAGES, or each view of it, and cache them.

    IMAGES is a folder, a text file with one path or URL per line, a .tar of images, a folder of .tar files, or a URL of
    one of these; or several images; or - to read a list from standard input. If the command is run again, it extracts
    only what is missing. Images that cannot be read are listed in failures.csv beside the store.

    Example: captionmill extract photos --output features.h5
    """
    from captionmill.pipeline.cluster import open_spread
    from captionmill.stages.encoding.extract import extract

    config, taken = take_settings(ExtractConfig, options), take_images(images)
    if dry_run:
        from captionmill.pipeline.forecast import forecast_extraction

        wanted = {name: options[name] for name in ("overwrite", "limit", "shard")}
        forecast = forecast_extraction(taken, output, config, **wanted)
        show_result(f"{output}: {summaries.forecast_lines(forecast)}", forecast_fields(forecast, output))
        return
    _refuse_extraction(output, config, overwrite=options["overwrite"], shard=options["shard"])
    with (
        ProgressBars(quiet=quiet) as progress,
        open_spread(jobs, cluster, device=config.device, wait_s=wait_s) as spread,
    ):
        summary = extract(taken, output, config, spread=spread, progress=progress, **options)
    show_extraction(summary, strict=strict, quiet=quiet)


def show_extraction(summary: "ExtractSummary", *, strict: bool, quiet: bool) -> None:
    """Show the result of an extraction; if `strict`, InputError if an image could not be read."""
    show_result(f"{summary.output}: {summaries.extract_line(summary)}", extraction_fields(summary))
    if summary.extracted and not quiet:
        click.echo(as_typed(summaries.meter_line(summary)), err=True)
    if summary.unlisted:
        click.echo(as_typed(summaries.unlisted_line(summary)), err=True)
    if summary.failures:
        listed = f", listed in {summary.failures_name} beside {summary.output}" if summary.failures_name else ""
        click.echo(f"Not readable{listed}:", err=True)
        click.echo(show_list([f"{failure.key}: {failure.reason}" for failure in summary.failures]), err=True)
        if strict:
            raise InputError(f"{show_count(len(summary.failures), 'image')} cannot be read, and --strict is given")


def _refuse_extraction(
    output: Path | str, config: ExtractConfig, *, overwrite: bool, shard: tuple[int, int] | None
) -> None:
    """Raise what `extract` would raise for these, before torch is imported, which takes seconds."""
    from captionmill.data.features.shard import shard_path
    from captionmill.data.features.store import FeatureStore, store_exists
    from captionmill.stages.encoding.missing import as_made
    from captionmill.stages.encoding.weights import require_weights
    from captionmill.stages.machine import require_machine

    require_machine(config)
    written = shard_path(output, *shard) if shard else output
    if isinstance(written, Path) and not overwrite and store_exists(written):
        FeatureStore.open(written)
        as_made(written, config)
    require_weights(config)
