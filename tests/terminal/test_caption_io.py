"""Images from arguments and standard input, the table on stdout, --strict, --dry-run, and what click suggests."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import draw_photos, make_model
from click.testing import CliRunner, Result
from PIL import Image

from captionmill.cli import main
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import LOW_CONFIDENCE
from captionmill.data.tables.formats import read_captions
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.settings import ExtractConfig

THIN = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32", "--device", "cpu"]


def run(*arguments: object, code: int = 0, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False, input=stdin)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def here(thin_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos and a model."""
    monkeypatch.chdir(tmp_path)
    draw_photos(Path("photos"))
    config = ExtractConfig(
        backbone="scenes-resnet14", weights=str(thin_weights), preprocess="squash", image_size=32, device="cpu"
    )
    make_model(Path("model"), build_encoder(config).spec, scores={LOW_CONFIDENCE: 0.5})
    return tmp_path


def caption(*arguments: object, **settings: Any) -> Result:
    model = ["--model", "model", "--engine", "torch", "--precision", "fp32", "--device", "cpu", "--max-length", "3"]
    return run("caption", *arguments, *model, "--quiet", **settings)


def test_several_images_and_folders_are_captioned_under_the_names_given(here: Path) -> None:
    shutil.copy("photos/red_0.png", "photo.jpg")
    caption("photo.jpg", "photos/more/", here / "photos" / "red_0.png", "--output", "t.csv")
    more = ["green_1.png", "green_5.JPG", "yellow_3.png", "yellow_7.JPG"]
    keys = [f"{here}/photos/red_0.png", "photo.jpg", *(f"photos/more/{name}" for name in more)]
    assert [row.path for row in read_captions("t.csv")] == keys
    caption("photo.jpg", "--output", "one.csv")
    assert [(row.path, row.status) for row in read_captions("one.csv")] == [("photo.jpg", "ok")]


def test_a_list_comes_on_standard_input(here: Path) -> None:
    names = b"photos/red_0.png\nphotos/gone.jpg\n\nphotos/blue_2.png\n"
    caption("-", "--output", "t.csv", stdin=names)
    rows = {row.path: row.status for row in read_captions("t.csv")}
    assert rows == {"photos/blue_2.png": "ok", "photos/gone.jpg": "failed", "photos/red_0.png": "ok"}
    run("extract", "-", "--output", "f.h5", *THIN, stdin=names)
    assert FeatureStore.open("f.h5").keys == ["photos/blue_2.png", "photos/red_0.png"]
    labelled = caption("-", "--output", "u.csv", stdin=b"photos/red_0.png,a dog\n", code=1)
    assert "standard input: line 1 is 'photos/red_0.png,a dog': a path and a label" in labelled.stderr
    assert "standard input: not UTF-8 text" in caption("-", "--output", "u.csv", stdin=b"\xff\xfe", code=1).stderr
    assert "give it by itself" in caption("-", "photos", "--output", "u.csv", stdin=names, code=2).stderr


def test_a_list_or_a_store_among_images_is_refused(here: Path) -> None:
    Path("list.txt").write_text("photos/red_0.png\n")
    found = caption("photos/red_0.png", "list.txt", "--output", "t.csv", code=1)
    assert found.stderr == "Error: list.txt: not an image; give a list of images by itself\n"


def test_a_table_on_stdout_is_all_that_is_there_and_leaves_no_file(here: Path) -> None:
    before = sorted(here.iterdir())
    result = caption("photos/red_0.png", "photos/broken.jpg", "--output", "-")
    header, *lines = result.stdout.splitlines()
    assert header == "path,caption,confidence,flags,status,error"
    assert [line.partition(",")[0] for line in lines] == ["photos/broken.jpg", "photos/red_0.png"]
    assert "-: 2 images found: 1 captioned (0 from cached features), 1 failed" in result.stderr
    assert sorted(here.iterdir()) == before
    options = ["--output", "-", "--format", "jsonl", "--features", "f.h5", "--log-format", "json"]
    result = caption("photos/red_0.png", *options)
    assert json.loads(result.stdout)["path"] == "photos/red_0.png"
    assert json.loads(result.stderr)["features"] == "f.h5"
    assert json.loads(caption("photos/red_0.png", *options).stderr)["cached"] == 1


