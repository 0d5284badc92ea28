"""`caption --output -`: the table goes to stdout and nothing else does; no file is kept for a later run."""

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from captionmill.data.errors import InputError
from captionmill.data.tables.formats import TableFormat
from captionmill.stages.table_settings import TableConfig

STDOUT = Path("-")
TABLE_PATH = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
_MARK = b"\xef\xbb\xbf"  # for spreadsheets; in a pipe it would be part of the first column's name


def refuse_lasting_files(table: TableConfig, embeds: bool, *, overwrite: bool) -> None:
    """Raise UsageError for options that need a table which stays, beside which is recorded what was written."""
    lasting = {
        "--sidecar": table.sidecar,
        "--metadata-jsonl": table.metadata_jsonl,
        "--tars": table.tars,
        "--embed-metadata": embeds,
        "--redo-corrected": table.redo_corrected,
        "--overwrite": overwrite,
    }
    given = [name for name, value in lasting.items() if value]
    if given:
        raise click.UsageError(f"{given[0]} needs a table that stays: name a file as --output, not -")
    if table.format == "parquet":
        raise click.UsageError("--output - writes CSV or JSON lines: leave out --format parquet, or name a file")


@contextmanager
def table_for(output: Path, table_format: TableFormat | None) -> Iterator[Path]:
    """The path of the table: `output`, or for - a temporary one, which is copied to stdout at the end of the block.

    It is copied after an error too, so that no reason is lost; the error names stdout instead of the file.
    """
    if output != STDOUT:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="captionmill-") as folder:
        path = Path(folder) / f"captions.{table_format or 'csv'}"
        try:
            yield path
        except InputError as exc:
            raise type(exc)(str(exc).replace(str(path), "stdout")) from exc
        finally:
            if path.exists():
                _write_out(path)


def _write_out(path: Path) -> None:
    stdout = sys.stdout.buffer
    with path.open("rb") as file:
        if file.read(len(_MARK)) != _MARK:
            file.seek(0)
        if sys.stdout.isatty():  # no control characters for a terminal
            sys.stdout.writelines(io.TextIOWrapper(file, "utf-8", "backslashreplace"))
            sys.stdout.flush()
            return
        shutil.copyfileobj(file, stdout)
    stdout.flush()
