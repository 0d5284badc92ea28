"""Local copies of feature stores at URLs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.features.parts import is_part_name
from captionmill.data.urls import is_url, open_filesystem, parent_of, storage_errors


class StoreMirror:
    """A local copy of a feature store at a URL: downloaded once, then each change is uploaded."""

    def __init__(self, url: str, staging: Path) -> None:
        """The store at `url`, with the local folder `staging` for its files."""
        self._staging = staging
        self._parent = parent_of(url)
        self._local = staging / url.rstrip("/").rpartition("/")[2]

    def pull(self) -> Path:
        """Download the store with its parts, if it exists; returns the local path of its main file.

        Raises InputError if the URL cannot be read.
        """
        filesystem, parent = open_filesystem(self._parent)
        name = self._local.name
        with storage_errors(InputError, f"{self._parent}/{name}: cannot be read"):
            filesystem.invalidate_cache()  # it may remember what was there earlier in this process
            if filesystem.exists(f"{parent}/{name}"):
                filesystem.get_file(f"{parent}/{name}", str(self._local))
            parts_dir = f"{parent}/{name}.parts"
            for part in filesystem.ls(parts_dir, detail=False) if filesystem.exists(parts_dir) else ():
                local = self._staging / f"{name}.parts" / part.rpartition("/")[2]
                if is_part_name(local.name):
                    local.parent.mkdir(exist_ok=True)
                    filesystem.get_file(part, str(local))
        return self._local

    def push(self, path: Path) -> None:
        """Upload the file `path` of the staging folder, or delete the remote file if `path` is gone.

        Raises InputError if the URL cannot be written. On s3 and gs, each upload is atomic.
        """
        filesystem, parent = open_filesystem(self._parent)
        name = path.relative_to(self._staging).as_posix()
        remote = f"{parent}/{name}"
        with storage_errors(InputError, f"{self._parent}/{name}: cannot be written"):
            if path.exists():
                filesystem.makedirs(remote.rpartition("/")[0], exist_ok=True)
                filesystem.put_file(str(path), remote)
            elif filesystem.exists(remote):
                filesystem.rm_file(remote)


@contextmanager
def local_store(output: Path | str) -> Iterator[tuple[Path, StoreMirror | None]]:
    """A local path for the store `output`; for a URL, a downloaded copy and the mirror that uploads its changes."""
    if not is_url(output):
        yield Path(output), None
        return
    with tempfile.TemporaryDirectory(prefix="captionmill-") as staging:
        mirror = StoreMirror(str(output), Path(staging))
        yield mirror.pull(), mirror
