"""Opens the datasets of an HDF5 file only if they are laid out as ours: plain numbers and texts in the file itself.

HDF5 follows links into other files, reads data from any file that a dataset names (external storage, virtual datasets),
and unpacks what filters of other programs packed. None of that is wanted from a file of strangers, so it is refused
before any data is read.
"""

import math
from pathlib import Path

import h5py

from captionmill.data.errors import StoreError


def has_dataset(file: h5py.File, name: str) -> bool:
    """Whether the root of `file` has something called `name`; links are not followed."""
    return bool(file.id.links.exists(name.encode()))


def open_dataset(file: h5py.File, name: str, kinds: tuple[str, ...], dimensions: int, path: Path) -> h5py.Dataset:
    """The dataset `name` in the root of the `file` at `path`.

    Its type must be one of `kinds`, as NumPy writes them (`<f4`), or "text" of any length. Raises StoreError if it is
    stored in another way than in one piece of the file itself, ValueError if it has another type, another number of
    `dimensions`, or more bytes than the file; KeyError if there is none.
    """
    link = file.id.links.get_info(name.encode())
    if link.type != h5py.h5l.TYPE_HARD:
        raise _foreign(path, f"{name} is a link")
    found = h5py.h5o.open(file.id, name.encode())
    if not isinstance(found, h5py.h5d.DatasetID):
        raise _foreign(path, f"{name} is no dataset")
    layout = found.get_create_plist()
    if layout.get_external_count():
        raise _foreign(path, f"{name} is stored in another file")
    if layout.get_layout() != h5py.h5d.CONTIGUOUS or layout.get_nfilters():
        raise _foreign(path, f"{name} is not stored in one piece")
    kind = found.get_type()
    is_text = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    type_name = "text" if is_text else found.dtype.str
    if type_name not in kinds:
        raise ValueError(f"{name} holds {found.dtype}, not {' or '.join(kinds)}")
    if len(found.shape) != dimensions:
        raise ValueError(f"{name} has {len(found.shape)} dimensions, not {dimensions}")
    size, offset = math.prod(found.shape) * kind.get_size(), found.get_offset()
    if size and (offset is None or offset + size > path.stat().st_size):
        raise ValueError(f"{name} of shape {found.shape} is more than the file holds")
    return h5py.Dataset(found)


def _foreign(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path}: {what}, as captionmill writes none; if another program packed it, "
        "unpack it with h5repack -l CONTI -f NONE"
    )
