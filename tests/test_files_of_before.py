"""Files that the version before this house wrote (files_of_before/README.md): the code of now opens and keeps them.

What is read from a file is compared exactly. What is computed from it is compared word for word, or within what
another processor's order of additions changes.
"""

import csv
import hashlib
import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import TESTS, make_rows
from click.testing import CliRunner, Result

from captionmill.cli import main
from captionmill.data.features.log import read_records
from captionmill.data.features.parts import part_paths
from captionmill.data.features.store import FeatureStore
from captionmill.data.images.formats.kinds import FORMATS
from captionmill.data.models.bundle import read_bundle
from captionmill.data.tables.formats import read_captions

NETWORK = ["--backbone", "scenes-resnet14", "--image-size", "64"]
ON_CPU = ["--device", "cpu", "--engine", "torch", "--precision", "fp32"]
TRAINING = ["--min-count=1", "--embed-dim=8", "--hidden-dim=12", "--dropout=0.1", "--feature-dropout=0.1"]
TRAINING += ["--label-smoothing=0", "--batch-size=3", "--learning-rate=0.03", "--max-epochs=24", "--patience=24"]
TRAINING += ["--max-length=6", "--beam-size=2", "--device=cpu"]
TABLES = {"captions.csv": [], "captions.jsonl": ["--alternatives", "2"], "captions.parquet": []}


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy of the files, whose times are those of the copying, as in a checkout."""
    return shutil.copytree(TESTS / "files_of_before", tmp_path / "before", copy_function=shutil.copyfile)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def content_of(folder: Path, but: str = ".lock") -> dict[Path, bytes]:
    """All files below `folder`, but for locks and folders whose names end in `but`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    paths = [path for path in paths if not path.parent.name.endswith(but)]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def caption_rows(before: Path, table: str, *options: str) -> Result:
    """Caption the rows of the training's store into one of the tables."""
    arguments = ["--model", before / "training/whole", "--output", before / "tables" / table]
    store_path = before / "training/features.h5"
    return run("caption", store_path, *arguments, "--low-confidence", "0.5", "--device", "cpu", *options)


def as_before(text: str) -> str:
    """A reason as the version before gave it, which read fewer formats."""
    return text.replace(FORMATS, "JPEG, PNG, WebP, BMP, GIF and TIFF")


def assert_same_captions(path: Path, other: Path) -> None:
    """Whether two tables have the same rows, word for word; confidences to three digits."""
    rows, others = list(read_captions(path)), list(read_captions(other))
    assert [replace(row, confidence=None, error=as_before(row.error)) for row in rows] == [
        replace(row, confidence=None) for row in others
    ]
    confidences = [[row.confidence or 0.0 for row in table] for table in (rows, others)]
    assert confidences[0] == pytest.approx(confidences[1], abs=0.001)


def test_a_store_has_the_rows_that_were_written(before: Path) -> None:
    store = FeatureStore.open(before / "training/features.h5")
    assert store.keys == [f"{number:02d}.jpg" for number in range(10)]
    expected = make_rows(10)
    expected[8:] = expected[:2] + np.float32(0.01)
    np.testing.assert_array_equal(store.read(np.arange(10)), expected)
    assert store.verify() == []


def test_a_store_has_the_content_that_was_recorded(before: Path) -> None:
    records = json.loads((before / "pipeline/pipeline.made.json").read_text(encoding="utf-8"))["outputs"]
    store = FeatureStore.open(before / "pipeline/features.h5")
    assert store.digest().hex() == records["features.h5"]["made"]["content"]
    assert (len(store), store.dtype, store.spec.backbone, store.verify()) == (12, "float16", "scenes-resnet14", [])
    image, source = (before / "pipeline/photos/more/green_01.png").read_bytes(), store.source("more/green_01.png")
    assert (source.size, source.modified_ns) == (102, 1795897070539110751)
    assert source.content_hash == int.from_bytes(hashlib.sha256(image).digest()[:8], "little")


