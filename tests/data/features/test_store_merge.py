"""Merging makes the store that one extraction would have made, or says what is missing."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import add_part, column_start, make_rows, make_spec, make_store

from captionmill.data.errors import SpecMismatchError, StoreError
from captionmill.data.features.merge import MergeSummary, merge_stores
from captionmill.data.features.parts import part_paths, parts_dir
from captionmill.data.features.shard import Shard, shard_of
from captionmill.data.features.spec import FeatureSpec, StoredDtype
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.images.read import ImageSource

KEYS = [f"{number:02d} ü.jpg" for number in range(10)]
ROWS = make_rows(10)
SOURCES = [ImageSource(100 + number, 200 + number, 300 + number) for number in range(10)]


def write(
    path: Path,
    rows: Sequence[int],
    *,
    shard: Shard | None = None,
    spec: FeatureSpec | None = None,
    dtype: StoredDtype = "float32",
) -> Path:
    """A store of some of the ten rows."""
    with FeatureWriter(path, spec or make_spec(), dtype=dtype, made_by={"by": "test"}, shard=shard) as writer:
        writer.add([KEYS[row] for row in rows], ROWS[list(rows)], [SOURCES[row] for row in rows])
    return path


def write_shard(folder: Path, index: int, count: int, *, failed: int = 0) -> Path:
    """Shard `index` of `count` of the ten rows; its first `failed` images could not be read."""
    shard = replace(Shard.of(KEYS, index, count), failed=failed)
    return write(folder / f"{index}.h5", shard_of(range(10), index, count)[failed:], shard=shard)


def write_shards(folder: Path, count: int) -> list[Path]:
    return [write_shard(folder, index, count) for index in range(1, count + 1)]


def require_refusal(paths: Sequence[Path], message: str, kind: type[StoreError] = StoreError) -> None:
    """Merging `paths` fails with exactly `message`, and writes nothing."""
    output = paths[0].parent / "merged.h5"
    with pytest.raises(StoreError) as error:
        merge_stores(paths, output)
    assert (type(error.value), str(error.value)) == (kind, message)
    assert not output.exists()
    assert not parts_dir(output).exists()


@pytest.mark.parametrize("count", [1, 3, 10])
def test_merged_shards_are_the_store_of_one_extraction(tmp_path: Path, count: int) -> None:
    whole = FeatureStore.open(write(tmp_path / "whole.h5", range(10)))
    shards = write_shards(tmp_path, count)
    assert merge_stores(shards[::-1], tmp_path / "merged.h5") == MergeSummary(rows=10, stores=count)
    merged = FeatureStore.open(tmp_path / "merged.h5")
    assert merged.digest() == whole.digest()
    assert merged.verify() == []
    assert (merged.keys, merged.shard, merged.made_by) == (KEYS, None, {"by": "test"})
    np.testing.assert_array_equal(merged.read(range(10)), ROWS)
    assert [merged.source(key) for key in KEYS] == SOURCES


def test_shards_of_no_image_merge_with_the_others(tmp_path: Path) -> None:
    whole = FeatureStore.open(write(tmp_path / "whole.h5", range(10)))
    merge_stores(write_shards(tmp_path, 12), tmp_path / "merged.h5")
    assert FeatureStore.open(tmp_path / "merged.h5").digest() == whole.digest()


def test_a_shard_of_which_no_image_could_be_read_merges_with_the_others(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path, 1, 5, failed=2), *(write_shard(tmp_path, index, 5) for index in range(2, 6))]
    assert merge_stores(shards, tmp_path / "merged.h5") == MergeSummary(rows=8, stores=5)
    assert FeatureStore.open(tmp_path / "merged.h5").keys == KEYS[2:]


def test_images_that_could_not_be_read_are_not_missed(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path, 1, 2, failed=2), write_shard(tmp_path, 2, 2)]
    assert merge_stores(shards, tmp_path / "merged.h5") == MergeSummary(rows=8, stores=2)
    assert FeatureStore.open(tmp_path / "merged.h5").keys == KEYS[2:]


def test_plain_stores_merge_row_by_row_in_the_order_of_keys(tmp_path: Path) -> None:
    paths = [write(tmp_path / "odd.h5", range(1, 10, 2)), write(tmp_path / "even.h5", range(0, 10, 2))]
    assert merge_stores(paths, tmp_path / "merged.h5") == MergeSummary(rows=10, stores=2)
    merged, whole = (
        FeatureStore.open(tmp_path / "merged.h5"),
        FeatureStore.open(write(tmp_path / "whole.h5", range(10))),
    )
    assert merged.digest() == whole.digest()
    np.testing.assert_array_equal(merged.read(range(10)), ROWS)


def test_stores_in_parts_merge_as_they_read(tmp_path: Path) -> None:
    first = write(tmp_path / "1.h5", range(3))
    add_part(first, [KEYS[1], KEYS[5]], ROWS[[8, 9]])
    merge_stores([first, write(tmp_path / "2.h5", [3, 4])], tmp_path / "merged.h5")
    merged = FeatureStore.open(tmp_path / "merged.h5")
    assert (merged.keys, merged.part_count) == (KEYS[:6], 0)
    np.testing.assert_array_equal(merged.read(range(6)), ROWS[[0, 8, 2, 3, 4, 9]])


def test_float16_stores_stay_float16(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{start}.h5", range(start, start + 5), dtype="float16") for start in (0, 5)]
    merge_stores(paths, tmp_path / "merged.h5")
    merged = FeatureStore.open(tmp_path / "merged.h5")
    assert merged.dtype == "float16"
    np.testing.assert_array_equal(merged.read(range(10)), ROWS.astype(np.float16))


def test_more_rows_than_a_block_arrive_whole(tmp_path: Path) -> None:
    keys, rows = [f"{number:04d}" for number in range(3000)], make_rows(3000)
    paths = [
        make_store(tmp_path / "1.h5", keys[:2500], rows[:2500]),
        make_store(tmp_path / "2.h5", keys[2500:], rows[2500:]),
    ]
    merge_stores(paths, tmp_path / "merged.h5")
    merged = FeatureStore.open(tmp_path / "merged.h5")
    assert merged.keys == keys
    assert merged.verify() == []
    np.testing.assert_array_equal(merged.read(range(3000)), rows)


def test_a_damaged_row_stays_known_as_damaged_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_shards(tmp_path, 3)
    content = bytearray(shards[1].read_bytes())
    content[column_start(shards[1], "features") + 32 + 5] ^= 1
    content[content.index("03 ü.jpg".encode()) + 3] ^= 0x40  # the first byte of the ü
    shards[1].write_bytes(content)
    damaged = FeatureStore.open(shards[1]).verify()
    assert damaged == ["03 \\x83\\xbc.jpg", "04 ü.jpg"]
    summary = merge_stores(shards, tmp_path / "merged.h5")
    assert FeatureStore.open(tmp_path / "merged.h5").verify() == damaged == list(summary.damaged)
    (message,) = caplog.messages
    what = "2 rows are damaged, that of 03 \\x83\\xbc.jpg first; run extract again, which makes damaged rows again"
    assert message == f"{tmp_path / 'merged.h5'}: {what}"


def test_missing_shards_are_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 10)
    require_refusal([*shards[:3], *shards[4:]], "1 of 10 shards missing: 4")
    require_refusal(shards[1:4], "7 of 10 shards missing: 1, 5, 6, 7, 8, ...")


def test_an_image_in_two_stores_is_named(tmp_path: Path) -> None:
    paths = [write(tmp_path / "1.h5", range(7)), write(tmp_path / "2.h5", [9, 6])]
    require_refusal(paths, "1 images are in two of the stores: 06 ü.jpg")
    write(tmp_path / "2.h5", range(10))
    require_refusal(
        paths, f"7 images are in two of the stores: {KEYS[0]}, {KEYS[1]}, {KEYS[2]}, {KEYS[3]}, {KEYS[4]}, ..."
    )


def test_a_shard_given_twice_is_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 5)
    require_refusal([*shards, shards[2]], f"2 images are in two of the stores: {KEYS[4]}, {KEYS[5]}")


def test_rows_of_another_network_are_refused_with_both_values(tmp_path: Path) -> None:
    first = write(tmp_path / "1.h5", [0])
    second = write(tmp_path / "2.h5", [1], spec=make_spec(preprocess="squash"))
    require_refusal(
        [first, second],
        f"{first} and {second} do not fit: {first} has preprocess: crop, not squash",
        SpecMismatchError,
    )


def test_rows_of_another_dtype_are_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.h5", [0]), write(tmp_path / "2.h5", [1], dtype="float16")
    require_refusal([first, second], f"{first} holds float32 rows, and {second} float16 rows")


@pytest.mark.parametrize("other", [Shard.of([*KEYS, "new.jpg"], 2, 2), Shard.of(KEYS, 2, 3)])
def test_shards_of_different_lists_are_refused(tmp_path: Path, other: Shard) -> None:
    first, second = write_shard(tmp_path, 1, 2), write(tmp_path / "2.h5", range(5, 10), shard=other)
    require_refusal([first, second], f"{second} and {first} are shards of different lists of images")


def test_a_shard_that_lacks_rows_is_refused(tmp_path: Path) -> None:
    first = write_shard(tmp_path, 1, 2)
    second = write(tmp_path / "2.h5", [5, 6, 7], shard=replace(Shard.of(KEYS, 2, 2), failed=1))
    require_refusal([first, second], f"{second}: 3 rows and 1 failures of 5 images; run its extraction again")


def test_a_shard_whose_extraction_was_interrupted_is_refused(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, 2)
    add_part(second, [KEYS[9]], ROWS[9:])
    require_refusal([first, second], f"{second}: an unfinished shard, or no shard at all; finish its extraction first")


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_plain_store_among_shards_is_refused(tmp_path: Path, order: list[int]) -> None:
    paths = [write_shard(tmp_path, 1, 2), write(tmp_path / "plain.h5", range(5, 10))]
    require_refusal(
        [paths[place] for place in order],
        f"{paths[1]}: an unfinished shard, or no shard at all; finish its extraction first",
    )


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / "1.h5", [0]), tmp_path / "2.h5"]
    with pytest.raises(StoreError, match=r"2\.h5: no such feature store"):
        merge_stores(paths, tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()


def test_an_output_that_exists_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    output = write(tmp_path / "merged.h5", range(4))
    before = output.read_bytes()
    paths = write_shards(tmp_path, 2)
    with pytest.raises(StoreError) as error:
        merge_stores(paths, output)
    assert str(error.value) == f"{output}: exists already; pass `overwrite` to replace it"
    assert output.read_bytes() == before
    merge_stores(paths, output, overwrite=True)
    assert FeatureStore.open(output).keys == KEYS


def test_an_output_of_parts_alone_exists_too(tmp_path: Path) -> None:
    output = tmp_path / "merged.h5"
    add_part(output, ["old.jpg"], make_rows(1))
    with pytest.raises(StoreError, match="exists already"):
        merge_stores(write_shards(tmp_path, 2), output)
    assert FeatureStore.open(output).keys == ["old.jpg"]


def test_overwriting_replaces_the_parts_of_the_old_store_too(tmp_path: Path) -> None:
    output = write(tmp_path / "merged.h5", range(4))
    add_part(output, [KEYS[0], "old.jpg"], make_rows(2, seed=1))
    merge_stores(write_shards(tmp_path, 2), output, overwrite=True)
    merged = FeatureStore.open(output)
    assert part_paths(output) == []
    assert merged.keys == KEYS
    np.testing.assert_array_equal(merged[KEYS[0]], ROWS[0])


@pytest.mark.parametrize("deleted", [0, 1])
def test_a_kill_while_a_store_is_replaced_leaves_the_rows_of_its_parts(
    deleted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write(tmp_path / "merged.h5", range(4))
    add_part(output, [KEYS[0], "old.jpg"], make_rows(2, seed=1))
    add_part(output, ["older.jpg"], make_rows(1, seed=2))
    before = FeatureStore.open(output).digest()
    parts, unlink = part_paths(output), Path.unlink

    def stop_at_a_part(path: Path, missing_ok: bool = False) -> None:
        if path == parts[deleted]:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stop_at_a_part)
    with pytest.raises(KeyboardInterrupt):
        merge_stores(write_shards(tmp_path, 2), output, overwrite=True)
    assert FeatureStore.open(output).digest() == before
    monkeypatch.undo()
    merge_stores(write_shards(tmp_path, 2), output, overwrite=True)
    assert FeatureStore.open(output).keys == KEYS


def test_a_refused_merge_leaves_the_output_to_overwrite_as_it_was(tmp_path: Path) -> None:
    output = write(tmp_path / "merged.h5", range(4))
    add_part(output, ["old.jpg"], make_rows(1))
    before = FeatureStore.open(output).digest()
    with pytest.raises(StoreError, match="1 of 2 shards missing: 2"):
        merge_stores(write_shards(tmp_path, 2)[:1], output, overwrite=True)
    assert FeatureStore.open(output).digest() == before


def test_an_output_that_another_process_writes_to_is_not_overwritten(tmp_path: Path) -> None:
    output, paths = tmp_path / "merged.h5", write_shards(tmp_path, 2)
    with FeatureWriter(output, make_spec(), dtype="float32", made_by={}) as writer:
        writer.add(["theirs.jpg"], make_rows(1))
        writer.flush()
        with pytest.raises(StoreError, match="another process is writing to this store"):
            merge_stores(paths, output, overwrite=True)
    assert FeatureStore.open(output).keys == ["theirs.jpg"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_an_input_is_refused(tmp_path: Path, overwrite: bool) -> None:
    paths = write_shards(tmp_path, 2)
    before = paths[1].read_bytes()
    output = tmp_path / ".." / tmp_path.name / "2.h5"
    with pytest.raises(StoreError) as error:
        merge_stores(paths, output, overwrite=overwrite)
    assert str(error.value) == f"{output}: is one of the stores to merge; name another output"
    assert paths[1].read_bytes() == before


def test_shards_cover_each_image_once_in_order_and_evenly() -> None:
    for image_count in [*range(40), 1000, 1_000_003]:
        images = range(image_count)
        for count in [1, 2, 3, 7, 8, 39, 64]:
            shards = [shard_of(images, index, count) for index in range(1, count + 1)]
            starts = list(accumulate(map(len, shards), initial=0))
            assert shards == [images[start:stop] for start, stop in pairwise(starts)]
            assert starts[-1] == image_count
            assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_knows_its_list_and_its_share_of_it() -> None:
    shard = Shard.of(["a", "b", "c"], 2, 2)
    assert (shard.index, shard.count, shard.images, shard.failed) == (2, 2, 2, 0)
    assert shard.list_sha256 == Shard.of(["a", "b", "c"], 1, 2).list_sha256
    assert shard.list_sha256 != Shard.of(["a", "b", "d"], 2, 2).list_sha256


def test_merged_stores_name_the_engines_of_all(tmp_path: Path) -> None:
    paths = [tmp_path / "1.h5", tmp_path / "2.h5", tmp_path / "3.h5"]
    for row, (path, engine) in enumerate(zip(paths, ("cuda torch float16", "cpu a; cpu b", "cpu a"), strict=True)):
        with FeatureWriter(path, make_spec(), dtype="float32", made_by={"engine": engine}) as writer:
            writer.add([KEYS[row]], ROWS[[row]])
    merge_stores(paths, tmp_path / "merged.h5")
    assert FeatureStore.open(tmp_path / "merged.h5").made_by == {"engine": "cuda torch float16; cpu a; cpu b"}
