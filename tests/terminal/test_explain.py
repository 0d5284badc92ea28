"""`captionmill explain` as a user runs it: what it prints, the page, and where the numbers come from."""

import csv
import html
import math
import re
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import draw_photos, make_ranker, make_store
from click import Context, unstyle
from click.testing import CliRunner, Result
from PIL import Image

from captionmill.cli import main
from captionmill.data.captions.vocabulary import END, SPECIAL_WORDS, START, Vocabulary
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.models.bundle import Model, read_bundle, write_model
from captionmill.pipeline.explain import explain_image
from captionmill.pipeline.pages.drawings import draw_beam_tree
from captionmill.pipeline.terminal.texts import render_text
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.ranking.packed import pack_ranker
from captionmill.stages.settings import ExtractConfig, SearchConfig
from captionmill.stages.training.features import measure_features

WORDS = [
    *SPECIAL_WORDS,
    "a",
    "red",
    "green",
    "blue",
    "yellow",
    "picture",
    "of",
    "<b>bold</b>",
    "all",
    "and",
    "\x1b[31mink",
]
THIN = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32"]
CPU = ["--device", "cpu", "--engine", "torch"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def fail(*arguments: object) -> str:
    """The one error line of a command that fails."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


def make_model(folder: Path, store: FeatureStore, seed: int) -> Path:
    """A random decoder for the features of `store`, with weights large enough that captions differ."""
    mean, std = measure_features(store, store.keys)
    torch.manual_seed(seed)
    decoder = Decoder(
        DecoderConfig(
            feature_dim=store.spec.feature_dim,
            vocab_size=len(WORDS),
            embed_dim=8,
            hidden_dim=16,
            dropout=0.0,
            feature_dropout=0.0,
            feature_scaling="standardize-unit",
        )
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4)
        decoder.to_logits.bias[END] -= 2
        decoder.fit_features(torch.from_numpy(mean), torch.from_numpy(std))
    splits = {"train": ["red_0.png"], "val": ["blue_2.png"], "test": ["more/green_1.png"]}
    tensors = {name: tensor.numpy() for name, tensor in decoder.state_dict().items()}
    training = {"label_smoothing": 0.1, "max_length": 4}
    bundle = Model(asdict(decoder.config), Vocabulary(WORDS), store.spec, training, splits, {}, {"torch": "2"}, tensors)
    write_model(folder, bundle)
    return folder


@pytest.fixture(scope="module")
def made(thin_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, their store, captions, and two models."""
    folder = tmp_path_factory.mktemp("explain")
    draw_photos(folder / "photos")
    extract = run("extract", folder / "photos", "--output", folder / "f.h5", *THIN, "--weights", thin_weights, *CPU)
    assert extract.exit_code == 0, extract.output
    for seed in (1, 2):
        make_model(folder / f"model{seed}", FeatureStore.open(folder / "f.h5"), seed)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [
                ["image", "caption"],
                ["red_0.png", "A red picture, all zebra and <script>alert(1)</script>."],
                ["red_0.png", "red"],
            ]
        )
    return folder


