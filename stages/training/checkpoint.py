"""The state of a training on disk: one safetensors file, replaced in one rename. Reading it never runs code from it.

Random numbers need no saved state: each step draws them from a seed made of the training's seed, the epoch, the step
and the process's rank; each epoch's order comes from the training's seed and the epoch.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from captionmill.data.errors import TrainingError
from captionmill.data.files import replace_atomically
from captionmill.data.foreign import WRONG_VALUES, parse_json
from captionmill.data.regular import require_regular

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CHECKPOINT_NAME = "checkpoint.safetensors"
MATCHER_NAME = "matcher.safetensors"
"""The checkpoint of a matcher, in the same folder."""
TEACHER_CAPTIONS_NAME = "teacher-captions.safetensors"
"""The captions that the teachers have written so far, in the same folder."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training, and the tensors to resume it with."""

    state: dict[str, Any]
    """Counters and settings, as JSON values."""
    tensors: "Mapping[str, Tensor]"
    """Those of the decoder and the optimizer, by name."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint, name: str = CHECKPOINT_NAME) -> None:
    """Replace the checkpoint `name` in `folder`."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps(checkpoint.state)
    header = {"format_version": str(FORMAT_VERSION), "state": state, "checksum": _checksum(state, tensors)}
    with replace_atomically(folder / name) as path:
        try:
            save_file(tensors, path, metadata=header)
        except safetensors.SafetensorError as exc:  # of the system too, such as that of a full disk
            if (said := re.search(r"os error (\d+)", str(exc))) is None:
                raise
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from exc


def read_checkpoint(folder: Path, name: str = CHECKPOINT_NAME) -> Checkpoint | None:
    """The checkpoint `name` in `folder`, if there is one; TrainingError if it cannot be read."""
    path = folder / name
    if not path.exists():
        return None
    try:
        require_regular(path)
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            is_foreign = header.get("format_version", str(FORMAT_VERSION)) != str(FORMAT_VERSION)
            tensors = {} if is_foreign else {name: file.get_tensor(name) for name in list(file.keys())}
            if not is_foreign and header["checksum"] != _checksum(header["state"], tensors):
                raise ValueError("not the bytes that were written")
            state = {} if is_foreign else parse_json(header["state"])
    except (OSError, safetensors.SafetensorError, *WRONG_VALUES) as exc:
        raise TrainingError(f"{path}: not a readable checkpoint; pass `restart` to start from scratch") from exc
    if is_foreign:
        raise TrainingError(f"{path}: of another version of captionmill; pass `restart` to start from scratch")
    return Checkpoint(state, tensors)


def _checksum(state: str, tensors: "Mapping[str, Tensor]") -> str:
    checksum = zlib.crc32(state.encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].reshape(-1).numpy().data, zlib.crc32(name.encode(), checksum))
    return str(checksum)


def pack_tensors(network: "nn.Module", optimizer: "torch.optim.Optimizer") -> "dict[str, Tensor]":
    """The weights of `network`, a decoder or a matcher, and the state of `optimizer` by name."""
    tensors: dict[str, Tensor] = {f"decoder.{name}": tensor for name, tensor in network.named_parameters()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    return tensors


def unpack_tensors(tensors: "Mapping[str, Tensor]", network: "nn.Module", optimizer: "torch.optim.Optimizer") -> None:
    """Put what `pack_tensors` returned into a network and a new optimizer of the same kind."""
    prefix = "decoder."
    load_weights(network, {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)})
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, value_name = rest.partition(".")
            values.setdefault(int(index), {})[value_name] = tensor
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(network: "nn.Module", weights: "Mapping[str, Tensor]") -> None:
    """Copy `weights` into the parameters of `network`, by name."""
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])
