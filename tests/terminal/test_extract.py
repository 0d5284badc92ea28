"""`extract` and `features` as a user runs them: shards, repair, export, and ends that nobody wished for."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from processes import Child, start_command

from captionmill.cli import main
from captionmill.data.features.parts import parts_dir
from captionmill.data.features.store import FeatureStore

THIN = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32", "--engine", "torch"]
THIN += ["--precision", "fp32", "--batch-size", "4"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments: object, code: int = 1) -> str:
    """The error line of a command that is expected to fail."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 small pictures."""
    folder = tmp_path_factory.mktemp("many") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(160):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def whole(many: Path, thin_weights: Path) -> FeatureStore:
    """The store of `many`, made without any trouble."""
    succeed("extract", many, "--output", many.parent / "whole.h5", *THIN, "--weights", thin_weights)
    return FeatureStore.open(many.parent / "whole.h5")


def start_extract(many: Path, output: Path, weights: Path, *, told: Path, before: str = "") -> Child:
    command = ["extract", many, "--output", output, *THIN, "--weights", weights, "--flush-every", 8]
    return start_command(*command, output=told, before=before)


def require_finished(output: Path, many: Path, weights: Path, whole: FeatureStore) -> None:
    """The next run goes on to what an uninterrupted one makes."""
    succeed("extract", many, "--output", output, *THIN, "--weights", weights)
    assert FeatureStore.open(output).digest() == whole.digest()
    assert not parts_dir(output).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_ended_extraction_flushes_first_and_says_so(
    number: signal.Signals, code: int, many: Path, thin_weights: Path, whole: FeatureStore, tmp_path: Path
) -> None:
    output, told = tmp_path / "f.h5", tmp_path / "told"
    with start_extract(many, output, thin_weights, told=told) as process:
        while len(list(parts_dir(output).glob("part-*.h5"))) < 2:
            assert process.is_running()
            time.sleep(0.001)
        process.send_signal(number)
        assert process.wait() == code
    stderr = told.read_text()
    assert stderr.endswith("A finished output is unchanged.\n")
    assert "Traceback" not in stderr
    store = FeatureStore.open(output)
    assert 16 <= len(store) < 160
    assert store.verify() == []
    assert store.keys == whole.keys[: len(store)]
    require_finished(output, many, thin_weights, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_rows_that_were_in_no_part_yet_are_flushed_at_the_signal(
    number: signal.Signals, code: int, many: Path, thin_weights: Path, whole: FeatureStore, tmp_path: Path
) -> None:
    signal_while_adding = f"""
import os
from captionmill.data.features.writer import PartWriter
add = PartWriter.add
def add_and_signal(self, *rows):
    add(self, *rows)
    if len(self._keys) == 40:
        os.kill(os.getpid(), {int(number)})
PartWriter.add = add_and_signal
"""
    output = tmp_path / "f.h5"
    command = ["extract", many, "--output", output, *THIN, "--weights", thin_weights, "--flush-every", 1_000_000]
    with start_command(*command, output=tmp_path / "told", before=signal_while_adding) as process:
        assert process.wait() == code
    store = FeatureStore.open(output)
    assert store.keys == whole.keys[:40]
    assert store.verify() == []
    require_finished(output, many, thin_weights, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("seconds", [0.01, 0])  # 0: asked again before the hook has ended, as on a busy machine
def test_a_signal_that_arrives_in_a_destructor_is_heard(
    number: signal.Signals, code: int, seconds: float, tmp_path: Path
) -> None:
    program = (
        "import os, time, click\n"
        "from captionmill.cli import main\n"
        "from captionmill.pipeline.terminal.endings import listen_to_signals\n"
        f"listen_to_signals(pause_s={seconds})\n"
        "class Dying:\n"
        f"    def __del__(self): os.kill(os.getpid(), {int(number)}); time.sleep(0.5)\n"
        "@main.command()\n"
        "def victim():\n"
        "    Dying()\n"
        "    for _ in range(1000): time.sleep(0.01)\n"
        "main(['victim'])\n"
    )
    with Child(program, output=tmp_path / "told") as process:
        assert process.wait() == code
    stderr = (tmp_path / "told").read_text()
    assert "Stopped. Features" in stderr
    assert "Traceback" not in stderr


def test_a_full_disk_is_a_one_line_error_and_keeps_what_is_stored(
    many: Path, thin_weights: Path, whole: FeatureStore, tmp_path: Path
) -> None:
    output, told = tmp_path / "f.h5", tmp_path / "told"
    limit_file_size = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
"""
    with start_extract(many, output, thin_weights, told=told, before=limit_file_size) as process:
        assert process.wait() == 1
    error = told.read_text().strip().splitlines()[-1]
    assert error == (
        f"Error: {output}: cannot be written (file too large); rows already in parts are safe, run again to resume"
    )
    store = FeatureStore.open(output)
    assert len(store) == 160  # each part is small enough, the joined file is not
    assert store.verify() == []
    require_finished(output, many, thin_weights, whole)


def test_shards_of_an_array_job_merge_to_the_whole_store(
    many: Path, thin_weights: Path, whole: FeatureStore, tmp_path: Path
) -> None:
    arguments = ["extract", many, "--output", tmp_path / "f.h5", *THIN, "--weights", thin_weights]
    first = succeed(*arguments, "--shard", "1/3")
    assert first.stdout.startswith(f"{tmp_path}/f-00001-of-00003.h5: 53 images found: 0 cached before, 53 extracted")
    succeed(*arguments, "--shard", "3/3")
    shards = sorted(tmp_path.glob("f-*.h5"))
    assert fail("features", "merge", *shards, "--output", tmp_path / "f.h5") == "Error: 1 of 3 shards missing: 2"
    succeed(*arguments, "--shard", "2/3")
    assert (
        "\n  shard 2 of 3: 53 images, 0 not readable\n"
        in succeed("features", "info", tmp_path / "f-00002-of-00003.h5").stdout
    )
    shards = sorted(tmp_path.glob("f-*.h5"))
    merged = succeed("features", "merge", *shards, "--output", tmp_path / "f.h5")
    assert merged.stdout == f"{tmp_path / 'f.h5'}: 160 rows of 3 stores\n"
    assert FeatureStore.open(tmp_path / "f.h5").digest() == whole.digest()
    assert "exists already" in fail("features", "merge", *shards, "--output", tmp_path / "f.h5")


def test_shards_that_are_added_later_have_the_preprocessing_of_those_that_are_there(
    photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    arguments = ["extract", photos, "--output", tmp_path / "f.h5", "--weights", thin_weights, "--quiet"]
    arguments += ["--backbone", "scenes-resnet14", "--image-size", "32", "--device", "cpu", "--engine", "torch"]
    succeed(*arguments, "--shard", "2/2", "--preprocess", "crop")  # what was usual in earlier versions
    succeed(*arguments, "--shard", "1/2")
    succeed("features", "merge", *sorted(tmp_path.glob("f-*.h5")), "--output", tmp_path / "f.h5")
    assert FeatureStore.open(tmp_path / "f.h5").spec.preprocess == "crop"
    for shard in tmp_path.glob("f-*.h5"):
        shard.unlink()
    succeed(*arguments, "--shard", "1/2", "--preprocess", "squash")  # the whole store is not what it writes


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", f"1/{'9' * 5000}"])
def test_a_shard_that_is_none_is_wrong_usage(shard: str, many: Path, tmp_path: Path) -> None:
    assert "is not I/N with I from 1 to N" in fail(
        "extract", many, "--output", tmp_path / "f.h5", "--shard", shard, code=2
    )


def test_workers_are_a_number_or_auto(many: Path, thin_weights: Path, tmp_path: Path) -> None:
    arguments = ["extract", many, "--output", tmp_path / "f.h5", *THIN, "--weights", thin_weights, "--limit", 8]
    succeed(*arguments, "--workers", "auto")
    succeed(*arguments, "--workers", "3", "--overwrite")
    assert "'many' is not a valid integer" in fail(*arguments, "--workers", "many", code=2)


def test_deleted_images_are_reported_and_pruned_only_when_asked(
    photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    arguments = ["extract", photos, "--output", tmp_path / "f.h5", *THIN, "--weights", thin_weights]
    succeed(*arguments)
    (photos / "red_0.png").unlink()
    (photos / "more" / "green_1.png").unlink()
    told = succeed(*arguments)
    assert f"{tmp_path / 'f.h5'}: no image is found for 2 rows; --prune removes such rows\n" in told.stderr
    assert len(FeatureStore.open(tmp_path / "f.h5")) == 8
    pruned = succeed(*arguments, "--prune")
    assert "2 rows removed: their images are no longer found\n" in pruned.stderr
    keys = FeatureStore.open(tmp_path / "f.h5").keys
    assert len(keys) == 6
    assert "red_0.png" not in keys
    assert "leave out --limit and --shard" in fail(*arguments, "--prune", "--limit", 2)


def test_extract_says_where_the_time_went_unless_it_is_to_be_quiet(
    photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    arguments = ["extract", photos, *THIN, "--weights", thin_weights]
    told = succeed(*arguments, "--output", tmp_path / "f.h5")
    line = next(line for line in told.stderr.splitlines() if "-bound: " in line)
    assert all(f"{name} " in line for name in ("reading", "decoding", "forward", "writing"))
    assert "-bound: " not in succeed(*arguments, "--output", tmp_path / "g.h5", "--quiet").stderr


def test_whatever_is_left_out_is_counted_in_every_summary(many: Path, thin_weights: Path, tmp_path: Path) -> None:
    photos, store = tmp_path / "photos", tmp_path / "f.h5"
    for name in ("a.png", "@eaDir/a.png/x.png", "#recycle/b.png", "._a.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes((many / "000.png").read_bytes())
    (photos / "c.nef").write_bytes(b"II*\0")
    left_out = "left out: 2 images in thumbnail folders and bins (#recycle, @eaDir), 1 hidden image"
    command = ["extract", photos, "--output", store, *THIN, "--weights", thin_weights, "--quiet"]
    result = succeed(*command)
    assert result.stdout.startswith(f"{store}: 2 images found: 0 cached before, 1 extracted, 1 failed; ")
    assert result.stdout.endswith(f"; {left_out}\n")
    assert "c.nef: RAW (NEF) is not supported; convert it to JPEG or PNG" in result.stderr
    assert f"  last run        2 images found, 1 failed; {left_out}\n" in succeed("features", "info", store).stdout
    (line,) = succeed(*command, "--log-format", "json").stdout.splitlines()
    expected = f"{store}: 2 images found: 1 cached before, 0 extracted, 1 failed; {left_out}"
    assert json.loads(line)["message"] == expected


def test_repair_drops_damaged_rows_and_extract_makes_just_these_again(
    photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "f.h5"
    arguments = ["extract", photos, "--output", path, *THIN, "--weights", thin_weights]
    succeed(*arguments)
    assert succeed("features", "repair", path).stdout == f"{path}: nothing is damaged\n"
    store = FeatureStore.open(path)
    digest = store.digest()
    content = bytearray(path.read_bytes())
    content[content.index(store["red_0.png"].tobytes()) + 100] ^= 4
    path.write_bytes(content)
    assert "features repair" in fail("features", "verify", path)
    repaired = succeed("features", "repair", path)
    assert repaired.stdout == f"{path}: 1 damaged row removed; run extract again\n"
    assert repaired.stderr == "  red_0.png\n"
    assert "9 images found: 7 cached before, 1 extracted, 1 failed" in succeed(*arguments).stdout
    assert FeatureStore.open(path).digest() == digest


def test_export_writes_rows_with_their_keys(photos: Path, thin_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    succeed("extract", photos, "--output", path, *THIN, "--weights", thin_weights)
    told = succeed("features", "export", path, "--output", tmp_path / "f.npy")
    assert told.stdout == f"{tmp_path / 'f.npy'}, {tmp_path / 'f.csv'}: 8 rows\n"
    store = FeatureStore.open(path)
    table = pd.read_csv(tmp_path / "f.csv")
    rows = np.load(tmp_path / "f.npy")
    assert table["key"].tolist() == store.keys
    np.testing.assert_array_equal(rows[table["row"]], store.read(range(8)))
    succeed("features", "export", path, "--output", tmp_path / "f.parquet")
    frame = pd.read_parquet(tmp_path / "f.parquet")
    assert frame["key"].tolist() == store.keys
    np.testing.assert_array_equal(np.stack(frame["features"].to_list()), rows)


def test_a_cluster_that_does_not_answer_is_a_one_line_error(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "distributed"
    )  # its defaults come first: with `set`, all that was added inside it is gone again
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "100ms"}):
        message = fail("extract", photos, "--output", tmp_path / "f.h5", "--cluster", "dask://127.0.0.1:9", "--wait", 0)
    assert message.startswith("Error: dask://127.0.0.1:9: no dask scheduler answers (")
