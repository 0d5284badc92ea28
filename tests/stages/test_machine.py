"""What a stage is told about the machine."""

from pathlib import Path

import pytest
import torch

from captionmill.stages.encoding.extract import extract
from captionmill.stages.machine import choose_dtype, choose_workers, unused_gpu_note
from captionmill.stages.settings import ExtractConfig


def test_a_gpu_that_is_left_unused_is_said_loudly(
    photos: Path, thin_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
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
    ("capabilities", "dtype"),
    [({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16)],
)
def test_half_precision_is_chosen_where_the_cpu_is_fast_at_it(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_dtype("auto", torch.device("cpu")) == dtype


def test_a_gpu_computes_in_fp16_unless_told_otherwise() -> None:
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16
    assert choose_dtype("bf16", torch.device("cuda")) == torch.bfloat16


def test_workers_are_as_told_or_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    import joblib

    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    assert choose_workers(0) == 6
    assert choose_workers(3) == 3
