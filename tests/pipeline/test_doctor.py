"""The doctor says what is there and what to change; its advice is tried on machines that are not this one."""

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.images.decode import decode_image
from captionmill.pipeline.doctor import NOT_INSTALLED, Facts, advise, gather_facts
from captionmill.pipeline.summaries import doctor_lines
from captionmill.pipeline.throughput import PHOTO_SIZE, Throughput, draw_photo, measure_throughput
from captionmill.stages.settings import ExtractConfig

HEALTHY = Facts(
    versions={"python": "3.12.1", "openvino": "2026.4.1"},
    extras={"java": (), "parquet": ("pyarrow",)},
    system="Linux x86_64",
    cores=8,
    cores_present=8,
    load=0.3,
    memory_bytes=32_000_000_000,
    cpu_flags=("avx2", "amx_bf16"),
    fast_bf16=True,
    fast_int8=False,
    gpus=("NVIDIA H100",),
    torch_cuda="13.0",
    nvidia_driver=True,
    java=True,
    weights_path=Path("hub", "checkpoints", "resnet50-0676ba61.pth"),
    weights_url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
    weights_here=True,
    cache="/home/me/.cache/networks: 94 MB of at most 1000 MB",
)
FAST = Throughput("cuda torch float16", decoding=4000.0, forward=3000.0, captions=2000.0)


def test_a_machine_that_lacks_nothing_gets_no_advice() -> None:
    assert advise(HEALTHY, FAST) == []
    assert advise(HEALTHY, None) == []


WEIGHTS_ADVICE = (
    "the ResNet-50 weights are not here: the first extract downloads them; without a network put "
    f"https://download.pytorch.org/models/resnet50-0676ba61.pth into {Path('hub', 'checkpoints')}"
)
CPU_ONLY = {"gpus": (), "nvidia_driver": False, "torch_cuda": ""}


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"gpus": (), "torch_cuda": ""},
            "this machine has an NVIDIA GPU, but torch is a CPU build: see pytorch.org/get-started/locally for CUDA",
        ),
        (
            {"gpus": ()},
            (
                "this machine has an NVIDIA GPU, torch is built for CUDA 13.0 "
                "but cannot use it: check nvidia-smi and CUDA_VISIBLE_DEVICES"
            ),
        ),
        (
            {"gpus": (), "nvidia_driver": False},
            (
                "torch is built for CUDA: 5 GB of no use without an NVIDIA GPU; for the build for CPUs, remove torch "
                "and torchvision, then pip install torch torchvision -i https://download.pytorch.org/whl/cpu"
            ),
        ),
        (
            {**CPU_ONLY, "versions": {"openvino": NOT_INSTALLED}},
            "openvino is not installed: pip install openvino makes the network about 1.5 times as fast on a CPU",
        ),
        (
            {"cores": 2},
            "2 of the machine's 8 cores may be used: ask the container or the batch system for more",
        ),
        ({"memory_bytes": 2_500_000_000}, "2.5 GB of memory: extract with `batch_size` 8 if it runs out"),
        ({"weights_here": False}, WEIGHTS_ADVICE),
        ({"java": False}, "pycocoevalcap is installed, Java is not: METEOR and SPICE need a Java on the PATH"),
    ],
)
def test_each_lack_gets_its_line_and_no_other(changes: dict[str, Any], advice: str) -> None:
    assert advise(replace(HEALTHY, **changes), None) == [advice]


@pytest.mark.parametrize(
    ("changes"),
    [{"versions": {"openvino": NOT_INSTALLED}}, {"java": False, "extras": {"java": ("pycocoevalcap",)}}, CPU_ONLY],
    ids=["no openvino beside a GPU", "no Java and no use for it", "no GPU"],
)
def test_what_would_change_nothing_is_not_advised(changes: dict[str, Any]) -> None:
    assert advise(replace(HEALTHY, **changes), None) == []


