"""The demo, small: every file it promises, and a gallery with every held-out image."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.errors import InputError
from captionmill.pipeline.demo.demo import run_demo
from captionmill.pipeline.demo.scene_captions import describes
from captionmill.pipeline.demo.scenes import draw_samples
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.encoding.weights import SCENES_WEIGHTS_PATH
from captionmill.stages.settings import ExtractConfig


def test_a_small_demo_leaves_pictures_captions_scores_a_page_and_its_plan(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    commands: list[str] = []
    summary = run_demo(
        folder, image_count=120, held_out_count=12, epochs=2, on_stage=lambda stage, command: commands.append(command)
    )
    assert [command.split()[1] for command in commands] == ["extract", "train", "evaluate", "caption"]
    assert len(list((folder / "pictures").rglob("*.*"))) == 120
    with (folder / "captions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["status"] for row in rows} == {"ok"}
    scenes = draw_samples(tmp_path / "again", 12, seed=20261123, name="new_scene")
    assert summary.right_count == sum(describes(row["caption"], scenes[row["path"]]) for row in rows)
    page = (folder / "page.html").read_text(encoding="utf-8")
    shown = json.loads(page.split('id="rows">')[1].split("</script>")[0])
    right = {row["path"]: describes(row["caption"], scenes[row["path"]]) for row in rows}
    assert [row[:2] for row in shown] == [[row["path"], row["caption"]] for row in rows]
    assert {row[0]: row[7] for row in shown} == right
    assert all(thing.colour in row[8] for row in shown for thing in scenes[row[0]].objects)
    assert len(page.split('id="thumbnails-0">')[1].split("</script>")[0].split()) == 12
    wrong_count = 12 - summary.right_count
    assert (f"<b>{wrong_count}</b> wrong" in page) == (wrong_count > 0)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/jpeg;base64,") == 12  # four of the best, of the median and of the worst
    assert summary.report_path == folder / "report.html"
    again = CliRunner().invoke(main, ["run", str(folder / "pipeline.toml")], catch_exceptions=False)
    assert again.stdout.count(": up to date\n") == 4
    (folder / "scores.json").unlink()
    (folder / "report.html").write_text("<p>somebody's own</p>")
    assert run_demo(folder, image_count=120, held_out_count=12, epochs=2).report_path is None


def test_the_demo_does_not_write_among_other_peoples_files(tmp_path: Path) -> None:
    (tmp_path / "pipeline.toml").write_text("[extract]\n")
    with pytest.raises(InputError, match="holds other files"):
        run_demo(tmp_path)
    assert (tmp_path / "pipeline.toml").read_text() == "[extract]\n"


def test_the_packaged_network_is_small_and_gives_2048_numbers() -> None:
    assert SCENES_WEIGHTS_PATH.stat().st_size <= 6_000_000
    spec = build_encoder(ExtractConfig("scenes-resnet14", preprocess="squash", image_size=128)).spec
    assert (spec.weights, spec.feature_dim) == ("drawn-scenes", 2048)