def test_a_picture_gets_the_row_of_a_store_and_the_caption_of_caption(made: Path, tmp_path: Path) -> None:
    result = run("caption", made / "photos", "--model", made / "model1", "--output", tmp_path / "c.csv", *CPU)
    assert result.exit_code == 0, result.output
    with (tmp_path / "c.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file) if row["status"] == "ok"}
    store = FeatureStore.open(made / "f.h5")
    machine = ExtractConfig(device="cpu", engine="torch")
    for key, row in [*rows.items()][::2]:
        explained = explain_image(made / "photos" / key, made / "model1", machine=machine)
        assert explained.explanation.features.tolist() == store[key].astype(np.float32).tolist()
        assert explained.caption == row["caption"]
        assert explained.explanation.confidence == pytest.approx(float(row["confidence"]), abs=1e-4)
        stored = explain_image(made / "photos" / key, made / "model1", features=made / "f.h5", machine=machine)
        assert stored.explanation.beam == explained.explanation.beam
    assert len({row["caption"] for row in rows.values()}) > 1


SEARCHES = [
    ["--beam-size", "4", "--diversity-groups", "2", "--diversity-strength", "2", "--alternatives", "1"],
    ["--min-length", "4", "--no-repeat-ngram", "1", "--length-penalty", "0", "--max-length", "9"],
    ["--sample", "--temperature", "1.5", "--top-k", "9", "--top-p", "0.95", "--seed", "3", "--alternatives", "2"],
]


@pytest.mark.parametrize("options", SEARCHES, ids=" ".join)
@pytest.mark.parametrize("models", [["model1"], ["model1", "model2"]], ids=len)
def test_with_every_option_of_caption_it_says_what_caption_says(
    models: list[str], options: list[str], made: Path, tmp_path: Path
) -> None:
    chosen = [argument for model in models for argument in ("--model", str(made / model))]
    chosen += [*options, "--device", "cpu"]
    result = run("caption", made / "f.h5", *chosen, "--output", tmp_path / "c.csv")
    assert result.exit_code == 0, result.output
    with (tmp_path / "c.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["path"]: row["caption"] for row in csv.DictReader(file)}
    for key in ("red_0.png", "more/green_1.png"):
        page = tmp_path / "page.html"
        shown = run("explain", key, "--features", made / "f.h5", *chosen, "--output", page)
        assert shown.stdout.startswith(f"{page}: {unstyle(rows[key])} (confidence ")
        text = run("explain", key, "--features", made / "f.h5", *chosen).stdout
        printed = rows[key].replace("\x1b", r"\x1b")
        assert text.startswith(f"{key}: {printed}\n")
        assert ("2 groups; each keeps its best" in text) == ("--diversity-groups" in options)
        assert ("drawn at random, word by word" in text) == ("--sample" in options)
        if "--sample" in options:
            assert re.search(rf"^\*     1 +-[\d.]+ +\d+  {re.escape(printed)}$", text, re.M)
            assert "computed: " in text
            assert "sampling (temperature 1.5, the 9 likeliest words, the likeliest words up to 0.95, seed 3)" in text


def test_it_has_every_search_option_of_caption() -> None:
    commands = {name: main.get_command(Context(main), name) for name in ("caption", "explain")}
    assert all(commands.values())
    names = {name: {option.name for option in command.params} for name, command in commands.items() if command}
    search = {field.name for field in fields(SearchConfig)}
    assert search <= names["caption"]
    assert search <= names["explain"]


def test_text_shows_each_steps_words_with_index_logit_and_probability(made: Path) -> None:
    photo = made / "photos" / "red_0.png"
    result = run("explain", photo, "--model", made / "model1", *CPU)
    assert result.exit_code == 0, result.output
    captioner = Captioner.load(made / "model1", device="cpu")
    features = torch.from_numpy(FeatureStore.open(made / "f.h5")["red_0.png"])[None].float()
    with torch.inference_mode():
        logits = captioner.decoder.step(torch.tensor([START]), captioner.decoder.start(features))[0][0]
    lines = re.findall(r"^  [* ] +(\d+) +(\d+)  (\S.*?) +(-?[\d.]+) +([\d.e-]+)", result.stdout, re.M)[:10]
    best = logits.topk(10)
    probabilities = logits.softmax(0)[best.indices].tolist()
    assert [int(rank) for rank, *_ in lines] == list(range(1, 11))
    assert [int(index) for _, index, *_ in lines] == best.indices.tolist()
    assert [float(logit) for *_, logit, _ in lines] == pytest.approx(best.values.tolist(), abs=6e-5)
    assert [float(value) for *_, value in lines] == pytest.approx(probabilities, abs=6e-5)
    assert "\x1b" not in result.stdout
    assert r"\x1b[31mink" in result.stdout
    assert "beam of 5" in result.stdout


def test_the_page_holds_the_same_numbers_and_escapes_what_is_not_its_own(made: Path, tmp_path: Path) -> None:
    photo = tmp_path / "<i>red_0.png"
    shutil.copy2(made / "photos" / "red_0.png", photo)
    page = tmp_path / "out" / "page.html"
    arguments = ["--captions", made / "captions.csv", "--key", "red_0.png", "--features", made / "f.h5"]
    result = run("explain", photo, "--model", made / "model1", "--output", page, *arguments, *CPU)
    assert result.exit_code == 0, result.output
    explained = explain_image(photo, made / "model1", features=made / "f.h5", key="red_0.png")
    assert result.stdout.startswith(f"{page}: ")
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<script|<i>red_0|<b>bold|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "&lt;script&gt;" in text
    assert "&lt;i&gt;red_0.png" in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert text.count("data:image/") >= 5  # the picture, what the network sees, features, scaled, h0, c0
    row = re.compile(
        r'<tr class="[a-z]*"><td>(\d+)</td><td class="word">.*?</td><td>(\d+)</td><td>(.*?)</td>'
        r'<td class="share">.*?</svg>(.*?)</td>'
    )
    shown = [(int(rank), int(index), logit, value) for rank, index, logit, value in row.findall(text)]
    walks = [explained.explanation.caption]
    if explained.explanation.greedy.words != walks[0].words:
        walks.append(explained.explanation.greedy)
    captioner = Captioner.load(made / "model1", device="cpu")
    features = torch.from_numpy(FeatureStore.open(made / "f.h5")["red_0.png"])[None].float()
    expected = []
    with torch.inference_mode():
        for walk in walks:
            state = captioner.decoder.start(features)
            for fed in (START, *walk.words, END)[: len(walk.steps)]:
                logits, state = captioner.decoder.step(torch.tensor([fed]), state)
                for rank, index in enumerate(logits[0].topk(10).indices.tolist(), start=1):
                    expected.append((rank, index, float(logits[0, index]), float(logits[0].softmax(0)[index])))
    assert len(shown) >= len(expected)
    within = [entry for entry in shown if entry[0] <= 10]
    assert [entry[:2] for entry in within] == [entry[:2] for entry in expected]
    assert [float(entry[2]) for entry in within] == pytest.approx([entry[2] for entry in expected], abs=6e-5)
    assert [float(entry[3]) for entry in within] == pytest.approx([entry[3] for entry in expected], abs=6e-5)
    for kept in explained.explanation.beam.steps:
        for node in kept:
            assert f"sum {node.total:.4f}, {node.length} words, score {node.score:.4f}" in text


def test_references_show_the_cross_entropy_of_each_word_and_unknown_ones_as_unk(made: Path, tmp_path: Path) -> None:
    photo = made / "photos" / "red_0.png"
    arguments = ["explain", photo, "--model", made / "model1", "--captions", made / "captions.csv", *CPU]
    text = run(*arguments).stdout
    captioner = Captioner.load(made / "model1", device="cpu")
    assert isinstance(captioner.decoder, Decoder)
    features = torch.from_numpy(FeatureStore.open(made / "f.h5")["red_0.png"])[None].float()
    with torch.inference_mode():
        logits = captioner.decoder(features, torch.tensor([[START, 5]]))[0]
        each = torch.nn.functional.cross_entropy(logits, torch.tensor([5, END]), reduction="none").tolist()
    _, _, last = text.rpartition("reference (red_0.png in captions.csv): red\n")
    lines = [line.split() for line in last.splitlines()]
    assert [line[:2] for line in lines[1:3]] == [["5", "red"], ["2", "<end>"]]
    assert [float(line[-1]) for line in lines[1:3]] == pytest.approx(each, abs=6e-5)
    assert lines[3] == ["mean", f"{math.fsum(each) / 2:.4f}", "nats", "per", "word"]
    assert re.search(r"^ +3  <unk> zebra ", text, re.M)
    page = tmp_path / "page.html"
    assert run(*arguments, "--output", page).exit_code == 0
    shown = page.read_text(encoding="utf-8")
    assert "&lt;unk&gt; <em>zebra</em>" in shown
    assert f">{each[0]:.4f}</td>" in shown
    assert "In training it is cut after 4 words." in shown


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("red_0.png", "the model was trained on it"),
        ("blue_2.png", "the best epoch of the model was chosen with it"),
        ("more/green_1.png", "the model has not seen it, it is in its test split"),
        ("more/yellow_3.png", "the model does not know it"),
    ],
)
def test_it_says_what_the_picture_was_to_the_model(made: Path, key: str, told: str) -> None:
    photo = made / "photos" / key
    result = run("explain", photo, "--model", made / "model1", "--features", made / "f.h5", *CPU)
    assert f"note: this is {key}: {told}\n" in result.stdout


