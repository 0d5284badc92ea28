"""Extraction does what is missing, lists what cannot be read, and never mixes networks."""

import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import needs_fast_int8, thin_config
from PIL import Image
from processes import Child

from captionmill.data.errors import InputError, SpecMismatchError, StoreError
from captionmill.data.features.log import log_path
from captionmill.data.features.merge import merge_stores
from captionmill.data.features.parts import parts_dir
from captionmill.data.features.shard import shard_path
from captionmill.data.features.spec import mixture_note
from captionmill.data.features.store import FeatureStore
from captionmill.data.images.decode import Pixels
from captionmill.data.images.find import find_images
from captionmill.stages.encoding.extract import extract
from captionmill.stages.encoding.loader import load_batches
from captionmill.stages.settings import ExtractConfig


@pytest.fixture
def config(thin_weights: Path) -> ExtractConfig:
    return thin_config(thin_weights, batch_size=3)


def test_every_readable_image_gets_a_row_and_the_rest_a_reason(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    summary = extract(photos, tmp_path / "out" / "f.h5", config)
    assert (summary.found, summary.cached, summary.extracted, len(summary.failures)) == (9, 0, 8, 1)
    store = FeatureStore.open(tmp_path / "out" / "f.h5")
    assert store.keys == sorted(image.key for image in find_images(photos) if image.key != "broken.jpg")
    assert store.verify() == []
    assert store.dtype == "float16"
    failures = (tmp_path / "out" / "failures.csv").read_text().splitlines()
    assert failures[0] == "key,reason"
    assert failures[1].startswith("broken.jpg,")
    assert len(failures) == 2


def test_a_row_is_the_picture_whatever_shares_its_batch(photos: Path, config: ExtractConfig, tmp_path: Path) -> None:
    extract(photos, tmp_path / "all.h5", config)
    together = FeatureStore.open(tmp_path / "all.h5")
    for key in together.keys:
        (tmp_path / "one.txt").write_text(str(photos / key))
        extract(tmp_path / "one.txt", tmp_path / "one.h5", config, overwrite=True)
        alone = FeatureStore.open(tmp_path / "one.h5")
        np.testing.assert_allclose(alone[alone.keys[0]], together[key], rtol=2e-2, atol=1e-3)


def test_a_rerun_does_only_what_is_missing(photos: Path, config: ExtractConfig, tmp_path: Path) -> None:
    extract(photos, tmp_path / "f.h5", config, limit=4)
    first = FeatureStore.open(tmp_path / "f.h5")
    assert len(first) == 3  # the fourth is broken.jpg's place in the sorted list or before it
    Image.new("RGB", (20, 20), "white").save(photos / "broken.jpg")
    summary = extract(photos, tmp_path / "f.h5", config)
    assert (summary.found, summary.cached, summary.extracted, summary.failures) == (9, 3, 6, ())
    again = extract(photos, tmp_path / "f.h5", config)
    assert (again.cached, again.extracted) == (9, 0)
    assert (tmp_path / "failures.csv").read_text() == "key,reason\n"


def test_a_changed_picture_is_extracted_again_and_a_touched_one_is_not(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    extract(photos, tmp_path / "f.h5", config)
    before = FeatureStore.open(tmp_path / "f.h5")
    (photos / "red_0.png").write_bytes((photos / "blue_2.png").read_bytes())
    (photos / "blue_2.png").touch()
    summary = extract(photos, tmp_path / "f.h5", config)
    assert (summary.cached, summary.extracted, len(summary.failures)) == (7, 1, 1)
    after = FeatureStore.open(tmp_path / "f.h5")
    assert after.keys == before.keys
    np.testing.assert_allclose(after["red_0.png"], before["blue_2.png"], rtol=2e-2, atol=1e-3)
    assert after.source("red_0.png").content_hash == after.source("blue_2.png").content_hash
    assert extract(photos, tmp_path / "f.h5", config).cached == 8


def test_a_picture_that_has_become_unreadable_loses_its_old_row(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    extract(photos, tmp_path / "f.h5", config)
    (photos / "red_0.png").write_bytes(b"gone bad")
    summary = extract(photos, tmp_path / "f.h5", config)
    assert [failure.key for failure in summary.failures] == ["broken.jpg", "red_0.png"]
    assert "red_0.png" not in FeatureStore.open(tmp_path / "f.h5")


def test_an_interrupted_overwrite_leaves_no_row_to_the_next_of_other_images(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    def interrupt(label: str, done: int, total: int, **_: object) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(photos, tmp_path / "f.h5", config, overwrite=True, progress=interrupt)
    (tmp_path / "list.txt").write_text("photos/red_0.png\n")
    extract(tmp_path / "list.txt", tmp_path / "f.h5", config, overwrite=True)
    assert FeatureStore.open(tmp_path / "f.h5").keys == ["photos/red_0.png"]


def test_a_store_keeps_the_preprocessing_that_it_was_made_with(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    plain = replace(config, preprocess=None)
    extract(photos, tmp_path / "f.h5", replace(config, preprocess="crop"), limit=3)
    assert extract(photos, tmp_path / "f.h5", plain).cached == 2
    assert FeatureStore.open(tmp_path / "f.h5").spec.preprocess == "crop"
    with pytest.raises(SpecMismatchError, match="preprocess: crop, not squash"):
        extract(photos, tmp_path / "f.h5", config)
    extract(photos, tmp_path / "f.h5", plain, overwrite=True)
    assert FeatureStore.open(tmp_path / "f.h5").spec.preprocess == "squash"


def test_other_preprocessing_into_the_same_store_is_refused(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    extract(photos, tmp_path / "f.h5", config)
    before = (tmp_path / "f.h5").read_bytes()
    other = replace(config, image_size=48)
    with pytest.raises(SpecMismatchError, match=r"image_size: 32, not 48: pass `image_size` 32, or `overwrite`$"):
        extract(photos, tmp_path / "f.h5", other)
    assert (tmp_path / "f.h5").read_bytes() == before
    assert extract(photos, tmp_path / "f.h5", other, overwrite=True).extracted == 8
    assert FeatureStore.open(tmp_path / "f.h5").spec.image_size == 48
    assert sorted(path.name for path in tmp_path.glob("*f.h5*")) == ["f.h5"]


def test_a_folder_without_a_readable_image_is_an_error_that_shows_one_reason(
    config: ExtractConfig, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 1 images can be read \(a\.jpg: "):
        extract(tmp_path / "photos", tmp_path / "f.h5", config)
    assert not (tmp_path / "f.h5").exists()


def to_4x4(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((4, 4)))


def test_a_picture_that_memory_does_not_hold_fails_alone(photos: Path) -> None:
    images = find_images(photos)
    asked = []

    def prepare(image: Pixels) -> Pixels:
        asked.append(image.shape)
        if len(asked) == 2:
            torch.empty(10**15, dtype=torch.uint8)
        return to_4x4(image)

    batches = list(load_batches(images, prepare, least_size=lambda *_: (4, 4), batch_size=3, workers=1))
    failures = {failure.reason for batch in batches for failure in batch.failures}
    assert "not enough memory to resize it" in failures
    assert sum(len(batch.keys) for batch in batches) == len(images) - 2  # and broken.jpg


def test_an_error_in_the_code_that_prepares_pictures_is_no_pictures_fault(photos: Path) -> None:
    def prepare(_: Pixels) -> Pixels:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(load_batches(find_images(photos), prepare, least_size=lambda *_: (4, 4), batch_size=3, workers=1))


def test_batches_are_full_and_in_order_when_images_between_fail(photos: Path) -> None:
    images = find_images(photos)
    batches = list(load_batches(images, to_4x4, least_size=lambda *_: (4, 4), batch_size=3, workers=2))
    assert [len(batch.keys) for batch in batches] == [3, 3, 2]
    assert [key for batch in batches for key in batch.keys] == [
        image.key for image in images if image.key != "broken.jpg"
    ]
    assert [failure.key for batch in batches for failure in batch.failures] == ["broken.jpg"]
    assert [image.shape for image in batches[0].images] == 3 * [(4, 4, 3)]


def test_a_killed_extraction_goes_on_to_the_same_file(config: ExtractConfig, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    program = f"""
import time
from pathlib import Path
from captionmill.stages.settings import ExtractConfig
from captionmill.stages.encoding.extract import extract
config = ExtractConfig(**{vars(replace(config, flush_every=6))!r})
def wait_there(label, done, total, **_):
    time.sleep(60 if done >= 30 else 0)
extract(Path({str(folder)!r}), Path({str(tmp_path / "f.h5")!r}), config, progress=wait_there)
"""
    with Child(program) as process:
        while len(list(parts_dir(tmp_path / "f.h5").glob("part-*.h5"))) < 3:
            assert process.is_running()
            time.sleep(0.01)
    kept = len(FeatureStore.open(tmp_path / "f.h5"))
    assert kept >= 18
    summary = extract(folder, tmp_path / "f.h5", config)
    assert (summary.cached, summary.extracted) == (kept, 60 - kept)
    extract(folder, tmp_path / "g.h5", config)
    resumed, uninterrupted = FeatureStore.open(tmp_path / "f.h5"), FeatureStore.open(tmp_path / "g.h5")
    assert resumed.keys == uninterrupted.keys
    np.testing.assert_array_equal(resumed.read(range(60)), uninterrupted.read(range(60)))


def test_pictures_out_of_reach_keep_their_rows(photos: Path, config: ExtractConfig, tmp_path: Path) -> None:
    keys = [image.key for image in find_images(photos) if image.key != "broken.jpg"]
    (tmp_path / "list.txt").write_text("".join(f"photos/{key}\n" for key in keys))
    extract(tmp_path / "list.txt", tmp_path / "f.h5", config)
    digest = FeatureStore.open(tmp_path / "f.h5").digest()
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="none of 8 images can be read"):
        extract(tmp_path / "list.txt", tmp_path / "f.h5", config)
    assert FeatureStore.open(tmp_path / "f.h5").digest() == digest


def test_a_damaged_tar_ends_no_run_and_its_rows_outlive_pruning(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        archive.add(photos / "red_0.png", "red_0.png")
    whole = (tmp_path / "one.tar").read_bytes()
    (photos / "one.tar").write_bytes(whole)
    assert extract(photos, tmp_path / "f.h5", config).extracted == 9
    (photos / "one.tar").write_bytes(b"")
    (photos / "red_0.png").unlink()
    summary = extract(photos, tmp_path / "f.h5", config, prune=True)
    assert (summary.cached, summary.extracted, summary.pruned) == (7, 0, 1)
    assert {failure.key: failure.reason for failure in summary.failures}["one.tar"] == "not a readable tar (empty file)"
    assert "one.tar,not a readable tar (empty file)" in (tmp_path / "failures.csv").read_text()
    assert "one.tar/red_0.png" in FeatureStore.open(tmp_path / "f.h5")
    (photos / "one.tar").write_bytes(whole)
    assert extract(photos, tmp_path / "f.h5", config).cached == 8


def test_an_overwrite_waits_for_nobody_and_takes_nobodys_place(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    path = tmp_path / "f.h5"

    def overwrite_too(label: str, done: int, total: int, **_: object) -> None:
        with pytest.raises(StoreError, match="another process is writing to this store"):
            extract(photos, path, replace(config, image_size=48), overwrite=True)

    extract(photos, path, config, progress=overwrite_too)
    extract(photos, path, config, overwrite=True, progress=overwrite_too)
    assert len(FeatureStore.open(path)) == 8
    assert FeatureStore.open(path).spec.image_size == 32
    assert not parts_dir(path).exists()


def test_a_resumed_overwrite_of_a_large_store_is_whole(
    photos: Path, config: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captionmill.data.features.writer._SMALL_ROWS", 0)
    path, new_path = tmp_path / "f.h5", tmp_path / ".f.h5.new"
    extract(photos, path, config)
    extract(photos, new_path, config, limit=8)  # as an overwrite that was cut short before it took the old one's place
    log_path(new_path).unlink()
    assert extract(photos, path, config, overwrite=True).extracted == 1
    assert len(FeatureStore.open(path)) == 8
    assert sorted(item.name for item in tmp_path.iterdir()) == ["f.h5", "f.log.csv", "failures.csv", "photos"]


def test_shards_of_a_list_that_grew_still_merge(photos: Path, config: ExtractConfig, tmp_path: Path) -> None:
    for index in (1, 2):
        extract(photos, tmp_path / "f.h5", config, shard=(index, 2))
    Image.new("RGB", (20, 20), "white").save(photos / "a first one.png")
    shards = [Path(extract(photos, tmp_path / "f.h5", config, shard=(index, 2)).output) for index in (1, 2)]
    assert merge_stores(shards, tmp_path / "f.h5").rows == 9


def test_a_shard_without_a_picture_is_done_and_merges_but_not_one_that_reached_no_file(
    photos: Path, config: ExtractConfig, tmp_path: Path
) -> None:
    kept = [f"photos/{path.name}" for path in photos.glob("*.png")]  # two
    (tmp_path / "0.jpg").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in ["0.jpg", "1.jpg", *kept]))
    for overwrite in (False, True):
        first = extract(tmp_path / "list.txt", tmp_path / "f.h5", config, shard=(1, 2), overwrite=overwrite)
        assert [failure.key for failure in first.failures] == ["0.jpg", "1.jpg"]
    second = extract(tmp_path / "list.txt", tmp_path / "f.h5", config, shard=(2, 2))
    assert merge_stores([Path(first.output), Path(second.output)], tmp_path / "f.h5").rows == 2
    (tmp_path / "0.jpg").unlink()
    with pytest.raises(InputError, match=r"none of 2 images can be read \(0\.jpg: no such file"):
        extract(tmp_path / "list.txt", tmp_path / "f.h5", config, shard=(1, 2))


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (Path("a.b/f.h5"), Path("a.b/f-00002-of-00008.h5")),
        (Path("../f"), Path("../f-00002-of-00008")),
        ("s3://bucket.x/f.h5", "s3://bucket.x/f-00002-of-00008.h5"),
        ("s3://bucket.x/f", "s3://bucket.x/f-00002-of-00008"),
    ],
)
def test_a_shard_is_named_beside_the_whole(output: Path | str, named: Path | str) -> None:
    assert shard_path(output, 2, 8) == named


@pytest.mark.parametrize("shard", [(3, 2), (0, 0), (0, 2)])
def test_a_shard_that_is_none_of_the_list_is_refused(shard: tuple[int, int], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`shard` must be \(I, N\) with I from 1 to N"):
        extract(photos, tmp_path / "f.h5", shard=shard)
    assert not [*tmp_path.glob("*.h5")]


def test_a_store_made_in_two_precisions_names_both(
    photos: Path, config: ExtractConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extract(photos, tmp_path / "f.h5", config, limit=4)
    extract(photos, tmp_path / "f.h5", replace(config, precision="bf16"), limit=6)
    extract(photos, tmp_path / "f.h5", replace(config, precision="bf16"))
    assert FeatureStore.open(tmp_path / "f.h5").made_by["engine"] == "cpu torch float32; cpu torch bfloat16"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("engine", "is_mixed"),
    [("cpu openvino float32; cpu openvino int8", True), ("cpu openvino int8", False), ("", False)],
)
def test_rows_of_int8_beside_others_are_reported(engine: str, is_mixed: bool) -> None:
    note = f"holds rows of int8 and others ({engine}); `overwrite` makes all of them again"
    assert mixture_note({"engine": engine}) == (note if is_mixed else None)


@needs_fast_int8
def test_a_store_that_int8_extends_is_reported_once(
    photos: Path, config: ExtractConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extract(photos, tmp_path / "f.h5", config, limit=4)
    for _ in range(2):
        extract(photos, tmp_path / "f.h5", replace(config, engine="openvino", precision="int8"))
    engines = FeatureStore.open(tmp_path / "f.h5").made_by["engine"]
    assert engines == "cpu torch float32; cpu openvino int8"
    assert caplog.messages == [f"{tmp_path / 'f.h5'}: {mixture_note({'engine': engines})}"]
