"""The weights of a ResNet, by name (cached or downloaded) or from a file. Loading a file never runs code from it."""

import hashlib
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from safetensors import SafetensorError

from captionmill.data.cache import Cache, key_of
from captionmill.data.errors import WeightsError
from captionmill.data.foreign import WRONG_VALUES, parse_json
from captionmill.data.regular import open_regular, require_content
from captionmill.stages.settings import ExtractConfig

if TYPE_CHECKING:
    from torch import Tensor

SCENES_BACKBONE = "scenes-resnet14"
SCENES_WEIGHTS = "drawn-scenes"
SCENES_WEIGHTS_PATH = Path(__file__).parent / "assets" / "scenes_resnet14_thin.safetensors"
NAMED_WEIGHTS = ("imagenet1k_v1", "imagenet1k_v2")
_NOTES = Cache("weights", 1_000_000)  # of a hundred bytes each
_SETTLED_NS = 2_000_000_000  # younger files may change again at what is one time to their file system


@dataclass(frozen=True)
class WeightsFile:
    """The file with a network's weights."""

    path: Path
    name: str
    """The weights as a spec names them: torchvision's name, or the path."""
    resize_ratio: float
    """Resized shorter side to crop."""

    def note_key(self, backbone: str) -> str:
        """What differs after any change of the file, in one word; OSError if it is gone."""
        status = self.path.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        return key_of("hash", backbone, str(self.path.resolve()), status.st_size, *times, status.st_ino)


def find_weights(config: ExtractConfig) -> WeightsFile:
    """The file of the weights that `config` names; torchvision's are downloaded once.

    Raises WeightsError if they are unavailable.
    """
    if config.backbone == SCENES_BACKBONE and config.weights in (*NAMED_WEIGHTS, SCENES_WEIGHTS):
        return WeightsFile(SCENES_WEIGHTS_PATH, SCENES_WEIGHTS, 1.0)
    if config.weights in NAMED_WEIGHTS:
        return _find_named(config.backbone, config.weights)
    require_weights(config)
    path = Path(config.weights)
    return WeightsFile(path, str(path.resolve()), 256 / 224)


def require_weights(config: ExtractConfig) -> None:
    """Raise WeightsError if `config` names a file of weights that is not there, or that no state_dict begins like."""
    path = Path(config.weights)
    own = (SCENES_WEIGHTS,) if config.backbone == SCENES_BACKBONE else ()
    if config.weights in (*NAMED_WEIGHTS, *own):
        return
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; `weights` takes {', '.join(NAMED_WEIGHTS)} or a .pth or .safetensors"
        )
    with suppress(OSError), open_regular(path) as file:
        if path.suffix != ".safetensors" and not file.read(2).startswith((b"PK", b"\x80")):  # a zip, or a pickle
            raise WeightsError(f"{path}: not a readable state_dict (neither a zip file nor a pickle)")


def known_hash(file: WeightsFile, backbone: str) -> str | None:
    """The `hash_weights` of a file that `backbone` was built from and that has not changed since; else None."""
    try:
        return str(_read_note(file.note_key(backbone))["sha256"])
    except (OSError, LookupError):
        return None


def remember_hash(note_key: str, file: WeightsFile, backbone: str, digest: str) -> None:
    """Note the hash of a file that had `note_key` before it was read; not if it was changed, or seconds ago."""
    with suppress(OSError):  # it is gone
        if file.note_key(backbone) == note_key and time.time_ns() - file.path.stat().st_mtime_ns > _SETTLED_NS:
            _write_note(note_key, {"sha256": digest})


def read_weights(file: WeightsFile) -> "dict[str, Tensor]":
    """The tensors of `file` without the classifier; WeightsError if it cannot be read."""
    if file.name in NAMED_WEIGHTS:
        with open_regular(file.path) as opened:
            if not hashlib.file_digest(opened, "sha256").hexdigest().startswith(_hash_prefix(file.path)):
                raise WeightsError(f"{file.path}: damaged, or another file under this name; delete it and run again")
    return {name: tensor for name, tensor in _read_state(file.path).items() if not name.startswith("fc.")}