def test_a_name_alone_is_no_proof_that_a_picture_was_trained_on(made: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "red_0.png")
    result = run("explain", tmp_path / "red_0.png", "--model", made / "model1", *CPU)
    assert "note: by its name, this may be red_0.png: the model was trained on it\n" in result.stdout
    Image.new("RGB", (40, 30), "white").save(tmp_path / "new.png")
    assert "note:" not in run("explain", tmp_path / "new.png", "--model", made / "model1", *CPU).stdout


def test_a_key_of_a_store_needs_no_file(made: Path) -> None:
    result = run("explain", "more/green_1.png", "--model", made / "model1", "--features", made / "f.h5")
    assert result.exit_code == 0
    assert result.stdout.startswith("more/green_1.png: ")
    page = made / "no_picture.html"
    run("explain", "more/green_1.png", "--model", made / "model1", "--features", made / "f.h5", "--output", page)
    assert "data:image/jpeg" not in page.read_text(encoding="utf-8")


def test_several_models_are_explained_as_an_ensemble(made: Path, tmp_path: Path) -> None:
    arguments = ["explain", made / "photos" / "red_0.png", "--model", made / "model1", "--model", made / "model2", *CPU]
    text = run(*arguments).stdout
    assert "first state of model1: " in text
    assert "first state of model2: " in text
    assert "rank  index  word                    ln p  probability" in text
    page = tmp_path / "page.html"
    assert run(*arguments, "--output", page).exit_code == 0
    shown = html.unescape(page.read_text(encoding="utf-8"))
    assert "the natural logarithm of the mean of these probabilities" in shown
    assert "Model model2" in shown


