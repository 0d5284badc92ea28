"""The weights of a ResNet, by name (cached or downloaded) or from a file. Loading a file never runs code from it."""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from captionmill.data.errors import WeightsError
from captionmill.data.regular import open_regular, require_regular
from captionmill.stages.settings import ExtractConfig

SCENES_BACKBONE = "scenes-resnet14"
SCENES_WEIGHTS = "drawn-scenes"
SCENES_WEIGHTS_PATH = Path(__file__).parent / "assets" / "scenes_resnet14_thin.safetensors"
NAMED_WEIGHTS = ("imagenet1k_v1", "imagenet1k_v2")


def read_weights(config: ExtractConfig) -> tuple[dict[str, Tensor], str, float]:
    """The tensors without the classifier, their name, and the ratio of resized shorter side to crop.

    Named weights are downloaded once. Raises WeightsError if they are unavailable or cannot be read.
    """
    if config.backbone == SCENES_BACKBONE and config.weights in (*NAMED_WEIGHTS, SCENES_WEIGHTS):
        state, weights, resize_ratio = _read_state(SCENES_WEIGHTS_PATH), SCENES_WEIGHTS, 1.0
    elif config.weights in NAMED_WEIGHTS:
        named = _named_weights(config.backbone, config.weights)
        preset = named.transforms()
        state, weights = _download(named), config.weights
        resize_ratio = preset.resize_size[0] / preset.crop_size[0]
    else:
        path = Path(config.weights)
        if not path.is_file():
            raise WeightsError(
                f"{path}: no such file; `weights` takes {', '.join(NAMED_WEIGHTS)} or a .pth or .safetensors"
            )
        state, weights, resize_ratio = _read_state(path), str(path.resolve()), 256 / 224
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, weights, resize_ratio


def find_named_weights(backbone: str, weights: str) -> tuple[Path, str]:
    """The path of torchvision's file of these weights on this machine, downloaded or not; and its URL."""
    named = _named_weights(backbone, weights)
    return _path_of(named), named.url


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values: the same for .pth and .safetensors files of one network."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):  # a counter that evaluation ignores
            continue
        tensor = state[name].float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _named_weights(backbone: str, weights: str) -> Any:
    from torchvision.models import get_model_weights  # as slow to import as torch, and not needed for files

    return get_model_weights(backbone)[weights.upper()]


def _path_of(named: Any) -> Path:
    name: str = named.url.rsplit("/", 1)[-1]
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _download(named: Any) -> dict[str, Tensor]:
    """The tensors of torchvision's file, downloaded once to torch's cache folder; the name contains the hash."""
    path = _path_of(named)
    name = path.name
    hash_prefix = path.stem.rsplit("-", 1)[-1]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(named.url, str(path), hash_prefix)
    except (URLError, OSError) as exc:
        raise WeightsError(
            f"cannot download {name} ({exc}); fetch {named.url} elsewhere and put it in {path.parent}, "
            "or pass a file as `weights`"
        ) from exc
    except RuntimeError as exc:  # the download has the wrong hash
        raise WeightsError(f"the download of {name} is damaged; run again") from exc
    with open_regular(path) as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(hash_prefix):
            raise WeightsError(f"{path}: damaged, or another file under this name; delete it and run again")
    return _read_state(path)


_Read = Callable[[Path], Mapping[str, Any]]


def _read_state(path: Path) -> dict[str, Tensor]:
    reader: _Read = safetensors.torch.load_file if path.suffix == ".safetensors" else _read_pickled_tensors
    try:
        require_regular(path)
        loaded = reader(path)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, safetensors.SafetensorError) as exc:
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
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise ValueError("it holds more than tensors, and loading it could run code") from exc