def test_advice_on_rates_names_the_slower_part_and_says_when_they_were_disturbed() -> None:
    slow_decoding = replace(FAST, decoding=500.0)
    assert advise(HEALTHY, slow_decoding) == [
        "decoding is slower than the network: more cores help, or a smaller copy of the images"
    ]
    on_cpu = replace(HEALTHY, gpus=(), nvidia_driver=False, torch_cuda="")
    assert advise(on_cpu, FAST) == [
        "the network is slower than decoding: a GPU or more machines help (extract with `cluster` or `shard`)"
    ]
    on_cpu = replace(on_cpu, fast_int8=True)
    (line,) = advise(on_cpu, replace(FAST, engine="cpu openvino float32"))
    assert line.endswith("(extract with `cluster` or `shard`), or the less exact `precision` int8")
    (line,) = advise(on_cpu, replace(FAST, engine="cpu openvino bfloat16"))
    assert "int8" not in line
    assert advise(replace(HEALTHY, load=12.5), FAST) == [
        "other programs keep the machine busy (load 12.5 on 8 cores): the rates above are too low"
    ]


def test_the_page_has_a_line_for_each_fact_and_the_advice_last() -> None:
    facts = replace(HEALTHY, versions={"python": "3.12.1", "openvino": NOT_INSTALLED}, gpus=(), memory_bytes=0)
    lines = doctor_lines(facts, replace(FAST, forward=8.14), ["do this"]).splitlines()
    assert lines == [
        "versions  python 3.12.1, openvino not installed",
        "extras    java (yes), parquet (no)",
        "system    Linux x86_64",
        "cores     8 of 8 may be used, load 0.3",
        "memory    unknown",
        "CPU       avx2, amx_bf16; bf16 fast, int8 slow",
        "GPUs      none that torch can use",
        "torch     built for CUDA 13.0",
        "Java      found",
        f"weights   {HEALTHY.weights_path}: here",
        "networks  /home/me/.cache/networks: 94 MB of at most 1000 MB",
        "engine    cuda torch float16",
        "decoding  4,000 images/s",
        "network   8.1 images/s",
        "captions  2,000 captions/s",
        "",
        "do this",
    ]
    assert doctor_lines(HEALTHY, None, []).splitlines()[-1] == "nothing to change"


def test_facts_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requirements = ["numpy>=1.26", "h5py>=3 ; extra == 'stores'", 'no-such[x]>=1; extra == "none"', "a; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requirements)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")
    facts = gather_facts([tmp_path / "limit", tmp_path / "none", tmp_path / "gone"])
    assert facts.extras == {"stores": (), "none": ("no-such",)}
    assert facts.versions["numpy"] == np.__version__
    assert facts.weights_path == tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    assert (facts.weights_here, facts.java) == (False, False)
    assert 1 <= facts.cores <= facts.cores_present
    assert facts.memory_bytes == 1_000_000
    facts.weights_path.parent.mkdir(parents=True)
    facts.weights_path.touch()
    assert gather_facts().weights_here


def test_rates_are_measured_on_a_drawn_photo() -> None:
    assert decode_image(draw_photo()).size == PHOTO_SIZE
    labels = []
    config = ExtractConfig(backbone="scenes-resnet14", image_size=32, batch_size=2, device="cpu", engine="torch")
    found = measure_throughput(0, config, progress=lambda label, done, total, **_: labels.append((label, done, total)))
    assert found.engine == "cpu torch float32" or found.engine == "cpu torch bfloat16"
    assert found.forward > 0
    assert found.captions > 0
    assert labels[0] == ("measure decoding", 0, 3)
    assert labels[-1] == ("measure captions", 3, 3)


def test_doctor_prints_facts_without_the_test() -> None:
    result = CliRunner().invoke(main, ["doctor", "--seconds", "0"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.startswith("versions  python ")
    assert "\nweights   " in result.stdout
    assert "engine" not in result.stdout
