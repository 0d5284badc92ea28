"""What `import captionmill` gives: names without their weight, paths as strings, types in a stranger's environment."""

import ast
import configparser
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import TINY_TRAINING, make_model, make_rows, make_store, make_task

import captionmill
from captionmill import (
    BootstrapConfig,
    CacheConfig,
    Captioner,
    CaptionmillError,
    EvaluateConfig,
    ExtractConfig,
    FeatureStore,
    LeakConfig,
    SearchConfig,
    TableConfig,
    TrainConfig,
)
from captionmill.data.tables.formats import read_captions

ROOT = Path(__file__).parents[1]
SEARCH = SearchConfig(beam_size=1, max_length=4)
THE_DOOR = {
    *(
        "BootstrapConfig",
        "CacheConfig",
        "CaptionFiles",
        "CaptionedImage",
        "Captioner",
        "CaptionmillError",
        "EvaluateConfig",
    ),
    *("ExtractConfig", "FeatureStore", "LeakConfig", "RunEvents", "SearchConfig", "SplitLists", "TableConfig"),
    *("__version__", "caption_folder", "caption_images", "evaluate", "explain", "extract", "read_model"),
    *("extract_for_captions", "open_spread"),
    *("TrainConfig", "TrainListener", "apply_decisions", "compare_tables", "pack_model", "run_pipeline", "train"),
    *("RetrievalFiles", "audit_captions", "search_store"),
}


def test_the_import_loads_nothing_and_the_first_use_of_a_name_its_module() -> None:
    program = """
import sys
import typing
before = set(sys.modules)
import captionmill
print(sorted(set(sys.modules) - before))
print(captionmill.SearchConfig.__module__, captionmill.read_model.__module__)
print(sorted({"torch", "torchvision"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['captionmill']\ncaptionmill.stages.settings captionmill.data.models.source\n[]\n"


def test_the_names_are_the_same_for_people_programs_and_type_checkers() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assert set(captionmill.__all__) == THE_DOOR == {*homes, "__version__"}
    assert set(dir(captionmill)) >= THE_DOOR
    for name, home in homes.items():
        found: Any = getattr(captionmill, name)
        assert f"{found.__module__}.{found.__qualname__}" == home
    assert captionmill.__version__ == importlib.metadata.version("captionmill")
    unknown = "extrakt"
    with pytest.raises(AttributeError, match="module 'captionmill' has no attribute 'extrakt'"):
        getattr(captionmill, unknown)


def test_the_api_page_lists_them() -> None:
    table = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("| name | what it is |")[2]
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == THE_DOOR


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: captionmill.search_store("f.h5", "model", "a dog", top=-1), "top"),
        (lambda: captionmill.audit_captions("f.h5", "c.csv", "model", top=0), "top"),
        (lambda: captionmill.extract("photos", "f.h5", limit=-1), "limit"),
        (lambda: captionmill.open_spread(-1, None).__enter__(), "jobs"),
        (lambda: captionmill.open_spread(1, None, wait_s=-1).__enter__(), "wait_s"),
        (lambda: captionmill.run_pipeline("pipeline.toml", jobs=0), "jobs"),
    ],
    ids=["search", "audit", "extract", "jobs", "wait", "run"],
)
def test_a_number_out_of_its_range_is_refused(call: Callable[[], object], name: str) -> None:
    with pytest.raises(CaptionmillError, match=f"`{name}` must be a (whole )?number of "):
        call()


def test_the_configurations_and_the_errors_are_those_of_the_package() -> None:
    kinds = (BootstrapConfig, EvaluateConfig, ExtractConfig, LeakConfig, SearchConfig, TableConfig, TrainConfig)
    homes = ("settings", "scoring.settings", "table_settings")
    for config in [kind() for kind in kinds]:
        assert type(config).__module__.removeprefix("captionmill.stages.") in homes
    with pytest.raises(CaptionmillError, match="`beam_size`"):
        SearchConfig(beam_size=0)


def test_every_folder_of_code_and_every_file_beside_it_is_packaged() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    rooms = {path.parent for top in ("data", "stages", "pipeline") for path in (ROOT / top).rglob("__init__.py")}
    names = {".".join(("captionmill", *room.relative_to(ROOT).parts)) for room in rooms}
    assert set(config["options"]["packages"].split()) == {"captionmill", *names}
    data = config["options.package_data"]
    assert data["captionmill"].split() == ["py.typed"]
    assets = {path.parent for room in rooms for path in room.rglob("*") if path.parent.name == "assets"}
    packaged = {ROOT.joinpath(*name.split(".")[1:], "assets") for name in data if data[name].split() == ["assets/*"]}
    assert packaged == assets


AS_GIVEN: list[Callable[[Path], Any]] = [str, Path]
ONE_MODEL: list[Callable[[Path], Any]] = [
    str,
    Path,
    lambda path: [str(path)],
    lambda path: (path,),
    lambda path: [path],
]
ONE_MODEL_IDS = ["str", "Path", "list of str", "tuple of Path", "list of Path"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model, with a store of two images that it fits."""
    store = make_store(tmp_path / "features.h5", ["a.jpg", "b.jpg"], make_rows(2))
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a red dog\nb.jpg,a blue cat\n")
    return make_model(tmp_path / "model", FeatureStore.open(store).spec)


