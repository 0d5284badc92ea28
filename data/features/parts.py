"""The part files of a store: where they are, how they are called, and which files beside them are not parts."""

import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.errors import StoreAccessError

PART_PREFIX = "part-"
DAMAGED_SUFFIX = ".damaged"
"""Added to the name of a file that `repair` set aside."""

_PART_NAME = re.compile(rf"{PART_PREFIX}\d+-\d+-\d+-[0-9a-f]{{8}}(_joined)*\.h5")  # what PartWriter calls them
_SHOWN = 3
FileChanged = Callable[[Path], None]
"""Called after a file of a store was written or deleted."""
_logger = logging.getLogger(__name__)


def parts_dir(path: Path) -> Path:
    """The folder of part files that belongs to the store at `path`."""
    return path.with_name(f"{path.name}.parts")


def is_part_name(name: str) -> bool:
    """Whether a file in the folder of parts is a part by its name; a copy that another program made of one is not."""
    return _PART_NAME.fullmatch(name) is not None


def part_paths(path: Path) -> list[Path]:
    """The part files of the store at `path`; later ones override earlier ones. StoreAccessError for a closed folder."""
    folder = parts_dir(path)
    return [folder / name for name in sorted(_names_in(folder)) if is_part_name(name)]


def _names_in(folder: Path) -> list[str]:
    """The names of the files in `folder`; none if it does not exist. A folder that cannot be listed may hold rows."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise StoreAccessError(f"{folder}: cannot be listed ({exc.strerror}), and it may hold rows") from exc


def _part_number(part: Path) -> int:
    """The number of the writer that wrote `part`: those of later writers are larger."""
    return int(part.name.split("-")[1])


@dataclass(frozen=True)
class NewParts:
    """How the parts are called that are added to a store from now on: their names sort after those of all it has."""

    path: Path
    """Of the store."""
    number: int
    """That of this writer."""
    on_change: FileChanged | None = None

    @classmethod
    def of(cls, path: Path, on_change: FileChanged | None = None) -> "NewParts":
        """Of the store at `path`, with the parts that it has now."""
        return cls(path, 1 + max(map(_part_number, part_paths(path)), default=0), on_change)

    def prefix(self, task: int) -> str:
        """The beginning of the names of the parts of the task with this number."""
        return f"{PART_PREFIX}{self.number:06d}-{task:06d}"


def report_foreign_files(path: Path) -> None:
    """Warn, once in a process, of HDF5 files and copies of parts in the folder of parts that are not parts."""
    names = sorted(_names_in(parts_dir(path)))
    foreign = [name for name in names if _looks_like_rows(name) and not is_part_name(name)]
    if foreign:
        _warn_of_foreign(parts_dir(path), tuple(foreign))


def _looks_like_rows(name: str) -> bool:
    is_hidden_or_aside = name.startswith(".") or name.endswith(DAMAGED_SUFFIX)
    return not is_hidden_or_aside and (name.startswith(PART_PREFIX) or name.lower().endswith((".h5", ".hdf5")))


@functools.lru_cache(maxsize=1024)
def _warn_of_foreign(folder: Path, foreign: tuple[str, ...]) -> None:
    names = ", ".join(foreign[:_SHOWN]) + (", ..." if len(foreign) > _SHOWN else "")
    one = len(foreign) == 1
    _logger.warning(
        "%s: %s %s by another program (%s); %s rows are not read: remove or rename %s",
        folder,
        f"{len(foreign)} file{'' if one else 's'}",
        "was put there" if one else "were put there",
        names,
        "its" if one else "their",
        "it" if one else "them",
    )