def test_a_table_on_stdout_shows_the_reasons_if_no_image_can_be_read(here: Path) -> None:
    result = caption("photos/broken.jpg", "--output", "-", code=1)
    assert result.stdout.splitlines()[1].startswith("photos/broken.jpg,,,,failed,")
    assert result.stderr == "Error: photos/broken.jpg: none of 1 images can be read; the reasons are in stdout\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sidecar", ".txt"], "--sidecar needs a table that stays: name a file as --output, not -"),
        (["--tars", "out"], "--tars needs a table that stays"),
        (["--embed-metadata"], "--embed-metadata needs a table that stays"),
        (["--format", "parquet"], "--output - writes CSV or JSON lines"),
    ],
)
def test_what_needs_a_table_that_stays_is_refused_with_stdout(options: list[str], message: str) -> None:
    result = run("caption", ".", "--model", "m", "--output", "-", *options, code=2)
    assert message in result.stderr


def test_tasks_of_an_array_job_fill_one_cache_and_the_run_without_a_shard_writes_the_table(here: Path) -> None:
    caption("photos", "--output", "whole.csv")
    outputs = [caption("photos", "--output", "t.csv", "--shard", f"{index}/2").stdout for index in (2, 1)]
    assert [line.split(";")[0] for line in outputs] == [
        "t.features.h5: 5 images found: 0 cached before, 5 extracted, 0 failed",
        "t.features.h5: 4 images found: 0 cached before, 3 extracted, 1 failed",
    ]
    again = json.loads(caption("photos", "--output", "t.csv", "--shard", "2/2", "--log-format", "json").stdout)
    assert (again["output"], again["cached"], again["extracted"]) == ("t.features.h5", 5, 0)
    assert not Path("t.csv").exists()
    Path("photos/broken.jpg").unlink()
    last = caption("photos", "--output", "t.csv").stdout
    assert last.startswith("t.csv: 8 images found: 8 captioned (8 from cached features), 0 failed")
    rows = [row for row in read_captions("whole.csv") if row.status == "ok"]
    assert list(read_captions("t.csv")) == rows
    assert not Path("t.features.h5.parts").exists()  # joined, though nothing was missing
    assert FeatureStore.open("t.features.h5").verify() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "t.csv", "--shard", "1/2", "--dry-run"], "--shard fills the cache of a table"),
        (["--output", "t.csv", "--shard", "1/2", "--overwrite"], "--shard fills the cache of a table"),
        (["--output", "-", "--shard", "1/2"], "--shard fills the cache of a table"),
        (["--output", "-", "--cluster", "dask://127.0.0.1:1"], "name --features"),
    ],
)
def test_a_shard_or_a_cluster_without_a_lasting_place_is_refused(
    arguments: list[str], message: str, here: Path
) -> None:
    assert message in caption("photos", *arguments, code=2).stderr


def test_strict_ends_with_1_when_all_is_written(here: Path) -> None:
    result = caption("photos", "--output", "t.csv", "--strict", "--sidecar", ".txt", code=1)
    assert result.stderr.endswith("Error: 1 image cannot be read, and --strict is given\n")
    assert len([*Path("photos").rglob("*.txt")]) == 8
    Path("photos/broken.jpg").unlink()
    caption("photos", "--output", "t.csv", "--strict", "--sidecar", ".txt")


