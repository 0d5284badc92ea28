"""The report of a run says what its files say, says what is missing, and is one harmless file."""

import json
import re
import shutil
import tracemalloc
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser
from builders import draw_photos
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.errors import InputError
from captionmill.data.features.log import append_record, log_path, read_records
from captionmill.data.images.find import find_images
from captionmill.data.models.bundle import read_bundle
from captionmill.data.tables.formats import row_text
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.captioning.folder import caption_folder
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.pipeline.pages.run_files import ScoredCaption, read_model_files, read_scores, read_table
from captionmill.pipeline.pages.run_report import ReportSources, write_run_report
from captionmill.pipeline.pages.run_results import pick_captions, show_score
from captionmill.pipeline.summaries import SCORE_NAMES
from captionmill.stages.encoding.extract import extract
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.scoring.settings import EvaluateConfig
from captionmill.stages.settings import ExtractConfig, SearchConfig, TrainConfig
from captionmill.stages.training.train import train

PHONE_WIDTH = 375


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, thin_weights: Path) -> ReportSources:
    """A real small run: eight photos and a broken one, a model of six of them, scores of all eight."""
    folder = tmp_path_factory.mktemp("run")
    photos = draw_photos(folder / "photos")
    keys = [image.key for image in find_images(photos) if "broken" not in image.key]
    lines = [
        f"{key},a {Path(key).stem.split('_')[0]} picture,{'val' if '_6' in key or '_7' in key else 'train'}"
        for key in keys
    ]
    (folder / "references.csv").write_text("\n".join(["image,caption,split", *lines]) + "\n")
    (folder / "all.txt").write_text("\n".join(keys) + "\n")
    config = ExtractConfig("scenes-resnet14", str(thin_weights), "squash", image_size=32)
    extract(photos, folder / "features.h5", config)
    tiny = TrainConfig(
        min_count=2, embed_dim=8, hidden_dim=12, max_epochs=2, self_critical_epochs=1, batch_size=3, device="cpu"
    )
    train(folder / "features.h5", folder / "references.csv", folder / "model", tiny)
    evaluate(
        folder / "features.h5",
        folder / "model",
        folder / "references.csv",
        EvaluateConfig(search=SearchConfig(beam_size=2)),
        image_list=folder / "all.txt",
        output=folder / "scores.json",
    )
    caption_folder(photos, folder / "model", folder / "captions.csv", cache=CacheConfig(machine=config))
    return ReportSources(
        models=[folder / "model"],
        features=[folder / "features.h5"],
        scores=[folder / "scores.json"],
        tables=[folder / "captions.csv"],
        captions=[folder / "references.csv"],
    )


@dataclass
class Page(HTMLParser):
    """The words of each section, without markup, and every tag with its attributes."""

    source: str
    sections: dict[str, str] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    _section: str = "header"

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = str(dict(attrs)["id"])

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = " ".join(f"{self.sections.get(self._section, '')} {data}".split())


def report(output: Path, sources: ReportSources, **more: str) -> Page:
    write_run_report(output, sources, **more)
    return Page(output.read_text(encoding="utf-8"))


def test_a_report_names_the_models_whose_validation_was_re_ranked(run: ReportSources, tmp_path: Path) -> None:
    assert "CIDEr-D, re-ranked" not in report(tmp_path / "plain.html", run).source
    shutil.copytree(Path(run.models[0]), tmp_path / "model")
    bundle = json.loads((tmp_path / "model" / "bundle.json").read_text())
    bundle["training"]["search"]["rerank"] = "both"
    (tmp_path / "model" / "bundle.json").write_text(json.dumps(bundle))
    page = report(tmp_path / "report.html", replace(run, models=[tmp_path / "model"]))
    assert "best validation CIDEr-D, re-ranked" in page.source
    assert "model, re-ranked" in page.source


