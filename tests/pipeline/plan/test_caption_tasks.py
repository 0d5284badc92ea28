"""The [caption] table of a pipeline: its table, what is written beside it, and when it is run again."""

import os
from pathlib import Path

import pytest
from builders import draw_photos, make_model
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.errors import PipelineError
from captionmill.data.models.bundle import LOW_CONFIDENCE
from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.plan.fingerprints import take_fingerprint
from captionmill.pipeline.plan.run import run_pipeline
from captionmill.pipeline.plan.standing import survey
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.settings import ExtractConfig

PLAN = """
[caption]
images = "new"
model = "./model"
beam_size = 1
max_length = 5
engine = "torch"
"""


@pytest.fixture
def plan_path(tmp_path: Path, thin_weights: Path) -> Path:
    """A folder with a model, new photos and a pipeline.toml that captions them."""
    config = ExtractConfig("scenes-resnet14", str(thin_weights), "squash", image_size=32, engine="torch")
    make_model(tmp_path / "model", build_encoder(config).spec, scores={LOW_CONFIDENCE: 0.5})
    draw_photos(tmp_path / "new")
    path = tmp_path / "pipeline.toml"
    path.write_text(PLAN)
    return path


def reasons(plan_path: Path) -> tuple[str, ...]:
    (standing,) = survey(plan_path)[1]
    return standing.reasons


def flagged(table: Path) -> int:
    return sum("low-confidence" in row.flags for row in read_captions(table))


def test_format_sidecars_and_low_confidence_are_those_of_the_command(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plan_path.parent
    monkeypatch.chdir(folder)
    plan_path.write_text(PLAN + 'format = "jsonl"\nsidecar = ".txt"\nlow_confidence = 1.0\n')
    told = CliRunner().invoke(main, ["run", "pipeline.toml"], catch_exceptions=False)
    command = "caption new --model model --output captions.jsonl --format jsonl --sidecar .txt --low-confidence 1.0"
    assert f"$ captionmill {command} --beam-size 1 --max-length 5 --engine torch" in told.stderr
    assert "8 sidecars written\n" in told.stdout
    rows = list(read_captions(folder / "captions.jsonl"))
    assert (len(rows), flagged(folder / "captions.jsonl")) == (9, 8)
    beside = {path.relative_to(folder / "new").as_posix(): path.read_text() for path in folder.rglob("new/**/*.txt")}
    assert beside == {str(Path(row.path).with_suffix(".txt")): f"{row.caption}\n" for row in rows if row.status == "ok"}
    assert reasons(plan_path) == ()


def test_another_low_confidence_or_format_makes_the_table_anew(plan_path: Path) -> None:
    table = plan_path.with_name("captions")
    plan = PLAN + 'output = "captions"\n'
    plan_path.write_text(plan)
    run_pipeline(plan_path)
    plan_path.write_text(plan + "low_confidence = 1.0\n")
    assert reasons(plan_path) == ("low_confidence was not set, is 1.0",)
    run_pipeline(plan_path)
    assert flagged(table) == 8
    plan_path.write_text(plan + 'low_confidence = 1.0\nformat = "jsonl"\n')
    assert reasons(plan_path) == ('format was "csv", is "jsonl"',)
    run_pipeline(plan_path)
    assert table.read_bytes().startswith(b'{"path"')
    assert reasons(plan_path) == ()


def test_files_for_other_programs_are_made_again_when_they_or_their_words_change(plan_path: Path) -> None:
    folder = plan_path.parent
    plan_path.write_text(PLAN + 'metadata_jsonl = "new/metadata.jsonl"\nprefix = "photo of "\n')
    run_pipeline(plan_path)
    assert '"text": "photo of ' in (folder / "new" / "metadata.jsonl").read_text()
    assert reasons(plan_path) == ()
    (folder / "new" / "metadata.jsonl").unlink()
    assert reasons(plan_path) == ("metadata.jsonl is not there",)
    plan_path.write_text(PLAN + 'metadata_jsonl = "new/metadata.jsonl"\n')
    assert reasons(plan_path) == ('prefix was "photo of ", is ""',)
    plan_path.write_text(PLAN + 'caption_template = "photo"\n')
    with pytest.raises(PipelineError, match="`caption_template` must hold"):
        survey(plan_path)


def test_a_table_with_the_name_of_something_else_is_made_once_if_its_format_is_set(plan_path: Path) -> None:
    plan_path.write_text(PLAN + 'output = "captions.json"\nformat = "jsonl"\n')
    run_pipeline(plan_path)
    assert [standing.text for standing in survey(plan_path)[1]][-1] == "up to date"


def test_a_run_keeps_the_captions_that_a_person_corrected(plan_path: Path) -> None:
    table = plan_path.with_name("captions.csv")
    run_pipeline(plan_path)
    first = next(row for row in read_captions(table) if row.caption)
    table.write_bytes(
        table.read_bytes().replace(f"{first.path},{first.caption},".encode(), f"{first.path},mended,".encode())
    )
    assert reasons(plan_path) == ("captions.csv was changed since",)
    run_pipeline(plan_path)
    assert {row.path: row.caption for row in read_captions(table) if row.status == "corrected"} == {
        first.path: "mended"
    }
    assert reasons(plan_path) == ()
    assert list(table.parent.glob("captions.edited*")) == []


def test_a_run_takes_a_sidecar_that_somebody_changed_for_a_correction(plan_path: Path) -> None:
    plan_path.write_text(PLAN + 'sidecar = ".txt"\n')
    run_pipeline(plan_path)
    sidecar = plan_path.parent / "new" / "red_0.txt"
    sidecar.write_text("my own\n")
    plan_path.write_text(PLAN + 'sidecar = ".txt"\nmin_length = 3\n')
    run_pipeline(plan_path)
    assert sidecar.read_text() == "my own\n"
    rows = {row.path: row for row in read_captions(plan_path.with_name("captions.csv"))}
    assert rows["red_0.png"] == CaptionRow("red_0.png", "my own", None, status="corrected")


def test_a_gallery_or_sidecars_that_were_deleted_are_made_again(plan_path: Path) -> None:
    folder = plan_path.parent
    plan_path.write_text(PLAN + 'sidecar = ".txt"\ngallery = "page.html"\n')
    run_pipeline(plan_path)
    made = {path: path.read_bytes() for path in [folder / "page.html", *sorted((folder / "new").rglob("*.txt"))]}
    assert reasons(plan_path) == ()
    (folder / "page.html").unlink()
    assert reasons(plan_path) == ("page.html is not there",)
    run_pipeline(plan_path)
    for path in [*made][1:3]:
        path.unlink()
    assert reasons(plan_path) == ("2 sidecars are not there",)
    (outcome,) = run_pipeline(plan_path)
    assert outcome.text.splitlines()[-1] == "2 sidecars written, 6 were there already"
    assert {path: path.read_bytes() for path in made} == made
    assert reasons(plan_path) == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_as_an_input_is_refused_before_anything_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "captions")
    with pytest.raises(PipelineError, match="captions: is a pipe or device, and a pipeline reads its inputs more than"):
        take_fingerprint(tmp_path / "captions")