def find_named_weights(backbone: str, weights: str) -> tuple[Path, str]:
    """The path of torchvision's file of these weights on this machine, downloaded or not; and its URL."""
    named = _named_weights(backbone, weights)
    return _path_of(named), named.url


def hash_weights(state: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, shapes and float32 values: the same for .pth and .safetensors files of one network."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):  # a counter that evaluation ignores
            continue
        tensor = state[name].float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)  # without a copy
    return digest.hexdigest()


def _find_named(backbone: str, weights: str) -> WeightsFile:
    """Torchvision's file of these weights, by a note of an earlier run where that is still there."""
    homes = [os.environ.get(name) for name in ("TORCH_HOME", "XDG_CACHE_HOME", "HOME")]
    key = key_of("file", backbone, weights, version("torchvision"), homes)
    note = _read_note(key)
    if "path" in note and Path(note["path"]).is_file():
        return WeightsFile(Path(note["path"]), weights, note["resize_ratio"])
    named = _named_weights(backbone, weights)
    preset = named.transforms()
    file = WeightsFile(_path_of(named), weights, preset.resize_size[0] / preset.crop_size[0])
    _download(named, file.path)
    _write_note(key, {"path": str(file.path), "resize_ratio": file.resize_ratio})
    return file


def _read_note(key: str) -> dict[str, Any]:
    entry = _NOTES.find(key)
    note: dict[str, Any] = {} if entry is None else parse_json((entry / "note.json").read_bytes())
    return note


def _write_note(key: str, note: dict[str, Any]) -> None:
    def fill(folder: Path) -> None:
        (folder / "note.json").write_text(json.dumps(note), encoding="utf-8")

    _NOTES.keep(key, fill)


def _named_weights(backbone: str, weights: str) -> Any:
    from torchvision.models import get_model_weights  # as slow to import as torch, and not needed for files

    return get_model_weights(backbone)[weights.upper()]


def _path_of(named: Any) -> Path:
    import torch

    name: str = named.url.rsplit("/", 1)[-1]
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _hash_prefix(path: Path) -> str:
    """The beginning of the SHA-256 of torchvision's file, which its name contains."""
    return path.stem.rsplit("-", 1)[-1]


def _download(named: Any, path: Path) -> None:
    """Download torchvision's file to `path` in torch's cache folder, unless it is there."""
    import torch

    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(named.url, str(path), _hash_prefix(path))
    except (URLError, OSError) as exc:
        raise WeightsError(
            f"cannot download {path.name} ({exc}); fetch {named.url} elsewhere and put it in {path.parent}, "
            "or pass a file as `weights`"
        ) from exc
    except RuntimeError as exc:  # the download has the wrong hash
        raise WeightsError(f"the download of {path.name} is damaged; run again") from exc


_Read = Callable[[Path], Mapping[str, Any]]
_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, MemoryError, SafetensorError, *WRONG_VALUES),
    *(AssertionError, struct.error, zipfile.BadZipFile),  # what torch's reader raises for damaged files
)


def _read_state(path: Path) -> "dict[str, Tensor]":
    import safetensors.torch
    from torch import Tensor

    reader: _Read = safetensors.torch.load_file if path.suffix == ".safetensors" else _read_pickled_tensors
    try:
        require_content(path)
        loaded = reader(path)
    except _UNREADABLE as exc:
        problem = str(exc).split("\n", 1)[0][:200]
        raise WeightsError(f"{path}: not a readable state_dict ({problem})") from exc
    for wrapper in ("state_dict", "model"):  # as training scripts save them
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    is_state = isinstance(loaded, dict) and loaded and all(isinstance(name, str) for name in loaded)
    if not is_state or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path}: holds no state_dict; save one with torch.save(network.state_dict(), PATH)")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _read_pickled_tensors(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise ValueError("it holds more than tensors, and loading it could run code") from exc