def test_a_killed_extraction_is_verified_and_resumed(before: Path) -> None:
    store_path = before / "store/features.h5"
    whole = FeatureStore.open(before / "pipeline/features.h5")
    left = FeatureStore.open(store_path)
    assert (len(left), len(part_paths(store_path))) == (5, 2)
    assert left.verify() == []
    kept = {key: left[key] for key in left.keys}
    assert run("features", "verify", store_path).output == f"{store_path}: 5 rows, all intact\n"
    images = before / "pipeline/photos"
    result = run("extract", images, "--output", store_path, *NETWORK, *ON_CPU, "--quiet")
    assert result.stdout.startswith(f"{store_path}: 13 images found: 5 cached before, 7 extracted, 1 failed; ")
    resumed = FeatureStore.open(store_path)
    assert (resumed.keys, part_paths(store_path)) == (whole.keys, [])
    for key, row in kept.items():
        np.testing.assert_array_equal(resumed[key], row)
    np.testing.assert_allclose(resumed.read(np.arange(12)), whole.read(np.arange(12)), rtol=0.01, atol=0.01)
    assert as_before((before / "store/failures.csv").read_text()) == (before / "pipeline/failures.csv").read_text()
    assert [record.extracted for record in read_records(store_path)] == [3, 7]


def test_a_pipeline_is_up_to_date_and_runs_nothing(before: Path) -> None:
    pipeline = before / "pipeline/pipeline.toml"
    assert run("status", pipeline).output.count("\n    up to date\n") == 4
    outputs = content_of(before / "pipeline")
    result = run("run", pipeline, "--quiet")
    names = ("features.h5", "model", "scores.json", "captions.csv")
    assert [f"{pipeline.parent / name}: up to date" for name in names] == result.stdout.splitlines()[:4]
    after = content_of(before / "pipeline")
    changed = {path.as_posix() for path in after if after[path] != outputs.get(path)}
    assert changed <= {"pipeline.made.json", "report.html"}  # the times of copied files, and the page that was left out
    assert outputs.keys() <= after.keys()


def test_a_model_says_the_captions_that_it_said(before: Path) -> None:
    folder = before / "pipeline"
    arguments = ["--model", folder / "model", "--output", before / "again.csv"]
    run("caption", folder / "new", *arguments, "--low-confidence", "0.33", *ON_CPU)
    assert_same_captions(before / "again.csv", folder / "captions.csv")
    captions = [(row.path, row.caption) for row in read_captions(before / "again.csv")]
    assert captions == [("=blue.png", "a blue wall"), ("broken.jpg", ""), ("ünlike red.png", "a red wall")]


def test_a_model_scores_as_it_scored(before: Path) -> None:
    folder = before / "pipeline"
    arguments = [
        "--model",
        folder / "model",
        "--captions",
        folder / "references.csv",
        "--output",
        before / "again.json",
    ]
    run("evaluate", folder / "features.h5", *arguments, "--device", "cpu")
    again = json.loads((before / "again.json").read_text(encoding="utf-8"))
    made = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    confidences = [[caption.pop("confidence") for caption in scores["captions"].values()] for scores in (again, made)]
    assert again["search"].pop("repeat_words") is False
    assert again["search"].pop("rerank") == "none"  # models of then have nothing to re-rank by
    del again["search"]["candidates"]
    confidences[0].append(again.pop("mean_confidence"))
    confidences[1].append(made.pop("mean_confidence"))
    assert confidences[0] == pytest.approx(confidences[1], abs=1e-4)
    assert again == made


def test_a_killed_training_ends_as_the_one_that_nobody_stopped(before: Path) -> None:
    folder = before / "training"
    arguments = ["--captions", folder / "captions.csv", "--output", folder / "killed", *TRAINING]
    result = run("train", folder / "features.h5", *arguments)
    assert "epochs done: 9" in result.stderr
    assert not (folder / "killed.training").exists()
    resumed, whole = read_bundle(folder / "killed"), read_bundle(folder / "whole")
    assert (resumed.vocabulary.word_rule, whole.vocabulary.word_rule) == (1, 1)
    assert (resumed.scores["epoch"], resumed.vocabulary.words) == (19, whole.vocabulary.words)
    assert resumed.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        # another CPU rounds otherwise, and ten epochs of a high learning rate make that larger
        np.testing.assert_allclose(resumed.tensors[name], tensor, rtol=0, atol=0.05, err_msg=name)
    history = [pd.read_csv(folder / name / "history.csv") for name in ("killed", "whole")]
    exact, rounded = ["epoch", "phase", "best"], ["loss", "val_cider", "learning_rate"]
    pd.testing.assert_frame_equal(history[0][exact], history[1][exact])
    pd.testing.assert_frame_equal(history[0][rounded], history[1][rounded], rtol=1e-2)
    assert read_csv(folder / "killed/samples.csv") == read_csv(folder / "whole/samples.csv")


