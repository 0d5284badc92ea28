"""What needs no network is done before torch is imported, which takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import make_model, make_rows, make_store
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.settings import ExtractConfig

HEAVY = ("torch", "torchvision", "pandas", "openvino", "matplotlib", "joblib")
PROGRAM = f"""
import sys
from click.testing import CliRunner
from captionmill.cli import main
for line in sys.argv[1:]:
    result = CliRunner().invoke(main, line.split())
    print(result.exit_code, (result.stdout.strip() or result.stderr.strip()).splitlines()[-1])
    print(sorted(set({HEAVY}) & set(sys.modules)))
"""


def run_fresh(folder: Path, *lines: str) -> list[str]:
    """What commands in a new process say at last, each with the heavy packages that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *lines], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture
def folder(photos: Path, thin_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos, one of them broken, a model, and their captions."""
    folder = photos.parent
    monkeypatch.chdir(folder)
    weights = folder / "thin.safetensors"
    weights.write_bytes(thin_weights.read_bytes())
    os.utime(weights, (1_000_000_000, 1_000_000_000))
    config = ExtractConfig("scenes-resnet14", weights=str(weights), preprocess="squash", image_size=32)
    make_model(Path("model"), build_encoder(config).spec)
    return folder


CAPTION = "caption photos --model model --device cpu --output"


def test_a_finished_folder_needs_no_torch(folder: Path) -> None:
    result = CliRunner().invoke(main, [*CAPTION.split(), "t.csv"])
    said = "t.csv: 9 images found: 8 captioned (0 from cached features), 1 failed"
    assert (result.exit_code, result.stdout.split(";")[0]) == (0, said)
    made = Path("t.csv").read_bytes()
    lines = run_fresh(folder, f"{CAPTION} t.csv", f"{CAPTION} t.csv --dry-run")
    assert lines[0].startswith("0 t.csv: 9 images found: 8 captioned (8 from cached features, 9 rows as before)")
    assert lines[1] == lines[3] == "[]"
    assert Path("t.csv").read_bytes() == made


def test_a_later_run_needs_no_torch_on_a_cpu(folder: Path) -> None:
    assert CliRunner().invoke(main, [*CAPTION.split(), "t.csv"]).exit_code == 0
    lines = run_fresh(
        folder,
        f"{CAPTION} u.csv",
        "explain photos/red_0.png --model model --device cpu",
        "extract photos --output new.h5 --device cpu --backbone scenes-resnet14 --weights thin.safetensors "
        "--preprocess squash --image-size 32",
    )
    assert [line.split()[0] for line in lines[::2]] == ["0"] * 3
    assert not any("torch" in line for line in lines[1::2])
    assert Path("u.csv").read_text().splitlines()[1:] == Path("t.csv").read_text().splitlines()[1:]


def test_what_arguments_and_headers_show_to_be_wrong_is_said_before_torch_is_imported(folder: Path) -> None:
    (folder / "bad.h5").write_text("no store")
    make_store(folder / "s.h5", ["a.jpg"], make_rows(1))
    (folder / "c.csv").write_text("image,caption\na.jpg,a dog\n")
    said = run_fresh(
        folder,
        "caption photos --model nomodel --output t.csv",
        "caption photos --model model --output t.csv --features bad.h5",
        "caption photos --model model --output t.csv --weights thin.safetensors --alternatives 30",
        "explain photos/broken.jpg --model model",
        "explain photos/red_0.png --model nomodel",
        "extract photos --output bad.h5 --device cpu",
        "extract photos --output t.h5 --device cpu --weights no.pth",
        "extract photos --output t.h5 --device cpu --weights c.csv",
        "extract photos --output t.h5 --device toaster",
        "extract photos --output t.h5 --device cpu --precision fp16",
        "extract photos --output t.h5 --precision int8 --engine torch",
        "caption photos --model model --output t.csv --device toaster",
        "train bad.h5 --captions c.csv --output m",
        "train bad.h5 --captions c.csv --output model",
        "evaluate bad.h5 --captions c.csv --model model",
        "leaks bad.h5 --captions c.csv",
        "duplicates bad.h5",
        "export nomodel --output exported",
        "export model --output photos",
        "train bad.h5 --captions c.csv --output m --device toaster",
        "train s.h5 --captions c.csv --output m --train-list gone.txt --val-list gone.txt",
        "train s.h5 --captions c.csv --output m --init model",
        "train s.h5 --captions c.csv --output m --teacher model",
        "audit s.h5 --captions c.csv --model model --device toaster",
        "evaluate s.h5 --captions c.csv --model model --device toaster",
        "search s.h5 dog --model model --device toaster",
        "extract photos --output s.h5 --device cpu --backbone resnet152 --weights no.pth",
        "extract photos --output s.h5 --device cpu --views six --weights no.pth",
    )
    none = "1 Error: nomodel: no trained model here (nomodel/bundle.json is missing); make one with `captionmill train`"
    bad = "1 Error: bad.h5: not a readable feature store"
    expected = [
        *(none, bad, "1 Error: --alternatives 30 needs --beam-size or --candidates 31 or more, not 20"),
        *("1 Error: photos/broken.jpg: not an image", none, bad),
        "1 Error: no.pth: no such file; --weights takes imagenet1k_v1, imagenet1k_v2 or a .pth or .safetensors",
        "1 Error: c.csv: not a readable state_dict (neither a zip file nor a pickle)",
        "1 Error: --device toaster: no such device; use auto, cpu, cuda, cuda:N or mps",
        "1 Error: --precision fp16 needs a GPU; on a CPU use bf16 or fp32",
        "1 Error: --precision int8 is computed on a CPU by openvino, without --compile; else use bf16 or fp32",
        "1 Error: --device toaster: no such device",
        *(bad, "1 Error: model: holds a model already; pass --overwrite to replace it, or another --output"),
        *(bad, bad, bad, none),
        "1 Error: photos: holds other files; name another folder as --output",
        "1 Error: --device toaster: no such device",
        "1 Error: gone.txt: ",
        *2 * ["1 Error: model and s.h5 do not fit: model has backbone: scenes-resnet14, not resnet50"],
        *3 * ["1 Error: --device toaster: no such device"],
        "1 Error: s.h5 and this run do not fit: s.h5 has backbone: resnet50, not resnet152",
        "1 Error: s.h5 and this run do not fit: s.h5 has views: one, not six",
    ]
    assert said[1::2] == ["[]"] * len(expected)
    assert [line[: len(start)] for line, start in zip(said[::2], expected, strict=True)] == expected
