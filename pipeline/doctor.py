"""Finds out how well this machine suits captionmill: facts first, then advice derived from them."""

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from captionmill.data.cache import NETWORKS
from captionmill.data.images.memory import MEMORY_LIMITS, memory_bytes
from captionmill.pipeline.throughput import Throughput
from captionmill.stages.encoding.weights import find_named_weights
from captionmill.stages.machine import choose_workers, has_fast_bf16, has_fast_int8, versions
from captionmill.stages.settings import ExtractConfig

NOT_INSTALLED = ""
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
_LEAST_MEMORY = 4e9  # bytes
_BUSY = 0.5  # load per core by other programs, from which measurements are unreliable
_CPU_FLAGS = ("avx2", "avx512_f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+).*extra == [\"'](\w+)[\"']")


@dataclass(frozen=True)
class Facts:
    """The facts about this machine."""

    versions: dict[str, str]
    """By package; `NOT_INSTALLED` for a missing package."""
    extras: dict[str, tuple[str, ...]]
    """The missing packages of each extra, by its name."""
    system: str
    cores: int
    """CPU cores that this process may use."""
    cores_present: int
    load: float
    """Mean number of processes that wanted a core in the last minute; 0 if unknown."""
    memory_bytes: int
    """Memory that this process may use; 0 if unknown."""
    cpu_flags: tuple[str, ...]
    """The instruction sets of this CPU that make a network fast."""
    fast_bf16: bool
    """Whether the CPU multiplies faster in bf16 than in fp32."""
    fast_int8: bool
    """Whether the CPU multiplies faster in 8 bits than in fp32."""
    gpus: tuple[str, ...]
    """The GPUs that torch can use."""
    torch_cuda: str
    """The CUDA version that torch was built for; empty for a CPU build."""
    nvidia_driver: bool
    """Whether an NVIDIA driver is installed."""
    java: bool
    weights_path: Path
    """The file in which the default backbone's weights are expected."""
    weights_url: str
    """The URL that they are downloaded from."""
    weights_here: bool
    cache: str
    """The folder of converted networks, how large they are, and their limit."""


def gather_facts(memory_limits: Sequence[Path] = MEMORY_LIMITS) -> Facts:
    """Examine this machine; takes about a second and uses no network.

    `memory_limits` are the files that hold the limit of a container, in bytes, where there is one.
    """
    config = ExtractConfig()
    weights_path, weights_url = find_named_weights(config.backbone, config.weights)
    capabilities = torch.cpu.get_capabilities()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("Apple GPU (mps)")
    return Facts(
        versions=versions() | {name: _version(name) for name in ("openvino", "simplejpeg", "numpy")},
        extras=_find_extras(),
        system=f"{platform.system()} {platform.machine()}",
        cores=choose_workers(0),
        cores_present=os.cpu_count() or 1,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        memory_bytes=memory_bytes(memory_limits),
        cpu_flags=tuple(flag for flag in _CPU_FLAGS if capabilities.get(flag)),
        fast_bf16=has_fast_bf16(),
        fast_int8=has_fast_int8(),
        gpus=tuple(gpus),
        torch_cuda=torch.version.cuda or "",
        nvidia_driver=_NVIDIA_DRIVER.exists(),
        java=shutil.which("java") is not None,
        weights_path=weights_path,
        weights_url=weights_url,
        weights_here=weights_path.is_file(),
        cache=_describe_cache(),
    )


def advise(facts: Facts, throughput: Throughput | None) -> list[str]:
    """What to change, most useful first; without a `throughput`, only advice that needs no measurement."""
    return [
        *_advise_on_gpus(facts),
        *_advise_on_cpu(facts),
        *_advise_on_rates(facts, throughput),
        *_advise_on_files(facts),
    ]


def _advise_on_gpus(facts: Facts) -> list[str]:
    if facts.gpus:
        return []
    if not facts.nvidia_driver:
        too_large = "torch is built for CUDA: 5 GB of no use without an NVIDIA GPU; for the build for CPUs"
        remedy = f"remove torch and torchvision, then pip install torch torchvision -i {CPU_BUILDS}"
        return [f"{too_large}, {remedy}"] if facts.torch_cuda and facts.system.startswith("Linux") else []
    if not facts.torch_cuda:
        return [
            "this machine has an NVIDIA GPU, but torch is a CPU build: see pytorch.org/get-started/locally for CUDA"
        ]
    wanted = f"torch is built for CUDA {facts.torch_cuda}"
    return [f"this machine has an NVIDIA GPU, {wanted} but cannot use it: check nvidia-smi and CUDA_VISIBLE_DEVICES"]


def _advise_on_cpu(facts: Facts) -> list[str]:
    lines = []
    if not facts.gpus and facts.versions["openvino"] == NOT_INSTALLED:
        lines.append(
            "openvino is not installed: pip install openvino makes the network about 1.5 times as fast on a CPU"
        )
    if facts.cores < facts.cores_present:
        lines.append(
            f"{facts.cores} of the machine's {facts.cores_present} cores may be used: ask the container or the batch "
            "system for more"
        )
    if 0 < facts.memory_bytes < _LEAST_MEMORY:
        lines.append(f"{facts.memory_bytes / 1e9:.1f} GB of memory: extract with `batch_size` 8 if it runs out")
    return lines


def _advise_on_rates(facts: Facts, throughput: Throughput | None) -> list[str]:
    if throughput is None:
        return []
    lines = []
    if facts.load > facts.cores * (1 + _BUSY):
        lines.append(
            f"other programs keep the machine busy (load {facts.load:.1f} on {facts.cores} cores): the rates above are "
            "too low"
        )
    if throughput.decoding < throughput.forward:
        lines.append("decoding is slower than the network: more cores help, or a smaller copy of the images")
    elif not facts.gpus:
        remedies = "a GPU or more machines help (extract with `cluster` or `shard`)"
        is_doubled = facts.fast_int8 and throughput.engine == "cpu openvino float32"
        less_exact = ", or the less exact `precision` int8" if is_doubled else ""
        lines.append(f"the network is slower than decoding: {remedies}{less_exact}")
    return lines


def _advise_on_files(facts: Facts) -> list[str]:
    lines = []
    if not facts.weights_here:
        lines.append(
            "the ResNet-50 weights are not here: the first extract downloads them; without a network put "
            f"{facts.weights_url} into {facts.weights_path.parent}"
        )
    if not facts.extras.get("java", ("pycocoevalcap",)) and not facts.java:
        lines.append("pycocoevalcap is installed, Java is not: METEOR and SPICE need a Java on the PATH")
    return lines


def _describe_cache() -> str:
    try:
        folder = NETWORKS.folder
    except OSError:
        return "none: this user has no home"
    return f"{folder}: {NETWORKS.size() / 1e6:.0f} MB of at most {NETWORKS.most_bytes / 1e6:.0f} MB"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _find_extras() -> dict[str, tuple[str, ...]]:
    """The extras of the installed captionmill, each with its missing packages; without dev."""
    missing: dict[str, tuple[str, ...]] = {}
    for requirement in importlib.metadata.requires("captionmill") or []:
        if (found := _REQUIREMENT.match(requirement)) and found[2] != "dev":
            package = found[1]
            missing[found[2]] = missing.get(found[2], ()) + (() if _version(package) else (package,))
    return missing
