"""docs/formats.md is enough to write a reader: the one in format_reader.py reads what captionmill has written."""

import ast
import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import format_reader
import numpy as np
import pytest
from builders import TINY_TRAINING, draw_photos, make_rows, make_spec, make_store, make_task
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.features.parts import part_paths
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter, PartWriter
from captionmill.data.images.read import ImageSource, hash_content
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.settings import FeatureScaling, ImageInput, SearchConfig
from captionmill.stages.training.train import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
THIN = ["--backbone", "scenes-resnet14", "--image-size", "32", "--engine", "torch", "--precision", "fp32"]


def run(*arguments: object) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def first_columns(heading: str) -> set[str]:
    """The names in backquotes in the first column of the tables under a heading of the page."""
    section = PAGE.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_reader_knows_nothing_of_captionmill() -> None:
    tree = ast.parse((ROOT / "tests" / "format_reader.py").read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in imported} == {
        "csv", "h5py", "hashlib", "json", "numpy", "pathlib", "struct", "typing", "zlib",
    }  # fmt: skip


def test_a_store_that_extract_wrote_reads_alike_and_its_checksums_hold(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos")
    run("extract", photos, "--output", tmp_path / "features.h5", *THIN)
    spec, rows = format_reader.read_store(tmp_path / "features.h5")
    store = FeatureStore.open(tmp_path / "features.h5")
    assert (spec, list(rows)) == (store.spec.to_json(), store.keys)
    for key, (row, checksum, source) in rows.items():
        assert np.array_equal(row, store[key])
        assert checksum == format_reader.checksum(key, row, source)
        content, status = (photos / key).read_bytes(), (photos / key).stat()
        assert source.tolist() == [status.st_size, status.st_mtime_ns, hash_content(content)]


def test_parts_replace_and_take_away_in_the_order_of_their_names(tmp_path: Path) -> None:
    path, spec, rows = tmp_path / "features.h5", make_spec(), make_rows(6)
    make_store(path, ["a.jpg", "b.jpg", "é.jpg"], rows[:3])
    with PartWriter(path, "part-000001-00000", spec, dtype="float32", made_by={}) as parts:
        parts.add(["b.jpg", "d.jpg"], rows[3:5])
        parts.drop(["a.jpg"])
        parts.flush()
        parts.drop(["d.jpg"])
        parts.flush()
        parts.add(["a.jpg"], rows[5:], [ImageSource(1, 2, 3)])
    assert len(part_paths(path)) == 3
    store = FeatureStore.open(path)
    _, read = format_reader.read_store(path)
    assert sorted(read) == store.keys == ["a.jpg", "b.jpg", "é.jpg"]
    for key, row in {"a.jpg": rows[5], "b.jpg": rows[3], "é.jpg": rows[2]}.items():
        assert np.array_equal(read[key][0], row)
        assert read[key][1] == format_reader.checksum(key, *read[key][::2])


def test_the_pages_example_of_a_checksum_is_right(tmp_path: Path) -> None:
    value, number = re.findall(r"\*\*checksum\*\* \| (\d+) \| `(0x[0-9a-f]{8})`", PAGE)[0]
    pieces = re.findall(r"^\| (?:key|zero|row|source: \w+) \|.*\| `([0-9a-f]+)` \|$", PAGE, re.M)
    row = np.array([1, -2, 0.5], "<f2")
    source = (51234, 1700000000000000000, 81985529216486895)
    assert "".join(pieces) == (b"a/b.jpg\0" + row.tobytes() + struct.pack("<3Q", *source)).hex()
    with FeatureWriter(tmp_path / "s.h5", make_spec(feature_dim=3), dtype="float16", made_by={}) as writer:
        writer.add(["a/b.jpg"], row.reshape(1, 3), [ImageSource(*source)])
    stored = format_reader.read_store(tmp_path / "s.h5")[1]["a/b.jpg"][1]
    assert stored == int(value) == int(number, 16) == format_reader.checksum("a/b.jpg", row, np.array(source))


@pytest.mark.parametrize(
    ("image_input", "layers", "tie_weights", "scaling"),
    [
        ("init", 1, True, "standardize-unit"),
        ("init", 2, False, "standardize"),
        ("first", 2, True, "unit"),
        ("every", 1, False, "standardize-unit"),
        ("every", 2, True, "standardize"),
    ],
)
def test_a_decoder_of_plain_numpy_says_the_same_words(
    tmp_path: Path, image_input: ImageInput, layers: int, tie_weights: bool, scaling: FeatureScaling
) -> None:
    features, captions = make_task(tmp_path)
    config = replace(
        TINY_TRAINING, image_input=image_input, layers=layers, tie_weights=tie_weights, feature_scaling=scaling
    )
    train(features, captions, tmp_path / "model", replace(config, max_epochs=6))
    bundle, tensors = format_reader.read_bundle(tmp_path / "model")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes == format_reader.expected_shapes(bundle["decoder"])
    store = FeatureStore.open(features)
    captioner = Captioner.load(tmp_path / "model", device="cpu")
    search = SearchConfig(beam_size=1, length_penalty=0.0, max_length=6)
    expected = dict(captioner.captions(store, store.keys, search))
    _, rows = format_reader.read_store(features)
    decoded = {key: format_reader.decode(bundle, tensors, row, max_length=6) for key, (row, _, _) in rows.items()}
    assert {key: text for key, (text, _) in decoded.items()} == {key: one.text for key, one in expected.items()}
    assert [confidence for _, confidence in decoded.values()] == pytest.approx(
        [expected[key].confidence for key in decoded], abs=1e-5
    )


def test_every_field_that_is_written_stands_in_the_page(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    model = tmp_path / "model"
    search = replace(TINY_TRAINING.search, rerank="both")
    train(features, captions, model, replace(TINY_TRAINING, search=search, matcher_epochs=1))
    bundle = format_reader.read_bundle(model)[0]
    assert set(bundle) == first_columns("bundle.json")
    assert set(bundle["features"]) == format_reader.read_store(features)[0].keys()
    decoder = PAGE.split("**`decoder`**:", 1)[1].split("\n\n", 1)[0]
    for name in bundle["decoder"]:
        assert f"`{name}`" in decoder, name
    beside = first_columns("Beside the model")
    assert {path.name for path in model.iterdir()} - {
        "bundle.json",
        bundle["weights"]["file"],
        bundle["ranker"]["file"],
        "events",
    } == {name for name in beside if not name.endswith("/")}
    for table in ("history.csv", "samples.csv"):
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{table}`"))
        for column in format_reader.read_table(model / table)[0]:
            assert f"`{column}`" in row, f"{table}: {column}"

    scores, per_image = tmp_path / "scores.json", tmp_path / "per-image.csv"
    (tmp_path / "list.txt").write_text("00.jpg\n01.jpg\n")
    chosen = ["--captions", captions, "--list", tmp_path / "list.txt"]
    run("evaluate", features, "--model", model, *chosen, "--output", scores, "--per-image", per_image)
    values = json.loads(scores.read_text(encoding="utf-8"))
    assert set(values) == first_columns("Scores") - {"damaged"}  # none are
    section = PAGE.split("\n## Scores\n", 1)[1].split("\n## ", 1)[0]
    for name in (*values["caption_statistics"], *values["search"], *values["bootstrap"]):
        assert f"`{name}`" in section, name
    assert set(format_reader.read_table(per_image)[0]) == first_columns("Scores of each image") - {"meteor", "spice"}


def test_what_made_a_pipeline_is_recorded_as_the_page_says(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos")
    keys = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*") if path.name != "broken.jpg")
    lines = [f"{key},a picture,{'val' if number < 2 else 'train'}" for number, key in enumerate(keys)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *lines]) + "\n")
    (tmp_path / "pipeline.toml").write_text(
        '[extract]\nimages = "photos"\nbackbone = "scenes-resnet14"\nimage_size = 32\nengine = "torch"\n'
        '[train]\ncaptions = "captions.csv"\nembed_dim = 4\nhidden_dim = 4\nmin_count = 1\nmax_epochs = 1\n'
    )
    run("run", tmp_path / "pipeline.toml")
    record = json.loads((tmp_path / "pipeline.made.json").read_text(encoding="utf-8"))
    assert (record["format"], record["format_version"]) == ("captionmill-pipeline", 2)
    assert [output["task"] for output in record["outputs"].values()] == ["extract", "train"]
    assert {name for output in record["outputs"].values() for name in output} == first_columns("pipeline.made.json")
    assert all(output["made"] for output in record["outputs"].values())
    assert format_reader.read_table(tmp_path / "failures.csv")[0]["key"] == "broken.jpg"
