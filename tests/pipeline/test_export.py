"""An exported model, and any network, says without captionmill and torch what it says in captionmill.

One file, so that one process imports what writes ONNX, which takes longer than to write a network.
"""

import contextlib
import csv
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import draw_photos
from click.testing import CliRunner, Result
from torch import Tensor, nn

from captionmill.cli import main
from captionmill.data.errors import ExportError
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.ensemble import Ensemble
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.portable.file import Port, PortableNetwork, open_network, write_network
from captionmill.stages.portable.networks import portable_decoder, portable_encoder
from captionmill.stages.settings import ExtractConfig, FeatureScaling, ImageInput

HOW = {"red": "", "blue": "so ", "green": "so very ", "yellow": "very very very "}
DOCS = Path(__file__).parents[2] / "docs" / "export.md"
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="captionmill[onnx] is not installed",
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def fail(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module", autouse=True)
def one_registry() -> Iterator[None]:
    """Have torch read once what it can write as ONNX: the source of 500 functions, which takes half of an export."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError, AttributeError):  # another version of torch
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        patch.setattr(torch.onnx, "export", once_per_network(torch.onnx.export))
        yield


def once_per_network(export: Callable[..., Any]) -> Callable[..., Any]:
    """`export` of torch, which writes a network that it has written before no second time.

    Several tests export one model, to see what becomes of the files.
    """
    programs: dict[Any, Any] = {}

    def export_once(module: nn.Module, example: tuple[Tensor, ...], **options: Any) -> Any:
        settings = [vars(part) for part in module.modules()]
        own = [[(name, str(one)) for name, one in values.items() if name[0] != "_"] for values in settings]
        weights = [tensor.numpy().tobytes() for tensor in module.state_dict().values()]
        key = str((module, own, options, [tensor.shape for tensor in example])), *weights
        if key not in programs:
            programs[key] = export(module, example, **options)
        return programs[key]

    return export_once


@pytest.fixture(scope="module")
def trained(thin_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a model that captions them by their colour."""
    folder = tmp_path_factory.mktemp("trained")
    draw_photos(folder / "photos")
    (folder / "photos" / "broken.jpg").unlink()
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for image in sorted((folder / "photos").rglob("*_*.*")):
            colour, number = image.stem.split("_")
            split = "train" if int(number) < 4 else "val"
            key = image.relative_to(folder / "photos").as_posix()
            writer.writerow([key, f"the {colour} picture's {HOW[colour]}{colour}", split])
    backbone = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32"]
    run("extract", folder / "photos", "--output", folder / "f.h5", *backbone, "--weights", thin_weights)
    small = ["--min-count", 1, "--embed-dim", 16, "--hidden-dim", 32, "--dropout", 0, "--feature-dropout", 0]
    small += ["--learning-rate", 0.02, "--batch-size", 4, "--max-epochs", 40, "--patience", 40]
    result = run("train", folder / "f.h5", "--captions", folder / "captions.csv", "--output", folder / "model", *small)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    """The model of `trained`, exported; no test changes it."""
    result = run("export", trained / "model", "--output", trained / "exported")
    assert result.exit_code == 0, result.output
    files = "decoder_start.onnx, decoder_step.onnx, encoder.onnx, vocabulary.json, manifest.json"
    assert result.stdout.startswith(f"{trained / 'exported'}: {files}, ")
    return trained / "exported"


@needs_onnx
def test_the_documented_loop_says_what_captionmill_says(trained: Path, exported: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    program += "assert not {'torch', 'captionmill'} & set(sys.modules)\n"
    (tmp_path / "greedy.py").write_text(program, encoding="utf-8")
    run("caption", trained / "photos", "--model", trained / "model", "--output", tmp_path / "c.csv", "--beam-size", 1)
    with (tmp_path / "c.csv").open(encoding="utf-8-sig", newline="") as file:
        expected = {row["path"]: row["caption"] for row in csv.DictReader(file)}
    command = [sys.executable, str(tmp_path / "greedy.py"), str(exported), *sorted(expected)]
    done = subprocess.run(command, cwd=trained / "photos", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert dict(line.split("\t") for line in done.stdout.splitlines()) == expected
    assert expected["more/green_5.JPG"] == "the green picture's so very green"
    assert "very very" not in expected["more/yellow_3.png"]
    assert str(Path(__file__).parents[2]).encode() not in (exported / "decoder_step.onnx").read_bytes()


@needs_onnx
def test_the_manifest_describes_the_files(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "decoder_start.onnx",
        "decoder_step.onnx",
        "encoder.onnx",
        "manifest.json",
        "vocabulary.json",
    ]
    manifest: dict[str, Any] = json.loads((exported / "manifest.json").read_text())
    words = json.loads((exported / "vocabulary.json").read_text())
    assert manifest["special"] == {"pad": 0, "start": 1, "end": 2, "unk": 3}
    assert words[:4] == ["<pad>", "<start>", "<end>", "<unk>"]
    assert manifest["vocabulary"] == {"file": "vocabulary.json", "size": len(words)}
    assert manifest["file_format"] == "onnx"
    rule = {"never_chosen": [0, 1, 3], "not_first": [2], "max_length": 20, "repeat_words": False, "doubled": []}
    assert manifest["search"] == rule
    assert f'"search": {json.dumps(manifest["search"])}\n' in DOCS.read_text(encoding="utf-8")
    assert manifest["features"]["backbone"] == "scenes-resnet14"
    state = [{"name": name, "dtype": "float32", "shape": [1, "batch", 32]} for name in ("hidden", "cell")]
    step = manifest["networks"]["decoder_step"]
    assert step["inputs"] == [{"name": "words", "dtype": "int64", "shape": ["batch"]}, *state]
    assert step["outputs"][0] == {"name": "logits", "dtype": "float32", "shape": ["batch", len(words)]}
    assert [port["name"] for port in step["outputs"]] == ["logits", "next_hidden", "next_cell"]
    assert manifest["networks"]["decoder_start"]["outputs"] == state


@needs_onnx
def test_an_export_is_replaced_on_request_alone_and_whole(trained: Path, exported: Path, tmp_path: Path) -> None:
    output = shutil.copytree(exported, tmp_path / "exported")
    (output / "decoder_step.pt").touch()  # as the version before wrote it with --format torchscript
    arguments = ["export", trained / "model", "--output", output]
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    (tmp_path / ".exported.partial").mkdir()  # as a kill leaves it that comes when all is in place
    assert fail(*arguments) == (
        f"Error: {output}: holds an export already; pass --overwrite to replace it, or another --output"
    )
    assert not list(tmp_path.glob(".*"))
    shutil.copytree(trained / "model", tmp_path / "model")
    bundle = tmp_path / "model" / "bundle.json"
    bundle.write_text(re.sub(r'"weights": "[^"]*"', '"weights": "gone.pth"', bundle.read_text(), count=1))
    arguments[1] = tmp_path / "model"
    assert "pass that file as --weights" in fail(*arguments, "--overwrite")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert run(*arguments, "--overwrite", "--no-encoder").exit_code == 0
    assert {path.name for path in output.iterdir()} == {*before} - {"encoder.onnx", "decoder_step.pt"}
    assert not list(tmp_path.glob(".*"))


@needs_onnx
def test_an_export_killed_or_stopped_while_it_took_its_place_is_made_by_the_same_command(
    trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = shutil.copytree(exported, tmp_path / "out")
    left = tmp_path / ".out.partial"
    left.mkdir()
    (output / "manifest.json").rename(left / "manifest.json")  # what a kill leaves
    arguments = ["export", trained / "model", "--output", output, "--no-encoder"]
    (output / "mine.txt").touch()
    assert "holds other files" in fail(*arguments)
    (output / "mine.txt").unlink()
    replace_path, mkdir = Path.replace, Path.mkdir

    def stop_at_the_manifest(path: Path, target: Path) -> None:
        if target == output / "manifest.json":
            raise KeyboardInterrupt
        replace_path(path, target)

    def stop_at_the_staging(path: Path, *arguments: Any, **options: Any) -> None:
        if path == left:
            raise KeyboardInterrupt
        mkdir(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", stop_at_the_staging)
        assert run(*arguments).exit_code == 130
    assert not left.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_at_the_manifest)
        assert run(*arguments).exit_code == 130
    assert run(*arguments).exit_code == 0
    assert (output / "manifest.json").exists()


@needs_onnx
def test_a_folder_of_other_things_is_left_alone(trained: Path) -> None:
    message = fail("export", trained / "model", "--output", trained / "model")
    assert message == f"Error: {trained / 'model'}: holds other files; name another folder as --output"


def test_missing_packages_are_one_line(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    message = fail("export", trained / "model", "--output", tmp_path / "exported")
    assert message == ("Error: an export needs onnx, onnxscript, onnxruntime; run: pip install 'captionmill[onnx]'")
    assert not (tmp_path / "exported").exists()


def build_decoder(
    image_input: ImageInput, layers: int, tie_weights: bool, feature_scaling: FeatureScaling = "standardize-unit"
) -> Decoder:
    torch.manual_seed(3)
    config = DecoderConfig(
        feature_dim=16, vocab_size=30, embed_dim=8, hidden_dim=12, dropout=0.5, feature_dropout=0.3, layers=layers
    )
    config = replace(config, image_input=image_input, tie_weights=tie_weights, feature_scaling=feature_scaling)
    decoder = Decoder(config)
    decoder.fit_features(torch.randn(16), torch.rand(16) + 0.5)
    return decoder


def require_same_steps(decoders: list[Decoder], folder: Path) -> None:
    """Start and three steps in the files give what `decoders` give, at a batch size that no export checks."""
    start, step = portable_decoder([decoder.eval() for decoder in decoders])
    decoder = Ensemble(decoders)
    for network in (start, step):
        write_network(network, folder / network.name)
    open_start, open_step = (open_network(folder / name) for name in ("decoder_start", "decoder_step"))
    features, words = torch.randn(4, 16), torch.tensor([1, 7, 29, 4])
    with torch.inference_mode():
        state = decoder.start(features)
        exported = open_start(features.numpy())
        assert [part.shape for part in exported] == [
            tuple(4 if size == "batch" else size for size in port.shape) for port in start.outputs
        ]
        for _ in range(3):
            logits, state = decoder.step(words, state)
            found, *exported = open_step(words.numpy(), *exported)
            np.testing.assert_allclose(found, logits.numpy(), rtol=0, atol=1e-4)
            words = logits.argmax(1)
    for mine, torchs in zip(exported, state, strict=True):
        np.testing.assert_allclose(mine, torchs.numpy(), rtol=0, atol=1e-4)


@needs_onnx
def test_every_kind_of_decoder_becomes_onnx(tmp_path: Path) -> None:
    """Three at once, as an ensemble, in which each has its own state; the export of a whole model has one."""
    kinds: list[tuple[ImageInput, int, bool, FeatureScaling]] = [
        ("init", 2, False, "unit"),
        ("first", 1, False, "standardize"),
        ("every", 1, True, "standardize-unit"),
    ]
    require_same_steps([build_decoder(*kind) for kind in kinds], tmp_path)


def test_an_ensemble_becomes_one_network_with_the_state_of_each_decoder() -> None:
    decoders = [build_decoder("init", 1, True), build_decoder("every", 2, False)]
    names = [port.name for port in portable_decoder(decoders)[0].outputs]
    assert names == ["hidden_1", "cell_1", "hidden_2", "cell_2", "image_2"]


@needs_onnx
def test_an_encoder_takes_images_of_any_shape_and_both_views(thin_weights: Path, tmp_path: Path) -> None:
    """The exports of the whole model have `squash`, one view and all layers; here are those up to the second stride."""
    whole = build_encoder(ExtractConfig("scenes-resnet14", str(thin_weights), "whole", 64, "flip"))
    network = whole.network
    network.layers = network.layers[:6]
    encoder = Encoder(replace(whole.spec, feature_dim=512), lambda: network)
    write_network(portable_encoder(encoder), tmp_path / "encoder")
    pixels = np.random.default_rng(0).integers(256, size=(4, 64, 160, 3)).astype(np.uint8)
    with torch.inference_mode():
        mirrored = encoder.network(torch.from_numpy(pixels[:, :, ::-1].copy()))
        expected = (encoder.network(torch.from_numpy(pixels)) + mirrored) / 2
    (features,) = open_network(tmp_path / "encoder")(pixels)
    np.testing.assert_allclose(features, expected.numpy(), rtol=0, atol=1e-4)


@needs_onnx
def test_a_network_that_computes_something_else_in_its_file_is_refused(tmp_path: Path) -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[int] = []

        def forward(self, numbers: Tensor) -> Tensor:
            self.calls.append(1)
            return numbers * len(self.calls)

    ports = [Port(name, "float32", ("batch", 2)) for name in ("numbers", "grown")]
    network = PortableNetwork("growing", Growing(), (ports[0],), (ports[1],), ({"batch": 2}, {"batch": 5}))
    with pytest.raises(ExportError, match="growing: the ONNX file computes other numbers than torch"):
        write_network(network, tmp_path / "growing")