def test_a_dry_run_shows_what_would_be_done_and_changes_nothing(here: Path) -> None:
    arguments = ["photos", "--output", "t.csv", "--sidecar", ".txt"]
    planned = caption(*arguments, "--dry-run").stdout
    assert planned == (
        "t.csv: 9 images found: 9 would be read; 0 would be skipped, as their features are cached\n"
        "9 captions would be made, 0 rows as before\ntime: not known yet\n"
    )
    assert sorted(path.name for path in here.iterdir()) == ["model", "photos"]
    caption(*arguments)
    Image.new("RGB", (9, 9)).save("photos/new.png")
    Image.new("RGB", (9, 9)).save("photos/red_0.png")
    Path("photos/blue_2.txt").write_text("a wall")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    lines = caption(*arguments, "--dry-run").stdout.splitlines()
    assert lines[0] == (
        "t.csv: 10 images found: 3 would be read, 1 of them again (changed or damaged), 1 of them failed before; "
        "7 would be skipped, as their features are cached"
    )
    assert lines[1:3] == [
        "2 captions would be made, 8 rows as before",
        "1 caption of a person would stay, 1 of them new",
    ]
    assert lines[3].startswith("time: about ")
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    done = caption(*arguments).stdout
    assert "10 images found: 9 captioned (7 from cached features, 8 rows as before), 1 failed" in done
    assert "cannot be used" not in run("extract", "photos", "--output", "t.features.h5", "--dry-run", code=1).stderr
    refused = caption("photos", "--output", "t.csv", "--sidecar", ".JPG", "--dry-run", code=1).stderr
    assert "must be the suffix of a text file" in refused


def test_a_dry_run_of_an_extraction_counts_rows_without_an_image(here: Path) -> None:
    run("extract", "photos", "--output", "f.h5", *THIN)
    Path("photos/red_0.png").unlink()
    lines = run("extract", "photos", "--output", "f.h5", *THIN, "--dry-run").stdout.splitlines()
    assert lines[0] == (
        "f.h5: 8 images found: 1 would be read, 1 of them failed before; 7 would be skipped, as their features are "
        "cached"
    )
    assert lines[1] == "no image is found for 1 row of the store"
    other = run("extract", "photos", "--output", "f.h5", *THIN[:-4], "--image-size", "64", "--dry-run", code=1).stderr
    assert "image_size: 32, not 64" in other
    lines = run("extract", "photos", "--output", "f.h5", *THIN, "--dry-run", "--overwrite").stdout.splitlines()
    assert "8 would be read" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (["extract", ".", "--output", "f.h5", "--prun"], ""),
        (["extract", ".", "--output", "f.h5", "--overwrit"], ""),
        (["extract", ".", "--outptu", "f.h5"], " Did you mean '--output'?"),
        (["caption", ".", "--redo-correcte"], ""),
        (["caption", ".", "--in-plac"], ""),
        (["caption", ".", "--prune"], ""),
        (["train", "f.h5", "--restar"], ""),
        (["features", "merge", "f.h5", "--overwrte"], ""),
    ],
)
def test_no_suggestion_removes_anything(arguments: list[str], suggested: str) -> None:
    lines = run(*arguments, code=2).stderr.splitlines()
    name = next(word for word in reversed(arguments) if word.startswith("--"))
    assert lines[-1].startswith(f"Error: No such option '{name}'.{suggested}")
    for removing in ("--prune", "--overwrite", "--redo-corrected", "--in-place", "--restart"):
        assert f"mean '{removing}" not in lines[-1]
        assert f", '{removing}" not in lines[-1]


def test_a_suffix_that_contradicts_the_format_is_refused(here: Path) -> None:
    for output, wanted in (("t.jsonl", "csv"), ("t.CSV", "jsonl"), ("t.parquet", "csv"), ("t.xlsx", "csv")):
        result = caption("photos", "--output", output, "--format", wanted, code=1)
        suffix = Path(output).suffix
        assert result.stderr == f"Error: {output}: --format is {wanted}, so it must not end in {suffix}; rename it\n"
    caption("photos/red_0.png", "--output", "t.json", "--format", "jsonl")
    assert Path("t.json").read_text()[:9] == '{"path": '
