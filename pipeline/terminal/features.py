"""`captionmill features`: commands that work on whole stores."""

from pathlib import Path

import click

from captionmill.data.errors import InputError
from captionmill.pipeline.terminal.endings import StrictGroup
from captionmill.pipeline.terminal.options import FILE_PATH, log_format_option, overwrite_option, quiet_option
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_result
from captionmill.pipeline.words import show_count, show_list


@click.group(cls=StrictGroup)
def features() -> None:
    """Show, check, repair, merge and export feature stores."""


@features.command(short_help="Print the contents of a store and how it was made.")
@click.argument("store", metavar="FEATURES", type=FILE_PATH)
@log_format_option
def info(store: Path) -> None:
    """Print the contents of FEATURES and how it was made.

    Example: captionmill features info features.h5
    """
    from captionmill.data.features.log import read_records
    from captionmill.data.features.store import FeatureStore

    opened = FeatureStore.open(store)
    lines = [f"{store}: {show_count(len(opened), 'image')}, {opened.dtype}, {opened.size_bytes / 1e6:.1f} MB"]
    if opened.part_count:
        lines.append(f"  {show_count(opened.part_count, 'part')} in {store.name}.parts")
    if shard := opened.shard:
        images = show_count(shard.images, "image")
        lines.append(f"  shard {shard.index} of {shard.count}: {images}, {shard.failed:,} not readable")
    lines += [f"  {name:15} {value}" for name, value in (opened.spec.to_json() | opened.made_by).items()]
    for record in read_records(store)[-1:]:
        found = f"{show_count(record.found, 'image')} found, {record.failed:,} failed"
        lines.append(f"  {'last run':15} {found}" + (f"; left out: {record.left_out}" if record.left_out else ""))
    fields = {
        "store": store,
        "images": len(opened),
        "dtype": opened.dtype,
        "bytes": opened.size_bytes,
        "parts": opened.part_count,
        "spec": opened.spec.to_json(),
        "made_by": opened.made_by,
    }
    show_result("\n".join(lines), fields)


@features.command(short_help="Check each row of a store against its checksum.")
@click.argument("store", metavar="FEATURES", type=FILE_PATH)
@log_format_option
def verify(store: Path) -> None:
    """Check each row of FEATURES against its checksum; exit with code 1 if any is damaged.

    Example: captionmill features verify features.h5
    """
    from captionmill.data.features.repair import require_safe
    from captionmill.data.features.store import FeatureStore

    require_safe(store)
    opened = FeatureStore.open(store)
    if damaged := opened.verify():
        click.echo(show_list(damaged), err=True)
        raise InputError(
            f"{store}: {len(damaged)} of {len(opened)} rows are damaged; extract computes them again, and captionmill "
            f"features repair {store} removes them"
        )
    show_result(f"{store}: {show_count(len(opened), 'row')}, all intact", {"store": store, "rows": len(opened)})


@features.command(short_help="Remove the damaged rows of a store.")
@click.argument("store", metavar="FEATURES", type=FILE_PATH)
@log_format_option
def repair(store: Path) -> None:
    """Remove the damaged rows of FEATURES; `extract` computes them again, also without this.

    A file of the store that is damaged as a whole is renamed to end in .damaged. A file that cannot be opened now, such
    as one that a notebook has open for writing, is no damage: then nothing is changed.

    Example: captionmill features repair features.h5
    """
    from captionmill.data.features.repair import repair_store

    summary = repair_store(store)
    for path in summary.files_set_aside:
        click.echo(f"{path}: renamed, as it cannot be read", err=True)
    if summary.rows_dropped:
        click.echo(show_list(summary.rows_dropped), err=True)
    text = f"{store}: nothing is damaged"
    if summary.rows_dropped or summary.files_set_aside:
        text = f"{store}: {show_count(len(summary.rows_dropped), 'damaged row')} removed; run extract again"
    fields = {"store": store, "removed": len(summary.rows_dropped), "renamed": summary.files_set_aside}
    show_result(text, fields)


@features.command(short_help="Merge stores into one.")
@click.argument("stores", metavar="FEATURES...", type=FILE_PATH, nargs=-1, required=True)
@click.option("--output", type=FILE_PATH, required=True, help="Feature store to write.")
@overwrite_option
@log_format_option
def merge(stores: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Merge feature stores, such as the shards of an array job, into one.

    It is an error if shards are missing or unfinished, an image is in two stores, or networks or preprocessing differ.

    Example: captionmill features merge features-*-of-00008.h5 --output features.h5
    """
    from captionmill.data.features.merge import merge_stores

    summary = merge_stores(stores, output, overwrite=overwrite)
    text = f"{output}: {show_count(summary.rows, 'row')} of {show_count(summary.stores, 'store')}"
    show_result(text, {"output": output, "rows": summary.rows, "stores": summary.stores})


@features.command(short_help="Write the rows of a store for other tools.")
@click.argument("store", metavar="FEATURES", type=FILE_PATH)
@click.option("--output", type=FILE_PATH, required=True, help="OUT.npy, with OUT.csv beside it, or OUT.parquet.")
@overwrite_option
@quiet_option
def export(store: Path, output: Path, overwrite: bool, quiet: bool) -> None:
    """Write the rows of FEATURES for other tools: .npy with a .csv of the keys, or .parquet.

    Example: captionmill features export features.h5 --output features.npy
    """
    from captionmill.data.features.export import export_features

    with ProgressBars(quiet=quiet) as progress:
        summary = export_features(store, output, overwrite=overwrite, progress=progress)
    text = f"{', '.join(map(str, summary.paths))}: {show_count(summary.rows, 'row')}"
    show_result(text, {"files": summary.paths, "rows": summary.rows})