def test_the_report_says_what_the_files_say(run: ReportSources, tmp_path: Path) -> None:
    page = report(tmp_path / "report.html", run)
    assert page.sections["images"].count("found 9 cached before 0 extracted 8 failed 1") == 2
    assert "rows in the store 8" in page.sections["images"]
    assert "captioned 8" in page.sections["images"]
    assert "broken.jpg" in page.sections["images"]
    assert "trained on 6 chosen by 2" in page.sections["images"]

    (record,) = read_records(Path(run.features[0]))
    assert f"8 images in {record.duration_s:.1f} s; {record.engine}" in page.sections["speed"]
    assert f"forward {100 * record.forward:.1f} %" in page.sections["speed"]
    assert record.duration_s < 60
    assert record.advice
    assert record.advice not in page.sections["speed"]  # a few images need no advice
    assert "captions.csv, words" in page.sections["speed"]
    assert "not recorded" not in page.sections["speed"]

    history = read_model_files(Path(run.models[0])).history
    assert [epoch.phase for epoch in history] == ["cross entropy", "cross entropy", "self-critical"]
    for epoch in history:
        assert f"model, epoch {epoch.epoch}: {epoch.loss:.3f}" in page.sections["training"]
        assert f"model, epoch {epoch.epoch}: {epoch.val_cider:.3f}" in page.sections["training"]
    assert page.sections["training"].count(", kept") == 1

    values = json.loads(Path(run.scores[0]).read_text())
    assert len(values["scores"]) == 6
    for name, score in values["scores"].items():
        low, high = values["intervals"][name]
        value, start, end = (show_score(number, low, high) for number in (score, low, high))
        assert f"{SCORE_NAMES[name]} {value} [{start}, {end}]" in page.sections["scores"]

    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 6  # two of the best, of the median and of the worst of eight
    assert all(str(picture["src"]).startswith("data:image/jpeg;base64,") for picture in pictures)
    for picks in pick_captions(read_scores(Path(run.scores[0])).captions):
        for caption in picks.captions:
            assert caption.cider_d is not None
            assert caption.confidence is not None
            facts = f"{caption.key} CIDEr-D {caption.cider_d:.2f}, confidence {caption.confidence:.2f}"
            assert f"{' '.join(caption.references)} {facts}" in page.sections["captions"]

    confidences = sorted(entry["confidence"] for entry in values["captions"].values())
    assert f"{confidences[0]:.2f} to {confidences[1]:.2f}" in page.sections["confidence"]
    # six training captions "a COLOUR picture": a, picture and two colours occur twice, two more once
    assert "words 4 minimum count 2 training words 18, of which 88.9 % are in it" in page.sections["vocabulary"]
    assert "different words 6, of which 4 are in it" in page.sections["vocabulary"]
    assert "<unk> in references 16.7 % of the words" in page.sections["vocabulary"]
    assert "hidden_dim 12 512" in page.sections["settings"]
    assert page.sections["settings"].count("teacher none none") == 1  # among all settings, not among those that differ
    assert page.sections["settings"].count("max_epochs 2 —") == 1  # no default: of one model never a difference
    assert "beam_size 2 5" in page.sections["settings"]
    assert read_bundle(Path(run.models[0])).versions["torch"] in page.sections["settings"]


