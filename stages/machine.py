"""What a stage must know about the machine: device, precision, number of workers, versions, memory errors.

torch takes seconds to import, so only the functions that need it do, and a CPU is recognised without it.
"""

import functools
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from captionmill.data.errors import InputError
from captionmill.data.images.memory import BUDGET, usual_budget
from captionmill.data.optional import missing_packages
from captionmill.stages.settings import LEAST_MEMORY, ExtractConfig, Precision

if TYPE_CHECKING:
    import torch

_OUT_OF_MEMORY = (
    *("out of memory", "not enough memory", "bad_alloc", "bad allocation", "can't allocate memory"),
    *("could not create a primitive", "failed to allocate"),  # words of oneDNN and OpenVINO
)

NO_GPU_DECODING = "`decode` gpu needs an NVIDIA GPU, as `device` cuda: use `decode` cpu"
_COMPILERS = ("g++", "clang++", "c++", "cl")
_CPU_INFO = Path("/proc/cpuinfo")
_PARENT_S = 0.5  # between two looks whether a parent process is there
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_GPU_FILES = (_NVIDIA_DRIVER, *map(Path, ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")))
"""On Linux one of them is there if torch can use a GPU: NVIDIA's, in a container, a Jetson or WSL, and AMD's."""


def means_cpu(device: str) -> bool:
    """Whether `device` means the CPU, as far as that is known without torch; else `choose_device` decides."""
    if device == "auto" and platform.system() == "Linux":
        return not any(path.exists() for path in _GPU_FILES)
    return device == "cpu"


def require_machine(config: ExtractConfig) -> None:
    """Raise InputError for a device, engine or precision of `config` that this machine cannot have, without torch."""
    require_device_name(config.device)
    if config.engine == "openvino" and config.compile:
        raise InputError("`engine` openvino compiles by itself: leave `compile` out, or use `engine` torch")
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))):
        raise InputError("`compile` needs a C++ compiler, such as g++, and none is found: leave it out")
    if config.precision == "int8" and (config.engine == "torch" or config.compile or missing_packages("openvino")):
        raise InputError("`precision` int8 is computed on a CPU by openvino, without `compile`; else use bf16 or fp32")
    if means_cpu(config.device):
        choose_precision(config.precision, "cpu")
        if config.decode == "gpu":
            raise InputError(NO_GPU_DECODING)


def require_device_name(name: str) -> None:
    """Raise InputError for a device that no machine has."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise InputError(f"`device` {name}: no such device; use auto, cpu, cuda, cuda:N or mps")


def choose_device(name: str) -> "torch.device":
    """The device that `name` (auto, cpu, cuda, cuda:N, mps) means here; InputError if this machine does not have it."""
    require_device_name(name)
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device` {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use `device` cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("`device` mps: torch sees no Apple GPU here; use `device` cpu")
    return device


def choose_precision(precision: Precision, device_type: str) -> Precision:
    """What `precision` means on a cpu, cuda or mps; InputError for what is slower than fp32 there."""
    if precision == "fp16" and device_type == "cpu":
        raise InputError("`precision` fp16 needs a GPU; on a CPU use bf16 or fp32")
    if precision == "int8" and not (device_type == "cpu" and has_fast_int8()):
        raise InputError("`precision` int8 needs a CPU with AVX2; use bf16 or fp32")
    if precision != "auto":
        return precision
    if device_type == "cuda":  # as fast as bf16, with three more bits; features stay far below its maximum
        return "fp16"
    return "bf16" if device_type == "cpu" and has_fast_bf16() else "fp32"


def without_tf32() -> None:
    """Let cuDNN compute in float32 what is in float32, in this process from now on.

    By default torch allows it to round the inputs of convolutions and LSTMs to the 10 bits of TF32, which is no more
    exact than fp16. Other products of matrices are exact unless somebody asks torch for less.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch warn of this name, but all have it
        torch.backends.cudnn.allow_tf32 = False


def choose_training_dtype(device: "torch.device") -> "torch.dtype":
    """The dtype to train in on `device`: bf16 where it is fast, since its range needs no loss scaling."""
    import torch

    if device.type == "cuda" or (device.type == "cpu" and has_fast_bf16()):
        return torch.bfloat16
    return torch.float32


def unused_gpu_note(device: str) -> str | None:
    """A warning if this machine has an NVIDIA GPU that `device`, or the torch installed, leaves unused."""
    if means_cpu("auto"):
        return None
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"`device` cpu leaves {count} CUDA device(s) unused" if choose_device(device).type == "cpu" else None
    if _NVIDIA_DRIVER.exists() and choose_device(device).type == "cpu":
        return "an NVIDIA GPU is here, but torch cannot use it: install a torch built for CUDA, or fix the driver"
    return None


def has_fast_bf16(cpu_info: Path = _CPU_INFO) -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in fp32: one with AMX, or AMD's with AVX-512 BF16.

    Intel's AVX-512 BF16 does as many multiplications per cycle as its fp32, and numbers must be converted besides: a
    virtual machine that hides AMX trains and extracts at about 0.6 of the rate of fp32 with it.
    """
    return _has_any(cpu_info, "amx_bf16") or (_has_any(cpu_info, "avx512_bf16") and _is_amd(cpu_info))


def has_fast_int8(cpu_info: Path = _CPU_INFO) -> bool:
    """Whether openvino computes large convolutions faster in 8 bits than in fp32 on this CPU, as on all with AVX2.

    VNNI and AMX, which such a CPU may have too, make them faster still.
    """
    return _has_any(cpu_info, "avx2")


def _is_amd(cpu_info: Path) -> bool:
    vendor = cpu_info.read_text(encoding="utf-8") if platform.system() == "Linux" else platform.processor()
    return "AuthenticAMD" in vendor


def _has_any(cpu_info: Path, *names: str) -> bool:
    """Whether this CPU has one of the instruction sets `names`, as Linux lists them in `cpu_info`, and torch too."""
    if platform.system() == "Linux":
        with cpu_info.open(encoding="utf-8") as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
        return any(name in flags for name in names)
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in names)


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


def limit_threads(threads: int) -> None:
    """Let the networks of this process use `threads` threads from now on."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def thread_count() -> int:
    """The number of threads that a network may use in this process, as torch has it, but without importing torch."""
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(limit) if limit.isdecimal() and int(limit) else choose_workers(0)


def end_with_parent(parent: int) -> None:
    """End this process soon after `parent`, a process ID, is gone: who is killed ends no other, and none waits for it.

    Windows does not show that a process is gone.
    """
    started_by = os.getppid()  # that of `parent`, or of a server that starts processes for it

    def watch() -> None:
        while os.getppid() == started_by and _is_running(parent):
            time.sleep(_PARENT_S)
        os._exit(1)

    if os.name != "nt":
        threading.Thread(target=watch, name="parent", daemon=True).start()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # no signal: whether there could be one
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def import_openvino() -> ModuleType:
    """OpenVINO without its package `openvino_telemetry`, with which each import reports to its makers.

    That package also keeps an identifier in the user's home, and where it cannot, it writes to the root logger.
    """
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed: OpenVINO has a stand-in for that
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[name]
        sys.modules.update(before)


def choose_workers(workers: int) -> int:
    """`workers`, or if 0, one per core that this process may use."""
    import joblib

    return workers or int(joblib.cpu_count())


def versions() -> dict[str, str]:
    """The versions of captionmill and of the software that its results depend on."""
    return dict(_versions())


@functools.cache  # to find them takes an eighth of a small training
def _versions() -> Mapping[str, str]:
    packages = ("captionmill", "torch", "torchvision", "pillow", "h5py")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
