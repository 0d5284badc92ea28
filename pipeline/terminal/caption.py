"""`captionmill caption`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from captionmill.data.errors import InputError
from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import caption_fields, forecast_fields
from captionmill.pipeline.terminal.extract import show_extraction
from captionmill.pipeline.terminal.options import (
    FILE_PATH,
    FOLDER_PATH,
    ShardType,
    dry_run_option,
    images_argument,
    machine_options,
    models_option,
    moved_weights_option,
    quiet_option,
    search_options,
    setting_options,
    spread_options,
    strict_option,
    take_images,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_result
from captionmill.pipeline.terminal.stdout_table import STDOUT, TABLE_PATH, refuse_lasting_files, table_for
from captionmill.pipeline.words import show_count
from captionmill.stages.settings import MACHINE_SETTINGS, ExtractConfig, SearchConfig
from captionmill.stages.table_settings import TableConfig

_GALLERY = "the gallery, open it in a browser"


@click.command(short_help="Write a table of captions for images.")
@images_argument
@models_option
@click.option(
    "--output",
    type=TABLE_PATH,
    required=True,
    help="Table to write; - writes it to stdout when it is whole, and keeps none.",
)
@setting_options(TableConfig)
@click.option(
    "--features",
    type=FILE_PATH,
    help="Feature store that caches the features.  [default: OUTPUT with .features.h5; none for -]",
)
@moved_weights_option
@search_options
@machine_options
@spread_options
@click.option(
    "--shard",
    type=ShardType(),
    help="Only extract the I-th of N shards into the cache, for array jobs; then run the command without it.",
)
@click.option(
    "--embed-metadata", is_flag=True, help="Write each caption into a copy of its image, as XMP and IPTC description."
)
@click.option("--copies", type=FOLDER_PATH, help="Folder for these copies.  [default: OUTPUT with .images]")
@click.option(
    "--in-place", is_flag=True, help="With --embed-metadata: write into the images themselves, not into copies."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an OUTPUT that is not a table of captions, a cache whose features do not match the model, and "
    "sidecars and descriptions that another program wrote.",
)
@click.option(
    "--redo-corrected", is_flag=True, help="Forget the captions that a person corrected or accepted in OUTPUT."
)
@strict_option
@dry_run_option
@quiet_option
def caption(
    images: tuple[Path | str, ...],
    models: tuple[Path, ...],
    output: Path,
    strict: bool,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write a table of captions for the images of IMAGES: a folder, a list of paths, a .tar or a URL, as for `extract`.

    IMAGES may also be several images, - to read a list from standard input, or a feature store, whose rows are
    captioned. Columns: path, caption, confidence (0 to 1), flags (cut, repeated, low-confidence), status, error. If the
    command is interrupted or images are added, run it again: only what is new or changed is done. Captions that you
    correct in OUTPUT are yours: they get the status corrected, no later run replaces them, and the next one writes them
    into sidecars, metadata and gallery. In CSV a text that a spreadsheet could read as a formula, such as a path that
    begins with = or -, has a ' in front.

    Example: captionmill caption photos --model model --output captions.csv
    """
    from captionmill.pipeline.captioning.array import extract_for_captions
    from captionmill.pipeline.captioning.folder import caption_folder
    from captionmill.pipeline.captioning.source import CacheConfig
    from captionmill.pipeline.cluster import open_spread

    search, table = take_settings(SearchConfig, options), take_settings(TableConfig, options)
    table = replace(table, redo_corrected=options.pop("redo_corrected"))
    machine = take_settings(ExtractConfig, options, *MACHINE_SETTINGS)
    features, overwrite = options.pop("features"), options.pop("overwrite")
    weights, shard = options.pop("weights"), options.pop("shard")
    jobs, cluster, wait_s = (options.pop(name) for name in ("jobs", "cluster", "wait_s"))
    embed_into = _embed_into(output, **options)
    to_stdout = output == STDOUT
    if shard and (to_stdout or overwrite or dry_run):
        raise click.UsageError(
            "--shard fills the cache of a table: name a file as --output, and leave out --overwrite and --dry-run"
        )
    if to_stdout:
        refuse_lasting_files(table, embed_into is not None, overwrite=overwrite)
        if cluster and features is None:
            raise click.UsageError("--cluster writes features to storage that its machines share: name --features")
    taken = take_images(images)
    with table_for(output, table.format) as path:
        spread = partial(open_spread, jobs, cluster, device=machine.device, wait_s=wait_s)
        cache = CacheConfig(features, weights, machine, spread)
        settings: dict[str, Any] = {"table": table, "cache": cache, "embed_into": embed_into, "overwrite": overwrite}
        if dry_run:
            from captionmill.pipeline.forecast import forecast_captions

            forecast = forecast_captions(taken, models, path, search, **settings)
            fields = forecast_fields(forecast, output)
            show_result(f"{output}: {summaries.forecast_lines(forecast)}", fields, on_stderr=to_stdout)
            return
        with ProgressBars(quiet=quiet) as progress:
            if shard:
                extraction = extract_for_captions(
                    taken, models, path, shard, table=table, cache=cache, progress=progress
                )
                show_extraction(extraction, strict=strict, quiet=quiet)
                return
            summary = caption_folder(taken, models, path, search, **settings, progress=progress)
    lines = [f"{output}: {summaries.folder_line(summary)}", *summaries.written_lines(summary)]
    for page, what in ((table.metadata_jsonl, "the captions for imagefolder"), (table.gallery, _GALLERY)):
        lines += [f"{page}: {what}"] if page is not None else []
    fields = caption_fields(summary, output)
    if to_stdout and features is None:
        fields["features"] = None  # they are gone
    show_result("\n".join(lines), fields, on_stderr=to_stdout)
    if strict and summary.failures:
        raise InputError(f"{show_count(len(summary.failures), 'image')} cannot be read, and --strict is given")


def _embed_into(
    output: Path, *, embed_metadata: bool, copies: Path | None, in_place: bool
) -> Path | Literal["images"] | None:
    """Where to write captions into images: a folder of copies, "images" for the images themselves, or None."""
    if (in_place or copies is not None) and not embed_metadata:
        raise click.UsageError("--in-place and --copies need --embed-metadata")
    if in_place and copies is not None:
        raise click.UsageError("--in-place makes no copies: leave out one of --in-place and --copies")
    if not embed_metadata:
        return None
    return "images" if in_place else copies or output.with_suffix(".images")
