"""A model as one file: a tar that is the same, byte for byte, whenever the same model is packed."""

import hashlib
import io
import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.errors import InputError, ModelError, one_line
from captionmill.data.files import replace_atomically, require_other_file
from captionmill.data.models.bundle import BUNDLE_NAME, CARD_NAME, is_weights_name, model_paths, read_bundle
from captionmill.data.paths import AnyPath
from captionmill.data.regular import read_bytes

HISTORY_NAME = "history.csv"

_MOST_BYTES = 4 * 2**30  # of a member; a decoder of a million words has 4 GB


@dataclass(frozen=True)
class PackSummary:
    """A packed model."""

    files: tuple[str, ...]
    size_bytes: int
    sha256: str
    """64 hexadecimal digits, by which `model.tar#sha256=...` is checked."""


def pack_model(model: AnyPath, output: AnyPath) -> PackSummary:
    """Write the model in the folder `model` to the one file `output` (.tar): bundle, weights, card and history.

    The same model makes the same bytes on every machine. Raises ModelError if there is no sound model; InputError if
    `output` has another suffix or is an image.
    """
    folder, output = Path(model), Path(output)
    if output.suffix != ".tar":
        raise InputError(f"{output}: a packed model ends in .tar")
    read_bundle(folder)
    require_other_file(output)
    found = [path for path in (*model_paths(folder), folder / CARD_NAME, folder / HISTORY_NAME) if path.exists()]
    with replace_atomically(output) as partial_path:
        with tarfile.open(partial_path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for path in found:
                content = read_bytes(path)
                member = tarfile.TarInfo(path.name)  # time 0, no owner, mode 644
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        content = partial_path.read_bytes()
    return PackSummary(tuple(path.name for path in found), len(content), hashlib.sha256(content).hexdigest())


def unpack_model(content: bytes, folder: Path, name: str) -> None:
    """Put the files of the packed model `content` into the existing `folder`.

    Only the files that a model has are taken, under their own names. Raises ModelError, which mentions `name`, if it is
    not a packed model.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                is_ours = member.name in (BUNDLE_NAME, CARD_NAME, HISTORY_NAME) or is_weights_name(member.name)
                if not (member.isreg() and is_ours and member.size <= _MOST_BYTES):
                    raise ModelError(f"{name}: not a packed model, because it holds {member.name!r}")
                file = tar.extractfile(member)
                assert file is not None  # a regular file has content
                (folder / member.name).write_bytes(file.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as exc:
        reason = one_line(exc).partition(": - method")[0]  # tarfile lists each way to open a file that failed
        raise ModelError(f"{name}: not a packed model ({reason}); `captionmill pack` makes one") from exc
    if not (folder / BUNDLE_NAME).exists():
        raise ModelError(f"{name}: not a packed model, because it holds no {BUNDLE_NAME}")