def test_a_choice_among_candidates_is_shown_with_what_decided(made: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(made / "f.h5")
    keys = list(store.keys)
    rows = np.stack([store[key] for key in keys]).astype(np.float32)
    bundle = read_bundle(made / "model1")
    parts = pack_ranker(make_ranker(rows, len(WORDS)))
    write_model(tmp_path / "m", replace(bundle, ranker=parts, splits={"train": keys, "val": [], "test": []}))
    page = tmp_path / "page.html"
    explained = explain_image("red_0.png", tmp_path / "m", features=made / "f.h5", output=page)
    choice, text, shown = explained.explanation.choice, render_text(explained), page.read_text(encoding="utf-8")
    assert choice is not None
    assert "beam search (20 captions kept, length penalty 0.7) found 20 candidates, among which the captions of" in text
    assert "highest total first: consensus + 0.3 x mean ln p + 0.75 x match - 0.1 x repetition - 0.01 x words\n" in text
    assert "consensus + 0.3 \N{MULTIPLICATION SIGN} mean ln p + 0.75 \N{MULTIPLICATION SIGN} match" in shown
    confidence = 1 - math.exp(-choice.candidates[0].score.consensus)
    assert f"({confidence:.4f}) is the confidence of the caption: 1 &minus; exp(&minus;consensus), with the" in shown
    assert len(explained.candidates) == 10
    assert [candidate.place for _, candidate in explained.candidates].count(0) == 1
    assert text.count("(the search's first choice)") == shown.count("the search's first choice</em>") == 1
    for place, candidate in explained.candidates:
        score = candidate.score
        numbers = [
            f"{value:.4f}"
            for value in (score.total, score.consensus, score.log_probability, score.match, score.repetition)
        ]
        numbers.append(str(len(candidate.caption.words)))
        assert re.search(rf"^[* ] +{place}  +{'  +'.join(map(re.escape, numbers))}  ", text, re.M)
        assert "".join(f"<td>{number}</td>" for number in numbers) in shown
    for neighbour in choice.neighbours:
        assert f"cosine {neighbour.cosine:.4f}, {keys[neighbour.image]}\n" in text
        assert f"<small>{keys[neighbour.image]}</small>weight <b>{neighbour.weight:.4f}</b>" in shown
    drawn = draw_beam_tree(explained.branches)
    assert len(drawn.edges) == sum(map(len, explained.branches)) == shown.count("<path class=")
    assert max(box.x for box in drawn.boxes) + drawn.box_width < drawn.width
    explained = replace(explained, bundles=(replace(bundle, ranker=parts),))  # neighbours among more than it names
    assert f"cosine {choice.neighbours[0].cosine:.4f}\n" in render_text(explained)
    search = SearchConfig(rerank="none")
    plain = explain_image("red_0.png", tmp_path / "m", features=made / "f.h5", search=search)
    assert "candidates" not in render_text(plain)


def test_an_image_at_a_url_is_explained_as_the_file(made: Path) -> None:
    red, model = made / "photos/red_0.png", ["--model", made / "model1", *CPU]
    file, url = run("explain", red, *model).stdout, run("explain", f"file://{red.as_posix()}", *model).stdout
    assert url == file.replace(str(red), f"file://{red.as_posix()}")
    stored = run("explain", f"file://{red.as_posix()}", *model, "--features", made / "f.h5").stdout
    assert "the row red_0.png of f.h5" in stored
    gone = f"file://{made.as_posix()}/gone.png"
    assert fail("explain", gone, *model) == f"Error: {gone}: no such file"


def test_what_cannot_be_explained_is_one_line(made: Path, tmp_path: Path, thin_weights: Path) -> None:
    model, photos, store = made / "model1", made / "photos", made / "f.h5"
    broken = photos / "broken.jpg"
    assert fail("explain", broken, "--model", model).startswith(f"Error: {broken}: not an image, or in a format other")
    gone = photos / "gone.jpg"
    assert fail("explain", gone, "--model", model) == f"Error: {gone}: no such file or directory"
    missing = f"Error: {gone}: not in {store}, by its path or its name; give its name there as --key"
    assert fail("explain", gone, "--model", model, "--features", store) == missing
    red = photos / "red_0.png"
    arguments = ["--model", model, "--features", store, "--key", "x.png"]
    assert fail("explain", red, *arguments) == f"Error: x.png: not in {store}; pass another --key"
    empty, spec = tmp_path / "empty.h5", FeatureStore.open(store).spec
    make_store(empty, ["gone.png"], np.ones((1, 2048), np.float32), spec)
    with FeatureWriter(empty, spec, dtype="float32", made_by={}) as writer:
        writer.drop(["gone.png"])
    message = f"Error: {red}: not in {empty}, by its path or its name; give its name there as --key"
    assert fail("explain", red, "--model", model, "--features", empty) == message
    captions = made / "captions.csv"
    assert fail("explain", photos / "blue_2.png", "--model", model, "--captions", captions) == (
        f"Error: {photos / 'blue_2.png'}: not in {captions}, by its path or its name; give its name there as --key"
    )
    Image.new("RGB", (40, 30), "white").save(tmp_path / "red_0.png")
    assert fail("explain", tmp_path / "red_0.png", "--model", model, "--features", store) == (
        f"Error: {tmp_path / 'red_0.png'}: not what the row red_0.png of {store} was made from; leave out --features"
    )
    other = tmp_path / "other.h5"
    assert run("extract", photos, "--output", other, *THIN[:-1], "48", "--weights", thin_weights).exit_code == 0
    assert "do not fit" in fail("explain", red, "--model", model, "--features", other)
    shutil.copy2(red, tmp_path / "own.png")
    weights = tmp_path / "moved.pth"
    shutil.copy2(thin_weights, weights)
    for output in (tmp_path / "own.png", Path(model) / "bundle.json", weights):
        before = output.read_bytes()
        arguments = ["--model", model, "--output", output, "--weights", weights, *CPU]
        message = fail("explain", tmp_path / "own.png", *arguments)
        assert message.endswith("is an input of this command and would be overwritten; name another output")
        assert output.read_bytes() == before


def test_a_name_that_several_keys_have_needs_a_key(made: Path, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image,caption\na/new.png,red\nb/new.png,blue\n")
    Image.new("RGB", (40, 30), "white").save(tmp_path / "new.png")
    arguments = ["explain", tmp_path / "new.png", "--model", made / "model1", "--captions", tmp_path / "c.csv", *CPU]
    assert fail(*arguments) == (
        f"Error: {tmp_path / 'new.png'}: 2 keys of {tmp_path / 'c.csv'} end like this, a/new.png first; "
        "choose one with --key"
    )
    assert "reference (b/new.png in c.csv): blue" in run(*arguments, "--key", "b/new.png").stdout
