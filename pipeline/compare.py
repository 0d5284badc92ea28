"""Compares two tables of captions and writes what differs, as a table and as a page."""

from pathlib import Path

from captionmill.data.captions.files import Captions, as_caption_files
from captionmill.data.csv_tables import require_own_table, write_table
from captionmill.data.errors import InputError
from captionmill.data.files import require_two_files, write_text
from captionmill.data.images.find import find_images
from captionmill.data.paths import AnyPath, as_location, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.formats import require_other_output
from captionmill.pipeline.pages.comparison import render_comparison
from captionmill.stages.scoring.comparison import TableComparison, compare_rows
from captionmill.stages.scoring.settings import BootstrapConfig

_COLUMNS = ("path", "first", "second", "cider_d_gain")


def compare_tables(
    first: AnyPath,
    second: AnyPath,
    *,
    captions: Captions | None = None,
    output: AnyPath | None = None,
    page: AnyPath | None = None,
    images: AnyPath | None = None,
    bootstrap: BootstrapConfig = BootstrapConfig(),
    progress: Progress = no_progress,
) -> TableComparison:
    """Compare two tables of captions, in any format, image by image.

    With reference `captions`, in any format that `train` reads, both are scored on the images that have references and,
    in both, a caption that nobody reviewed; only on the test split if `captions` has one. The difference is paired: its
    interval covers 0 if the choice of images explains it. `output` is a table (CSV) of the images with different
    captions. `page` is the same as a page (HTML), with the images that are found in `images`, as `extract` takes them.

    Raises InputError if a table cannot be read, or an output would replace an input or the other output;
    AnnotationError if no image can be scored.
    """
    first, second, output, page = Path(first), Path(second), as_path(output), as_path(page)
    files = None if captions is None else as_caption_files(captions)
    for path in (output, page):
        if path is not None:
            require_other_output(path, first, second, *(files.paths if files else ()), as_path(images))
    require_two_files(output, page, "page")
    if output is not None:
        require_own_table(output, _COLUMNS[:3], _COLUMNS[3:])
    if images is not None and page is None:
        raise InputError("`images` are shown on the page: name its file with `page`")
    comparison = compare_rows(first, second, files, bootstrap)
    if output is not None:
        _write_differences(output, comparison)
    if page is not None:
        found = find_images(as_location(images)) if images is not None else []
        write_text(page, render_comparison(comparison, found, progress=progress))
    return comparison


def _write_differences(path: Path, comparison: TableComparison) -> None:
    columns = _COLUMNS[: 4 if comparison.scores else 3]
    rows = (
        (image.first.path, image.first.caption, image.second.caption, image.gain)[: len(columns)]
        for image in comparison.different
    )
    write_table(path, columns, rows)