def test_of_a_long_table_only_the_failures_are_kept(tmp_path: Path) -> None:
    text = row_text("csv", with_alternatives=False)
    failed = CaptionRow("00000.jpg", "", None, status="failed", error="not an image")
    rows = [failed, *(CaptionRow(f"{number:05d}.jpg", "a dog runs", 0.5) for number in range(1, 20_000))]
    (tmp_path / "c.csv").write_bytes(text.header + b"".join(map(text.encode, rows)))
    del rows
    tracemalloc.start()
    files = read_table(tmp_path / "c.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (files.found, files.captioned, files.failures) == (20_000, 19_999, (("00000.jpg", "not an image"),))
    assert peak < 1_000_000  # the rows together take 7 MB


def test_scores_that_do_not_count_the_missing_training_images_are_shown(run: ReportSources, tmp_path: Path) -> None:
    values = json.loads(Path(run.scores[0]).read_text())
    values["caption_statistics"] |= {"copied": 0.25}
    del values["caption_statistics"]["training_images_missing"]
    (tmp_path / "scores.json").write_text(json.dumps(values))
    page = report(tmp_path / "report.html", ReportSources(run.models, run.features, [tmp_path / "scores.json"]))
    shown = " ".join(page.sections.values())
    assert re.search(r"copied from training 25(\.0)? ?%(?! or more)", shown), shown


def test_what_was_not_recorded_or_not_named_is_said_to_be_missing(run: ReportSources, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(Path(run.features[0]).parent, tmp_path / "run"))
    log_path(folder / "features.h5").unlink()
    (folder / "failures.csv").unlink()
    (folder / "model" / "history.csv").unlink()
    values = json.loads((folder / "scores.json").read_text())
    for entry in values["captions"].values():
        del entry["confidence"], entry["cider_d"]
    del values["caption_statistics"]
    (folder / "scores.json").write_text(json.dumps(values))
    sources = ReportSources([folder / "model"], [folder / "features.h5"], [folder / "scores.json"])
    page = report(tmp_path / "report.html", sources)
    recorded = "found not recorded cached before not recorded extracted not recorded failed not recorded"
    assert f"{recorded} rows in the store 8" in page.sections["images"]
    assert page.sections["speed"].count("not recorded") == 2
    assert "there is no history.csv" in page.sections["training"]
    assert "CIDEr-D of each caption is not recorded" in page.sections["captions"]
    assert "are not recorded in the scores" in page.sections["confidence"]
    assert "training captions not given" in page.sections["vocabulary"]

    (folder / "model" / "history.csv").write_text(
        "epoch,phase,loss,val_cider,captions_per_s,duration_s\n1,cross entropy,nan,0.25,100,2\n"
    )
    page = report(tmp_path / "report.html", ReportSources([folder / "model"]))
    assert "0.250" in page.sections["training"]  # a loss that is no number is left out of its chart
    assert "Training loss" not in page.sections["training"]

    page = report(tmp_path / "report.html", ReportSources(tables=[folder / "captions.csv"]))
    assert "captioned 8" in page.sections["images"]
    assert page.sections["training"] == "Training No model was named."
    assert page.sections["scores"].startswith("Scores No scores were named")
    assert page.sections["captions"].endswith("No scores were named.")


def test_images_that_are_missing_are_named_and_end_nothing(run: ReportSources, tmp_path: Path) -> None:
    page = report(tmp_path / "report.html", ReportSources(scores=run.scores, images=[tmp_path / "gone"]))
    assert "img" not in {tag for tag, _ in page.tags}
    assert page.sections["captions"].count(f"no image: {tmp_path / 'gone'}") == 6
    (tmp_path / "empty").mkdir()
    for key in json.loads(Path(run.scores[0]).read_text())["captions"]:
        picture = tmp_path / "empty" / key
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(b"no picture any more")
    page = report(tmp_path / "report.html", ReportSources(scores=run.scores, images=[tmp_path / "empty"]))
    assert page.sections["captions"].count("no image: not an image") == 6


def test_several_models_and_scores_stand_side_by_side(run: ReportSources, tmp_path: Path) -> None:
    other = Path(shutil.copytree(Path(run.models[0]), tmp_path / "other"))
    evaluate(
        Path(run.features[0]),
        other,
        run.captions[0],
        image_list=Path(run.features[0]).with_name("all.txt"),
        output=tmp_path / "other.json",
        against=Path(run.models[0]),
    )
    sources = ReportSources([*run.models, other], run.features, [*run.scores, tmp_path / "other.json"])
    page = report(tmp_path / "report.html", sources, title="two models")
    assert page.sections["header"].count("two models") == 2
    assert "BLEU-1" in page.sections["scores"]
    assert "model other model other minus model BLEU-1" in page.sections["scores"]
    assert "+0.0000" in page.sections["scores"]
    kinds = [str(attributes.get("class")) for tag, attributes in page.tags if tag == "polyline"]
    assert kinds[:6] == ["line c0", "line c1"] * 3
    assert "train model other default" in page.sections["settings"]


def test_what_comes_from_files_cannot_add_markup(run: ReportSources, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=https://example.org/x.png>&amp;\"'"
    values = json.loads(Path(run.scores[0]).read_text())
    entry = next(iter(values["captions"].values()))
    values["captions"] = {evil: entry | {"caption": evil, "references": [evil]}}
    values |= {"model": evil, "images_chosen_by": evil, "left_out": [evil]}
    (tmp_path / "scores.json").write_text(json.dumps(values))
    (tmp_path / "captions.csv").write_text(
        f'path,caption,confidence,status,error\n"{evil.replace(chr(34), "")}",,,failed,<b>why</b>\n'
    )
    sources = ReportSources(scores=[tmp_path / "scores.json"], tables=[tmp_path / "captions.csv"])
    page = report(tmp_path / "report.html", sources, title=evil)
    assert page.sections["header"].count(evil) == 2
    assert page.sections["captions"].count(evil) == 3
    assert "<b>why</b>" in page.sections["images"]
    assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert [attributes for tag, attributes in page.tags if tag == "link"] == [{"rel": "icon", "href": "data:,"}]


def test_the_page_asks_for_nothing_else(run: ReportSources, tmp_path: Path) -> None:
    page = report(tmp_path / "report.html", run)
    named = [
        str(value)
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert named
    assert all(name.startswith(("data:image/jpeg;base64,", "#")) or name == "data:," for name in named)
    assert not re.search(r"url\(|@import|javascript:", page.source)
    targets = {name.removeprefix("#") for name in named if name.startswith("#")}
    assert targets <= page.sections.keys()


@pytest.mark.parametrize("count", range(1, 16))
def test_no_caption_is_picked_twice_and_the_best_comes_first(count: int) -> None:
    captions = [ScoredCaption(f"{number:02}", "a", ("a",), 0.5, float(number)) for number in range(count)]
    picked = pick_captions(captions)
    worth = [[caption.cider_d for caption in picks.captions] for picks in picked]
    flat = [score for scores in worth for score in scores]
    assert len(flat) == len(set(flat))
    assert worth[0][0] == count - 1
    if count > 1:
        assert worth[-1][0] == 0
        assert picked[-1].name == "Worst"
    if count == 15:
        assert worth == [[14, 13, 12, 11], [9, 8, 7, 6], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(0.43, 0.61, "0.52"), (0.51, 0.53, "0.519"), (0.5192, 0.5195, "0.5193")]
)
def test_a_score_has_the_decimals_that_its_interval_leaves_meaning_to(low: float, high: float, shown: str) -> None:
    assert show_score(0.51934, low, high) == shown
    assert show_score(0.51934, low, high, signed=True) == f"+{shown}"


def test_an_extraction_that_took_a_minute_is_given_advice(run: ReportSources, tmp_path: Path) -> None:
    shutil.copy2(Path(run.features[0]), tmp_path / "features.h5")
    (record,) = read_records(Path(run.features[0]))
    append_record(tmp_path / "features.h5", replace(record, duration_s=60.0))
    page = report(tmp_path / "report.html", ReportSources(features=[tmp_path / "features.h5"]))
    assert f"writing {100 * record.writing:.1f} % {record.advice}" in page.sections["speed"]


def test_a_run_that_keeps_the_captions_shows_no_speed(run: ReportSources, tmp_path: Path, thin_weights: Path) -> None:
    folder = Path(shutil.copytree(Path(run.features[0]).parent, tmp_path / "run"))
    config = ExtractConfig("scenes-resnet14", str(thin_weights), "squash", image_size=32)
    table = folder / "captions.csv"
    assert caption_folder(folder / "photos", folder / "model", table, cache=CacheConfig(machine=config)).made == 0
    first, second = read_records(folder / "captions.features.h5")
    assert (first.captioned, second.captioned, second.captioning_s) == (8, 8, None)
    assert first.captioning_s
    page = report(tmp_path / "report.html", ReportSources(tables=[table]))
    assert f"captions.csv, words {8 / first.captioning_s:,.0f} images/s 8 images" in page.sections["speed"]


def test_a_second_extraction_adds_a_row_to_the_log(run: ReportSources, tmp_path: Path, thin_weights: Path) -> None:
    folder = Path(shutil.copytree(Path(run.features[0]).parent, tmp_path / "run"))
    config = ExtractConfig("scenes-resnet14", str(thin_weights), "squash", image_size=32)
    extract(folder / "photos", folder / "features.h5", config)
    assert [(row.found, row.cached, row.extracted) for row in read_records(folder / "features.h5")][1] == (9, 8, 0)
    page = report(tmp_path / "report.html", ReportSources(features=[folder / "features.h5"]))
    assert "found 9 cached before 8 extracted 0 failed 1" in page.sections["images"]
    assert "8 images in" in page.sections["speed"]  # of the run that did something


def test_the_command_writes_the_page_and_refuses_what_is_no_run(run: ReportSources, tmp_path: Path) -> None:
    words = [str(run.models[0]), "--features", str(run.features[0]), "--scores", str(run.scores[0])]
    done = CliRunner().invoke(main, ["report", *words, "--output", str(tmp_path / "r.html")], catch_exceptions=False)
    size = (tmp_path / "r.html").stat().st_size / 1000
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'r.html'}: {size:,.0f} kB\n")
    assert "<h1>model</h1>" in (tmp_path / "r.html").read_text()

    done = CliRunner().invoke(main, ["report", "--output", str(tmp_path / "none.html")])
    assert (done.exit_code, (tmp_path / "none.html").exists()) == (1, False)
    assert done.stderr.startswith("Error: nothing to report")

    (tmp_path / "other.json").write_text('{"model": "m", "scores": {"bleu_1": 1}}')
    done = CliRunner().invoke(main, ["report", "--scores", str(tmp_path / "other.json")])
    assert done.exit_code == 1
    assert "other.json: not scores as `captionmill evaluate` writes them" in done.stderr

    for path in (Path(run.scores[0]), Path(run.models[0]) / "bundle.json"):
        before = path.read_bytes()
        with pytest.raises(InputError, match="would be overwritten"):
            write_run_report(path, run)
        assert path.read_bytes() == before


def test_paths_may_be_strings(run: ReportSources, tmp_path: Path) -> None:
    write_run_report(
        str(tmp_path / "r.html"), ReportSources(features=[str(run.features[0])], tables=[str(run.tables[0])])
    )
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert all(f'<h3 class="breaks">{Path(path).name}</h3>' in text for path in (run.features[0], run.tables[0]))


def test_a_key_of_images_in_two_places_shows_neither(run: ReportSources, tmp_path: Path) -> None:
    photos = Path(run.models[0]).parent / "photos"
    draw_photos(tmp_path / "others")
    (tmp_path / "others" / "red_0.png").unlink()
    write_run_report(tmp_path / "r.html", replace(run, images=[photos, tmp_path / "others", photos / ".." / "photos"]))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "no image: several of the images named have this key" in text
    assert "data:image/jpeg;base64," in text  # red_0.png is in one place


def test_chromium_shows_the_page_without_complaint(run: ReportSources, tmp_path: Path, browser: Browser) -> None:
    browser.complaints()
    page = report(tmp_path / "report.html", run)
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.document().count("<section") == 8
    assert browser.complaints() == []
    asking = page.source.replace("</footer>", '</footer><img src="https://example.invalid/x.png"><script>1</script>')
    (tmp_path / "asking.html").write_text(asking, encoding="utf-8")
    browser.open((tmp_path / "asking.html").as_uri())
    browser.settle()
    complaints = browser.complaints()  # the check above would see such
    assert len([text for text in complaints if "Content Security Policy" in text]) == 2


def test_nothing_on_a_phone_is_wider_than_the_screen(run: ReportSources, tmp_path: Path, browser: Browser) -> None:
    def width_of(source: str) -> int:
        (tmp_path / "phone.html").write_text(source, encoding="utf-8")
        with browser.window(PHONE_WIDTH):
            browser.open((tmp_path / "phone.html").as_uri())
            browser.settle()
            width, sections = browser.run(
                "[document.documentElement.scrollWidth, document.querySelectorAll('section').length]"
            )
        assert sections == 8
        return int(width)

    page = report(tmp_path / "report.html", run, title="a_name_without_any_place_to_break_it_" * 4)
    unfolded = page.source.replace("<details>", "<details open>")
    assert width_of(unfolded) == PHONE_WIDTH
    assert width_of(unfolded.replace("</footer>", "</footer><svg width='500'></svg>")) > PHONE_WIDTH


def test_the_page_prints_with_what_is_folded(run: ReportSources, tmp_path: Path, browser: Browser) -> None:
    report(tmp_path / "report.html", run)
    browser.open((tmp_path / "report.html").as_uri())
    printed = browser.print()
    assert printed.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 8
