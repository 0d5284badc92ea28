"""A feature store at a URL, kept as local files while it is worked on."""

from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.urls import open_filesystem, parent_of


class StoreMirror:
    """A feature store at a URL, worked on as local files: fetched once, then each change sent there."""

    def __init__(self, url: str, staging: Path) -> None:
        """The store at `url`, with the local folder `staging` for its files."""
        self._staging = staging
        self._parent = parent_of(url)
        self._local = staging / url.rstrip("/").rpartition("/")[2]

    def pull(self) -> Path:
        """Fetch the store, if there is one, parts included; the local path of its main file, there or not.

        Raises InputError if the place cannot be read.
        """
        filesystem, parent = open_filesystem(self._parent)
        name = self._local.name
        try:
            if filesystem.exists(f"{parent}/{name}"):
                filesystem.get_file(f"{parent}/{name}", str(self._local))
            parts_dir = f"{parent}/{name}.parts"
            for part in filesystem.ls(parts_dir, detail=False) if filesystem.exists(parts_dir) else ():
                local = self._staging / f"{name}.parts" / part.rpartition("/")[2]
                if local.name.startswith("part-"):
                    local.parent.mkdir(exist_ok=True)
                    filesystem.get_file(part, str(local))
        except Exception as exc:  # each filesystem has errors of its own
            raise InputError(f"{self._parent}/{name}: cannot be read ({' '.join(str(exc).split())[:150]})") from exc
        return self._local

    def push(self, path: Path) -> None:
        """Send the file `path` of the staging folder to its place, or delete it there if it is gone here.

        Raises InputError if the place cannot be written. A store's objects appear whole or not at all on s3 and gs.
        """
        filesystem, parent = open_filesystem(self._parent)
        remote = f"{parent}/{path.relative_to(self._staging).as_posix()}"
        try:
            if path.exists():
                filesystem.makedirs(remote.rpartition("/")[0], exist_ok=True)
                filesystem.put_file(str(path), remote)
            elif filesystem.exists(remote):
                filesystem.rm_file(remote)
        except Exception as exc:  # each filesystem has errors of its own
            raise InputError(f"{remote}: cannot be written ({' '.join(str(exc).split())[:150]})") from exc
