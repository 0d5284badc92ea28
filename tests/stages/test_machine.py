"""What a stage is told about the machine."""

import platform
from pathlib import Path

import pytest
import torch

from captionmill.data.errors import InputError
from captionmill.stages.encoding.extract import extract
from captionmill.stages.machine import (
    choose_precision,
    choose_workers,
    has_fast_bf16,
    has_fast_int8,
    means_cpu,
    require_machine,
    unused_gpu_note,
)
from captionmill.stages.settings import ExtractConfig


def test_a_gpu_that_is_left_unused_is_said_loudly(
    photos: Path, thin_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/nvidiactl" or exists(self))
    config = ExtractConfig(
        "scenes-resnet14", weights=str(thin_weights), preprocess="squash", image_size=32, device="cpu", engine="torch"
    )
    extract(photos, tmp_path / "f.h5", config)
    assert "`device` cpu leaves 2 CUDA device(s) unused" in caplog.messages
    assert unused_gpu_note("auto") is None


def test_a_machine_without_a_gpu_hears_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert unused_gpu_note("auto") is None


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/proc/driver/nvidia/version")
    note = unused_gpu_note("auto")
    assert note is not None
    assert note.startswith("an NVIDIA GPU is here, but torch cannot use it")


@pytest.mark.parametrize(
    ("vendor", "flags", "is_fast"),
    [
        ("GenuineIntel", "avx2", False),
        ("GenuineIntel", "avx512_bf16", False),
        ("GenuineIntel", "avx512_bf16 amx_bf16", True),
        ("AuthenticAMD", "avx512f", False),
        ("AuthenticAMD", "avx512_bf16", True),
    ],
)
def test_half_precision_is_chosen_where_the_cpu_is_fast_at_it(
    vendor: str, flags: str, is_fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"vendor_id\t: {vendor}\nmodel name: X\nflags\t\t: fpu {flags} sse\n")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert has_fast_bf16(info) == is_fast


@pytest.mark.parametrize(("flags", "is_fast"), [("avx avx2", True), ("avx2 avx512_vnni", True), ("avx", False)])
def test_a_cpu_with_avx2_is_fast_at_int8(
    flags: str, is_fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    info = tmp_path / "cpuinfo"
    info.write_text(f"flags\t\t: fpu {flags} sse\n")
    assert has_fast_int8(info) == is_fast


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_int8_is_refused_where_it_is_not_fast(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(InputError, match=r"`precision` int8 needs a CPU .*; use bf16 or fp32"):
        choose_precision("int8", device)


@pytest.mark.parametrize(("processor", "is_fast"), [("AMD64 Family 25, AuthenticAMD", True), ("GenuineIntel", False)])
def test_half_precision_is_chosen_by_vendor_on_other_systems(
    processor: str, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "processor", lambda: processor)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert has_fast_bf16() == is_fast


def test_a_gpu_computes_in_fp16_unless_told_otherwise() -> None:
    assert choose_precision("auto", "cuda") == "fp16"
    assert choose_precision("bf16", "cuda") == "bf16"


def test_a_cpu_is_recognised_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert [means_cpu(name) for name in ("auto", "cpu", "cuda", "gpu")] == [True, True, False, False]
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/nvidiactl")
    assert [means_cpu(name) for name in ("auto", "cpu")] == [False, True]


def test_workers_are_as_told_or_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    import joblib

    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    assert choose_workers(0) == 6
    assert choose_workers(3) == 3


def test_a_machine_without_a_compiler_refuses_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    config = ExtractConfig(device="cpu", engine="torch", compile=True)
    with pytest.raises(InputError, match="`compile` needs a C\\+\\+ compiler, such as g\\+\\+, and none is found"):
        require_machine(config)
    compiler = tmp_path / "my-compiler"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    require_machine(config)
    require_machine(ExtractConfig(device="cpu", engine="torch"))
