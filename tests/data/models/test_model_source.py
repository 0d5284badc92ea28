"""A model from a folder, a packed file or a URL of either: fetched once, checked by its hash, never half."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import make_model, make_rows, make_spec, make_store
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.errors import InputError, ModelError
from captionmill.data.models.archive import pack_model
from captionmill.data.models.bundle import model_digest, read_bundle
from captionmill.data.models.card import write_card
from captionmill.data.models.source import find_model, find_models
from captionmill.data.tables.formats import read_captions
from captionmill.stages.decoding.trained import read_models

pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", make_spec(), scores={"val_cider_d": 0.5})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server of `tmp_path`, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            if self.command == "GET":
                asked.append(self.path)

    serve = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()
        thread.join()


def test_the_same_model_makes_the_same_bytes_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    write_card(model)
    summary = pack_model(model, tmp_path / "one.tar")
    shutil.copytree(model, tmp_path / "copied" / "model")
    assert pack_model(str(tmp_path / "copied" / "model"), str(tmp_path / "two.tar")) == summary
    content = (tmp_path / "one.tar").read_bytes()
    assert content == (tmp_path / "two.tar").read_bytes()
    assert (summary.size_bytes, summary.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with tarfile.open(tmp_path / "one.tar") as tar:
        members = [(member.name, member.mtime, member.uid, member.uname, member.mode) for member in tar]
    assert members == [(name, 0, 0, "", 0o644) for name in summary.files]
    with pytest.raises(InputError, match=r"model\.zip: a packed model ends in \.tar"):
        pack_model(model, tmp_path / "model.zip")


def test_a_packed_model_captions_as_its_folder(model: Path, cache: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "f.h5", ["a.jpg", "b.jpg"], make_rows(2))
    runner = CliRunner()
    packed = runner.invoke(main, ["pack", str(model), str(tmp_path / "m.tar")], catch_exceptions=False).stdout
    sources = [str(model), str(tmp_path / "m.tar"), packed.splitlines()[1]]
    (cache / ".killed.0123456789abcdef").mkdir(parents=True)
    os.utime(cache / ".killed.0123456789abcdef", (0, 0))
    for number, source in enumerate(sources):
        output = tmp_path / f"{number}.csv"
        command = ["caption", str(store), "--model", source, "--output", str(output), "--low-confidence", "0"]
        assert runner.invoke(main, command, catch_exceptions=False).exit_code == 0
        assert list(read_captions(output)) == list(read_captions(tmp_path / "0.csv"))
    assert [path.name for path in cache.iterdir()] == [packed.strip().rpartition("=")[2]]


def test_a_model_at_a_url_is_fetched_once_and_checked(
    model: Path, cache: Path, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, asked = server
    digest = pack_model(model, tmp_path / "m.tar").sha256
    for source in (f"{url}/m.tar", f"{url}/m.tar", f"{url}/m.tar#sha256={digest}"):
        assert find_model(source) == cache / digest
    assert asked.count("/m.tar") == 1
    with pytest.raises(ModelError, match=rf"m\.tar: is not the model that its #sha256 names; its SHA-256 is {digest}"):
        find_model(f"{url}/m.tar#sha256={'0' * 64}")
    bundle_digest = model_digest(model)
    assert find_model(f"{url}/model#sha256={bundle_digest}") == cache / bundle_digest
    assert read_bundle(cache / bundle_digest).scores == {"val_cider_d": 0.5}
    before = len(asked)
    assert find_model(f"{url}/model") == cache / bundle_digest
    assert len(asked) == before
    make_model(model, make_spec(), seed=1)
    shutil.rmtree(cache)
    with pytest.raises(ModelError, match="is not the model that its #sha256 names"):
        find_model(f"{url}/model#sha256={bundle_digest}")
    with pytest.raises(InputError, match=r"nothing\.tar: no such file"):
        find_model(f"{url}/nothing.tar")


def pack(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../bundle.json", "/etc/passwd", "sub/bundle.json", "decoder-1.safetensors", "x.py"])
def test_a_strangers_file_writes_nothing_but_a_models_files(name: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a packed model, because it holds"):
        find_model(pack(tmp_path / "m.tar", ("bundle.json", b"{}"), (name, b"x")))
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "cache" / "bundle.json").exists()


@pytest.mark.parametrize("weights", ["bundle.json", "../decoder-0123456789ab.safetensors", "README.md", 7, None])
def test_a_bundle_names_no_file_but_its_weights(weights: object, model: Path) -> None:
    values = json.loads((model / "bundle.json").read_text())
    values["weights"]["file"] = weights
    (model / "bundle.json").write_text(json.dumps(values))
    (model / "README.md").write_text("mine")
    with pytest.raises(ModelError, match="is no name of a weights file"):
        read_bundle(model)
    make_model(model, make_spec(), seed=2)
    assert (model / "README.md").read_text() == "mine"
    assert read_bundle(model).scores == {}


def test_what_is_no_model_is_one_line(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("hello")
    noise = gzip.compress(bytes(range(256)) * 64)
    (tmp_path / "packed.tar").write_bytes(noise[:80] + bytes(80) + noise[160:])
    for place, message in (
        (tmp_path / "text.tar", r"not a packed model \(file could not be opened successfully\); `captionmill pack`"),
        (tmp_path / "packed.tar", "not a packed model"),
        (pack(tmp_path / "empty.tar"), "holds no bundle.json"),
        (pack(tmp_path / "half.tar", ("bundle.json", b'{"format": "captionmill-bundle"}')), "not a readable model"),
        (f"{tmp_path}/text.tar#sha256=12", "#sha256= needs 64 hexadecimal digits"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            find_model(place)
        assert str(caught.value).startswith(str(place))
        assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_model_that_would_count_twice_is_refused(model: Path, tmp_path: Path) -> None:
    packed, other = tmp_path / "packed.tar", tmp_path / "other"
    pack_model(model, packed)
    shutil.copytree(model, other)
    (tmp_path / "link").symlink_to(model)
    assert find_models([model, packed, other]) == [model, find_model(packed), other]
    for second in (str(model), tmp_path / "link"):
        with pytest.raises(InputError, match=r"^.*model: this model is named twice; name each model once$"):
            find_models([model, second])
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(ModelError, match="circle"):
        read_models(tmp_path / "circle")


def test_the_card_has_scores_and_is_left_alone_once_changed(model: Path, tmp_path: Path) -> None:
    scores = {"images_chosen_by": "test | split", "captions": {"a.jpg": {}, "b.jpg": {}}}
    scores |= {"scores": {"cider_d": 0.5, "bleu_4": 0.25}, "intervals": {"cider_d": [0.4, 0.6], "bleu_4": [0.2, 0.3]}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    card = write_card(model, [tmp_path / "scores.json"])
    text = card.read_text(encoding="utf-8")
    header = text.split("---\n")[1]
    assert "pipeline_tag: image-to-text\n" in header
    assert '      name: "test | split"\n' in header
    assert "    - type: cider_d\n      value: 0.5000\n" in header
    assert "| 2 (test \\| split) | CIDEr-D | 0.500 | 0.400 to 0.600 |" in text
    assert f"SHA-256 of the tensors `{make_spec().weights_sha256}`" in text
    write_card(model)
    assert "Validation CIDEr-D 0.500, which chose the epoch." in card.read_text(encoding="utf-8")
    card.write_text(card.read_text(encoding="utf-8").replace("## Limits", "## Limits, in my words"))
    with pytest.raises(InputError, match=r"README\.md: was written or changed by somebody; move it away"):
        write_card(model)
    card.unlink()
    with pytest.raises(InputError, match="not a file of scores"):
        write_card(model, [model / "bundle.json"])


def test_a_card_with_half_a_surrogate_is_written_and_known_again_as_ours(model: Path) -> None:
    values = json.loads((model / "bundle.json").read_text(encoding="utf-8"))
    values["notes"] = ["\ud83d"]
    (model / "bundle.json").write_text(json.dumps(values), encoding="utf-8")
    card = write_card(model)
    assert "Note: \\ud83d" in card.read_text(encoding="utf-8")
    write_card(model)  # an InputError if the card were taken for a person's


@pytest.mark.parametrize("teachers", [7, {"a": 1}, [["a"]]])
def test_a_card_of_a_model_whose_teachers_are_no_names_is_written(model: Path, teachers: object) -> None:
    values = json.loads((model / "bundle.json").read_text(encoding="utf-8"))
    values["training"] |= {"teacher": teachers, "teacher_sha256": 7}
    (model / "bundle.json").write_text(json.dumps(values), encoding="utf-8")
    assert "Learned from" not in write_card(model).read_text(encoding="utf-8")
