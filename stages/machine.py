"""What a stage must know about the machine: device, precision, number of workers, versions, memory errors.

torch takes seconds to import, so only the functions that need it do.
"""

import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.errors import InputError
from captionmill.data.images.memory import BUDGET, usual_budget
from captionmill.stages.settings import LEAST_MEMORY, Precision

if TYPE_CHECKING:
    import torch

_OUT_OF_MEMORY = (
    *("out of memory", "not enough memory", "bad_alloc", "bad allocation", "can't allocate memory"),
    "could not create a primitive",  # oneDNN's words for it
)


def choose_device(name: str) -> "torch.device":
    """The device that `name` (auto, cpu, cuda, cuda:N, mps) means here; InputError if this machine does not have it."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise InputError(f"`device` {name}: no such device; use auto, cpu, cuda, cuda:N or mps") from exc
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device` {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use `device` cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("`device` mps: torch sees no Apple GPU here; use `device` cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"`device` {name}: use auto, cpu, cuda, cuda:N or mps")
    return device


def choose_dtype(precision: Precision, device: "torch.device") -> "torch.dtype":
    """The dtype that `precision` means on `device`; InputError for fp16 on a CPU, where it is slower than fp32."""
    import torch

    if precision == "fp16" and device.type == "cpu":
        raise InputError("`precision` fp16 needs a GPU; on a CPU use bf16 or fp32")
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":  # as fast as bf16, with three more bits; features stay far below its maximum
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and has_fast_bf16() else torch.float32


def choose_training_dtype(device: "torch.device") -> "torch.dtype":
    """The dtype to train in on `device`: bf16 where it is fast, since its range needs no loss scaling."""
    import torch

    if device.type == "cuda" or (device.type == "cpu" and has_fast_bf16()):
        return torch.bfloat16
    return torch.float32


def unused_gpu_note(device: str) -> str | None:
    """A warning if this machine has an NVIDIA GPU that `device`, or the torch installed, leaves unused."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"`device` cpu leaves {count} CUDA device(s) unused" if choose_device(device).type == "cpu" else None
    if Path("/proc/driver/nvidia/version").exists() and choose_device(device).type == "cpu":
        return "an NVIDIA GPU is here, but torch cannot use it: install a torch built for CUDA, or fix the driver"
    return None


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX or AVX-512 BF16)."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether `error` means that the memory of the machine or of a device ran out."""
    says_so = any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    return says_so or isinstance(error, MemoryError)


def limit_memory(gigabytes: float | None) -> None:
    """Set the budget of this process for images that are being decoded; None: half of the machine's memory."""
    BUDGET.limit = usual_budget() if gigabytes is None else int(gigabytes * 1e9)


def share_memory(gigabytes: float | None, processes: int) -> float:
    """The budget of each of several processes on this machine."""
    return max(LEAST_MEMORY, (usual_budget() / 1e9 if gigabytes is None else gigabytes) / processes)


def choose_workers(workers: int) -> int:
    """`workers`, or if 0, one per core that this process may use."""
    import joblib

    return workers or int(joblib.cpu_count())


def versions() -> dict[str, str]:
    """The versions of captionmill and of the software that its results depend on."""
    packages = ("captionmill", "torch", "torchvision", "pillow", "h5py")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
