"""A pipeline file becomes a graph of tasks; what is wrong in it is told with its line and the nearest known name."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_model, make_spec
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.captions.files import CaptionFiles
from captionmill.data.errors import PipelineError
from captionmill.data.models.bundle import RERANKED_CIDER
from captionmill.pipeline.plan.file import find_line
from captionmill.pipeline.plan.graph import Graph, Task
from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, ExtractJob, TrainJob, with_chosen_models
from captionmill.pipeline.plan.read import read_plan
from captionmill.pipeline.plan.standing import setting_changes
from captionmill.stages.settings import ExtractConfig, SearchConfig, TrainConfig
from captionmill.stages.split_settings import SplitLists
from captionmill.stages.table_settings import TableConfig

PLAN = """
[extract]
images = "photos"
preprocess = "squash"
image_size = 32

[train]
captions = "references.csv"
hidden_dim = 16

[evaluate]

[caption]
images = "new"
"""


def read(folder: Path, text: str) -> Graph:
    (folder / "pipeline.toml").write_text(text)
    return read_plan(folder / "pipeline.toml")


def ids(graph: Graph) -> list[str]:
    return [task.id for task in graph.tasks]


def needs(graph: Graph, task_id: str) -> list[str]:
    (task,) = graph.find(task_id)
    return [need.id for need in graph.needs(task)]


def job_of(graph: Graph, task_id: str) -> ExtractJob | TrainJob | EvaluateJob | CaptionJob:
    (task,) = graph.find(task_id)
    return task.job


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("[evaluate]", "[evaluat]"), 11, "there is no table [evaluat]; did you mean `evaluate`?"),
        (("hidden_dim", "hiden_dim"), 9, "[train] has no key `hiden_dim`; did you mean `hidden_dim`?"),
        (("image_size = 32", 'image_size = "32"'), 5, "[extract] `image_size` must be a whole number, not '32'"),
        (("image_size = 32", 'compile = "yes"'), 5, "[extract] `compile` must be true or false, not 'yes'"),
        (('"squash"', '"stretch"'), 4, "[extract] `preprocess` must be one of crop, squash, whole, not 'stretch'"),
        (('images = "photos"', ""), 2, "[extract] needs `images`, a path"),
        (('captions = "references.csv"', "captions = 3"), 8, "[train] captions = 3: must be a path in quotes"),
        (("hidden_dim = 16", "dropout = 1.5"), 9, "[train] `dropout` must be at least 0 and at most 1, not 1.5"),
        (("hidden_dim = 16", "learning_rate = inf"), 9, "[train] `learning_rate` must be a finite number, not inf"),
        (("hidden_dim = 16", "hidden_dim = [8, 16]"), 9, "to try several, write them in [train.grid]"),
        (("hidden_dim = 16", "grid.hiden_dim = [8]"), 9, "grid has no key `hiden_dim`; did you mean `hidden_dim`?"),
        (("hidden_dim = 16", "grid.hidden_dim = 8"), 9, "grid.hidden_dim = 8: must be a list of values to try"),
        (("hidden_dim = 16", "[train.b]\n[train.b.grid]\nsee = [1]"), 11, "[train.b] grid has no key `see`"),
        (("hidden_dim = 16", 'features = "phots"'), 9, "[train] there is no extraction `phots`; known are none"),
        (("[evaluate]", '[evaluate]\nmodel = "bas"'), 12, "[evaluate] there is no training `bas`"),
        (('"new"', '"new"\nformt = "csv"'), 15, "[caption] has no key `formt`; did you mean `format`?"),
        (('"new"', '"new"\nformat = "xlsx"'), 15, "`format` must be one of csv, jsonl, parquet, not 'xlsx'"),
        (('"new"', '"new"\noutput = "new.xlsx"'), 15, "new.xlsx: a table of captions ends in .csv"),
        (('"new"', '"new"\nlow_confidence = 2'), 15, "`low_confidence` must be at least 0 and at most 1, not 2"),
        (
            ('"new"', '"new"\nsidecar = "txt"'),
            15,
            "`sidecar` must be the suffix of a text file, such as .txt, not 'txt'",
        ),
        (
            ('"new"', '"new"\nbeam_size = 3\ntop_k = 5'),
            16,
            "[caption] `top_k` does nothing without `sample`: set that too, or leave this out",
        ),
        (("[caption]", "[[caption]]"), 13, "`caption` must be a table: for several, write [caption.NAME] for each"),
        (("[caption]", '[caption."my new"]'), 13, "[caption.my new]: a name has letters, digits, - and _"),
        (("[caption]", '[caption.a]\nimages = "a"\nbeam = 2\n[caption.b]'), 15, "[caption.a] has no key `beam`"),
    ],
)
def test_a_plan_that_is_wrong_names_the_line_and_the_nearest_key(
    tmp_path: Path, change: tuple[str, str], line: int, message: str
) -> None:
    with pytest.raises(PipelineError) as error:
        read(tmp_path, PLAN.replace(*change))
    assert str(error.value).startswith(f"{tmp_path / 'pipeline.toml'}:{line}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train", "not TOML: "),
        ("", "describes nothing to do"),
        (PLAN.replace("[evaluate]", '[evaluate]\noutput = "captions.csv"'), "evaluate and caption both write "),
        (PLAN.replace('images = "new"', 'images = "new"\ngallery = "scores.json"'), "evaluate and caption both write "),
        (
            PLAN.replace("[caption]", '[caption]\ngallery = "page.html"\n[caption.a]\nimages = "a"\n[caption.b]'),
            "caption.a and caption.b both write ",
        ),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_a_one_line_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=f"pipeline.toml: {re.escape(message)}"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "names", "line"),
    [
        ("a = 1\n[b]\nc = 2\n", ["b", "c"], 3),
        ('[b]\nd = [\n  1,\n]\n"c" = 2\n', ["b", "c"], 5),
        ("[b]\nc = [\n  1,\n  2,\n]\n", ["b", "c"], 2),
        ("# c\nb.c = 1\n", ["b", "c"], 2),
        ('[b]\nt = """\nc = 1\n"""\n\nc = 2\n', ["b", "c"], 6),
        ("b = {a = 1, c = 2}\n", ["b", "c"], 1),
        ("[b.c]\n", ["b", "c"], 1),
        ("[b]\n", ["b", "c"], None),
    ],
)
def test_a_key_is_found_however_it_is_written(text: str, names: list[str], line: int | None) -> None:
    assert find_line(text, names) == line


def test_one_table_of_each_is_the_simplest_pipeline(tmp_path: Path) -> None:
    graph = read(tmp_path, PLAN)
    assert ids(graph) == ["extract", "train", "evaluate", "caption"]
    assert [task.output.relative_to(tmp_path).as_posix() for task in graph.tasks] == [
        "features.h5",
        "model",
        "scores.json",
        "captions.csv",
    ]
    assert needs(graph, "evaluate") == ["extract", "train"]
    assert needs(graph, "caption") == ["train"]
    assert job_of(graph, "extract").settings()["image_size"] == 32


def test_tables_with_names_share_what_their_kind_says(tmp_path: Path) -> None:
    graph = read(
        tmp_path,
        """
        [extract]
        preprocess = "squash"
        workers = 3
        extract.a.images = "a"
        extract.b = {images = "b", preprocess = "whole"}
        [train]
        captions = "c.csv"
        [train.a]
        [train.other]
        features = "b"
        seed = 4
        [caption.new]
        images = "new"
        model = "other"
        """.replace("        extract.a", "        a").replace("        extract.b", "        b"),
    )
    assert ids(graph) == ["extract.a", "extract.b", "train.a", "train.other", "caption.new"]
    assert job_of(graph, "extract.a").settings()["preprocess"] == "squash"
    assert job_of(graph, "extract.b").settings()["preprocess"] == "whole"
    assert needs(graph, "train.a") == ["extract.a"]
    assert needs(graph, "train.other") == ["extract.b"]
    caption = job_of(graph, "caption.new")
    assert isinstance(caption, CaptionJob)
    assert (caption.models, caption.machine.workers) == ((tmp_path / "models" / "other",), 3)


def test_a_grid_is_a_training_for_each_combination_and_each_is_scored(tmp_path: Path) -> None:
    grid = '[train.base]\ncaptions = "c.csv"\nmax_length = 9\n[train.base.grid]\nseed = [0, 1]\ntie_weights = [false]\n'
    graph = read(
        tmp_path, f'[extract]\nimages = "a"\n{grid}[evaluate]\n[caption]\nimages = "b"\nmodel = "base-seed-1*"\n'
    )
    assert ids(graph) == [
        "extract",
        "train.base-seed-0-tie_weights-false",
        "train.base-seed-1-tie_weights-false",
        "evaluate.base-seed-0-tie_weights-false",
        "evaluate.base-seed-1-tie_weights-false",
        "caption",
    ]
    job = job_of(graph, "train.base-seed-1-tie_weights-false")
    assert isinstance(job, TrainJob)
    assert (job.config.seed, job.config.tie_weights, job.config.search.max_length) == (1, False, 9)
    assert needs(graph, "caption") == ["train.base-seed-1-tie_weights-false"]


def test_a_grid_tries_how_validation_captions_are_decoded(tmp_path: Path) -> None:
    grid = '[train]\ncaptions = "c.csv"\ncandidates = 7\n[train.grid]\nrerank = ["none", "both"]\nmax_length = [9]\n'
    graph = read(tmp_path, f'[extract]\nimages = "a"\n{grid}')
    jobs = [job_of(graph, f"train.rerank-{rerank}-max_length-9") for rerank in ("none", "both")]
    found = [(job.config.search.rerank, job.config.reranks_validation) for job in jobs if isinstance(job, TrainJob)]
    assert found == [("none", False), ("both", True)]
    searches = [job.config.search for job in jobs if isinstance(job, TrainJob)]
    assert {(search.candidates, search.max_length) for search in searches} == {(7, 9)}
    refused = f'[extract]\nimages = "a"\n{grid}'.replace('["none", "both"]', '["best"]')
    with pytest.raises(PipelineError, match="`rerank` must be one of auto, none"):
        read(tmp_path, refused)
    both = f'[extract]\nimages = "a"\n{grid}matcher_epochs = [3]\n'.replace("candidates = 7", 'rerank = "none"')
    with pytest.raises(PipelineError, match="`matcher_epochs` does nothing with `rerank` none"):
        read(tmp_path, both)
    assert len(ids(read(tmp_path, both.replace('["none", "both"]', '["both"]')))) == 2  # with the extraction


def test_the_ending_of_a_table_follows_its_format_unless_output_names_it(tmp_path: Path) -> None:
    def output_and_format(lines: str) -> tuple[str, object]:
        job = job_of(read(tmp_path, f'[caption]\nimages = "new"\nmodel = "../m"\n{lines}'), "caption")
        return job.output.name, job.settings()["format"]

    assert output_and_format("") == ("captions.csv", "csv")
    assert output_and_format('format = "jsonl"') == ("captions.jsonl", "jsonl")
    assert output_and_format('output = "c.parquet"') == ("c.parquet", "parquet")
    assert output_and_format('output = "c.txt"\nformat = "jsonl"') == ("c.txt", "jsonl")


def test_what_was_made_elsewhere_is_named_by_its_path(tmp_path: Path) -> None:
    text = 'features = "f.h5"\ncaptions = "c.csv"\n'
    graph = read(tmp_path, f'[train]\n{text}[evaluate]\nmodel = "../m"\n{text}')
    assert ids(graph) == ["train", "evaluate"]
    job = job_of(graph, "evaluate")
    assert isinstance(job, EvaluateJob)
    assert job.models == (tmp_path.parent / "m",)
    assert needs(graph, "evaluate") == []
    with pytest.raises(
        PipelineError, match=r":1: \[evaluate\] needs `features`: this pipeline does not train the model"
    ):
        read(tmp_path, '[evaluate]\nmodel = "../m"\ncaptions = "c.csv"')
    with pytest.raises(PipelineError, match=r"\[train\] needs `features`, a feature store, or an \[extract\] table"):
        read(tmp_path, '[train]\ncaptions = "c.csv"')


def make_tasks(folder: Path) -> tuple[Task, Task, Task]:
    extract = ExtractJob(folder / "photos", folder / "f.h5", ExtractConfig())
    train = TrainJob(folder / "f.h5", CaptionFiles((folder / "c.csv",)), folder / "m", TrainConfig(), SplitLists())
    caption = CaptionJob(folder / "new", (folder / "m",), folder / "c.out", SearchConfig())
    return Task("x", extract), Task("y", train), Task("z", caption)


def test_tasks_in_any_order_become_a_graph_in_which_each_follows_what_it_needs(tmp_path: Path) -> None:
    extract, train, caption = make_tasks(tmp_path)
    graph = Graph.of([caption, train, extract])
    assert ids(graph) == ["extract.x", "train.y", "caption.z"]
    assert graph.forced_by("train") == {"train.y", "caption.z"}
    assert graph.forced_by("z") == {"caption.z"}
    assert graph.forced_by(None) == set()


def test_tasks_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    _, train, caption = make_tasks(tmp_path)
    assert isinstance(train.job, TrainJob)
    circle = Task("y", replace(train.job, captions=CaptionFiles((tmp_path / "c.out",))))
    with pytest.raises(PipelineError, match=r"y <- .*: each reads what the next writes; give one another `output`"):
        Graph.of([circle, caption])


def test_a_setting_that_an_older_version_did_not_know_counts_as_at_its_default() -> None:
    assert setting_changes({"a": 1}, {"a": 1, "new": 5}, {"new": 5}) == []
    assert setting_changes({"a": 1}, {"a": 2, "new": 6}, {"new": 5}) == ["a was 1, is 2", "new was 5, is 6"]


def test_init_writes_a_file_that_works_and_whose_every_setting_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    told = CliRunner().invoke(main, ["init", str(path)], catch_exceptions=False)
    assert told.stdout == f"{path}: fill in the paths, then: captionmill run {path} --dry-run\n"
    plain = read_plan(path)
    assert ids(plain) == ["extract", "train", "evaluate", "caption"]
    set_all, count = re.subn(
        r"^# (?!gallery|sidecar|metadata|tars|caption_template|low_confidence|max_|matcher_|patience|preprocess|init)"
        r"(\w+ = )",
        r"\1",
        path.read_text(),
        flags=re.M,
    )
    assert count > 50
    explicit = read(tmp_path, set_all)
    for before, after in zip(plain.tasks, explicit.tasks, strict=True):
        assert (before.output, before.job.settings()) == (after.output, after.job.settings())
    again = CliRunner().invoke(main, ["init", str(path)])
    assert again.stderr == f"Error: {path}: exists already; name another file\n"


def test_the_best_of_several_models_is_the_one_whose_captions_as_it_writes_them_score_best(tmp_path: Path) -> None:
    scores = {
        "plain": {"val_cider_d": 0.55},
        "better": {"val_cider_d": 0.5, RERANKED_CIDER: 0.62},
        "worse": {"val_cider_d": 0.52, RERANKED_CIDER: 0.6},
    }
    models = tuple(make_model(tmp_path / name, make_spec(), scores=found) for name, found in scores.items())
    job = CaptionJob(tmp_path, models, tmp_path / "c.csv", SearchConfig(), "best", ExtractConfig(), TableConfig())
    chosen = with_chosen_models(job)
    assert isinstance(chosen, CaptionJob)
    assert chosen.models == (tmp_path / "better",)


def test_the_several_that_init_shows_are_read_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    CliRunner().invoke(main, ["init", str(path)], catch_exceptions=False)
    shown = path.read_text().split("# Several tables of a kind")[1].split("\n", 1)[1]
    columns: list[str] = []
    for paragraph in re.split(r"^#$", shown, flags=re.M):
        lines = [re.split(r" {2,}", line[4:] + "  ", maxsplit=1) for line in paragraph.splitlines() if line]
        columns += [left for left, _ in lines]
        columns += [right for _, right in lines if right.startswith("[") or " = " in right]
    graph = read(tmp_path, "\n".join(columns))
    grid = [f"small-seed-{seed}-hidden_dim-{hidden_dim}" for seed in (0, 1, 2) for hidden_dim in (256, 512)]
    assert ids(graph) == [
        "extract.flickr",
        "extract.mine",
        *(f"train.{name}" for name in grid),
        *(f"evaluate.all-{name}" for name in grid),
        "evaluate.together",
        "caption.holidays",
        "caption.archive",
    ]
    assert needs(graph, "evaluate.together") == ["extract.flickr", *(f"train.{name}" for name in grid[1::2])]
    archive = job_of(graph, "caption.archive")
    assert isinstance(archive, CaptionJob)
    assert (archive.images, archive.several) == ("s3://bucket/archive", "ensemble")