@pytest.mark.parametrize("form", ONE_MODEL, ids=ONE_MODEL_IDS)
def test_one_model_is_one_model_however_it_is_named(
    form: Callable[[Path], Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = form(Path("model"))
    assert len(Captioner.load(named, device="cpu").bundles) == 1
    config = EvaluateConfig(device="cpu", search=SEARCH, bootstrap=BootstrapConfig(2))
    assert sorted(captionmill.evaluate("features.h5", named, "captions.csv", config).captions) == ["a.jpg", "b.jpg"]
    cache = CacheConfig(machine=ExtractConfig(device="cpu"))
    summary = captionmill.caption_folder("features.h5", named, "table.csv", SEARCH, cache=cache)
    assert summary.captioned == 2
    explained = captionmill.explain(
        "a.jpg", named, features="features.h5", captions="captions.csv", output="page.html", search=SEARCH
    )
    assert explained.caption == next(row.caption for row in read_captions("table.csv"))
    assert Path("page.html").exists()


@pytest.mark.parametrize("form", AS_GIVEN, ids=["str", "Path"])
def test_every_stage_takes_paths_as_strings_too(
    form: Callable[[Path], Any], photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    config = ExtractConfig("scenes-resnet14", weights=str(thin_weights), image_size=32, engine="torch", device="cpu")
    extracted = captionmill.extract(form(photos), form(tmp_path / "photos.h5"), config)
    assert (extracted.extracted, extracted.output) == (8, tmp_path / "photos.h5")
    features, captions = make_task(tmp_path)
    captionmill.train(form(features), form(captions), form(tmp_path / "trained"), TINY_TRAINING)
    assert captionmill.read_model(form(tmp_path / "trained")).splits["val"] == ["08.jpg", "09.jpg"]
    captionmill.pack_model(form(tmp_path / "trained"), form(tmp_path / "trained.tar"))
    assert captionmill.read_model(form(tmp_path / "trained.tar")).splits["val"] == ["08.jpg", "09.jpg"]
    assert len(FeatureStore.open(form(features))) == 10
    lines = ["[extract]", 'images = "../photos"', 'backbone = "scenes-resnet14"', "image_size = 32"]
    plan = tmp_path / "plan" / "pipeline.toml"
    plan.parent.mkdir()
    plan.write_text("\n".join([*lines, f'weights = "{thin_weights}"', ""]))
    outcomes = captionmill.run_pipeline(form(plan))
    assert [(outcome.task.id, outcome.is_made) for outcome in outcomes] == [("extract", True)]


STRANGER = """
import captionmill
from captionmill import CaptionmillError, ExtractConfig, SearchConfig


def caption_all(folder: str) -> dict[str, str]:
    captionmill.extract(folder, "features.h5", ExtractConfig(preprocess="squash"))
    try:
        images = captionmill.caption_images([folder, b""], ["a", "b"], search=SearchConfig(beam_size=3))
        return {image.name: image.text for image in images}
    except CaptionmillError as exc:
        return {captionmill.__version__: str(exc)}
"""
WRONG = {
    'captionmill.extract("photos", 3)': "arg-type",
    'captionmill.extract("photos")': "call-arg",
    'captionmill.caption_images(["a.jpg"], 5)': "arg-type",
    'captionmill.SearchConfig(beam_size="five")': "arg-type",
    'captionmill.ExtractConfig(backbone="resnet18")': "arg-type",
    "captionmill.extrakt": "attr-defined",
    'captionmill.read_model("model").vocabulary.upper()': "attr-defined",
    "captionmill.FeatureStore.open(3)": "arg-type",
}


def test_a_stranger_has_the_types_and_a_wrong_argument_is_refused(tmp_path: Path) -> None:
    """In an environment that holds nothing but the package, as if pip had put it there."""
    venv.create(tmp_path / "env")
    site_packages = sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "env")})
    Path(site_packages, "captionmill").symlink_to(ROOT)
    python = Path(sysconfig.get_path("scripts", "venv", {"base": str(tmp_path / "env")}), "python")
    (tmp_path / "good.py").write_text(STRANGER)
    (tmp_path / "wrong.py").write_text("import captionmill\n\n" + "\n".join(WRONG) + "\n")
    words = ["--strict", "--python-executable", str(python), "--cache-dir", os.devnull, "--config-file", ""]
    command = [sys.executable, "-m", "mypy", *words, "good.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.partition(":")[0] for line in lines] == ["wrong.py"] * len(WRONG), done.stdout + done.stderr
    assert [line.rpartition("[")[2].rstrip("]") for line in lines] == list(WRONG.values())