@pytest.mark.parametrize(("table", "options"), TABLES.items())
def test_the_rows_of_a_table_are_kept(before: Path, table: str, options: list[str]) -> None:
    tables = content_of(before / "tables", but=".made")
    result = caption_rows(before, table, *options)
    counts = "10 images found: 10 captioned (10 from cached features, 10 rows as before), 0 failed"
    assert result.stdout.startswith(f"{before / 'tables' / table}: {counts}; ")
    assert content_of(before / "tables", but=".made") == tables
    made = before / "tables" / f".{table}.made"
    assert [path.name for path in made.iterdir() if path.name != ".lock"] == ["journal.jsonl"]


@pytest.mark.parametrize(("table", "options"), TABLES.items())
def test_a_table_is_made_again_as_it_was(before: Path, table: str, options: list[str]) -> None:
    path = before / "tables" / table
    made = path.rename(path.with_name(f"made-{table}"))
    result = caption_rows(before, table, "--repeat-words", *options)
    assert result.stdout.startswith(f"{path}: 10 images found: 10 captioned (10 from cached features), 0 failed; ")
    assert_same_captions(path, made)


def test_only_the_rows_of_a_table_in_which_a_word_follows_itself_are_made_again(before: Path) -> None:
    path, made = before / "tables/captions.csv", before / "tables/.captions.csv.made/rows"
    kept = path.read_bytes()
    first, row, *others = kept.splitlines(keepends=True)
    repeating = row.replace(b",a ", b",a a ", 1)
    path.write_bytes(b"".join((first, repeating, *others)))
    written, wrong = (struct.pack("<II", len(line), zlib.crc32(line)) for line in (row, repeating))
    made.write_bytes(made.read_bytes().replace(written, wrong))
    result = caption_rows(before, "captions.csv")
    counts = "10 images found: 10 captioned (10 from cached features, 9 rows as before), 0 failed"
    assert result.stdout.startswith(f"{path}: {counts}; ")
    assert path.read_bytes() == kept


def test_only_outputs_of_a_pipeline_in_which_a_word_follows_itself_are_outdated(before: Path) -> None:
    folder = before / "pipeline"
    records = json.loads((folder / "pipeline.made.json").read_text(encoding="utf-8"))
    for name in ("scores.json", "captions.csv"):
        text = (folder / name).read_text(encoding="utf-8").replace("a blue wall", "a blue blue wall")
        (folder / name).write_text(text, encoding="utf-8")
        records["outputs"][name]["made"]["content"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "pipeline.made.json").write_text(json.dumps(records), encoding="utf-8")
    output = run("status", folder / "pipeline.toml").output
    assert output.count("\n    up to date\n") == 2
    assert output.count("\n    would run: repeat_words was true, is false\n") == 2


def test_a_caption_that_was_edited_by_hand_stays_until_it_is_given_up(before: Path) -> None:
    tables = before / "tables"
    edited = (tables / "edited.csv").read_bytes()
    result = caption_rows(before, "edited.csv")
    assert f"{tables / 'edited.csv'}: has more changes than corrected captions; " in result.stderr
    assert result.stderr.endswith(" is kept as edited.edited.csv\n")
    assert (tables / "edited.edited.csv").read_bytes() == edited
    assert {row.path: row.caption for row in read_captions(tables / "edited.csv") if row.status == "corrected"} == {
        "01.jpg": "a caption by hand"
    }
    result = caption_rows(before, "edited.csv", "--redo-corrected")
    assert_same_captions(tables / "edited.csv", tables / "captions.csv")
