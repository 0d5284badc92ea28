"""A setting is written once: everything that shows, reads or checks it takes it from its one field."""

import importlib.util
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import click
import griffe
import numpy as np
import pytest
from click.testing import CliRunner

from captionmill.data.errors import PipelineError, SettingError
from captionmill.pipeline.plan.file import PlanFile
from captionmill.pipeline.terminal.options import setting_options, take_settings
from captionmill.pipeline.terminal.starting_plan import setting_lines
from captionmill.stages import settings
from captionmill.stages.fields import Configuration, SettingType, read_type, setting, settings_of
from captionmill.stages.scoring.settings import BootstrapConfig

Lens = Literal["one", "flip"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class MadeUpConfig(settings.ExtractConfig):
    """The settings of an extraction and five more, each written in one place."""

    sharpness: float = setting(0.5, "Sharpness of the image, in diopters.", least=0.25, most=8)
    lens: Lens | None = setting(None, "Lens of the camera.", unset="that of the file", example="flip")
    stops: tuple[int, ...] = setting((2, 4), "Stops of the aperture.", least=1)
    filters: int = setting(0, "Number of filters; many is 9.", least=0, most=9, words={"many": 9})
    mask: Path | None = setting(None, "Image that hides parts of each image.", example="mask.png")


NAMES = ("sharpness", "lens", "stops", "filters", "mask")


@click.command()
@setting_options(MadeUpConfig, "backbone", *NAMES)
def command(**options: Any) -> None:
    """Print the settings."""
    click.echo(take_settings(MadeUpConfig, options, "backbone", *NAMES))


def show(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(command, arguments, terminal_width=200, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def read_plan_file(folder: Path, text: str) -> MadeUpConfig:
    (folder / "p.toml").write_text(f"[extract]\n{text}\n")
    (section,) = PlanFile(folder / "p.toml").sections("extract")
    return section.settings(MadeUpConfig())


def test_its_option_has_flag_type_choices_default_and_help() -> None:
    text = show("--help")
    assert "--sharpness FLOAT RANGE" in text
    assert "Sharpness of the image, in diopters.  [default: 0.5; 0.25<=x<=8]" in text
    assert "--lens [one|flip]" in text
    assert "Lens of the camera.  [default: (that of the file)]" in text
    assert "--stops INTEGER RANGE" in text
    assert "--filters INTEGER|MANY" in text
    assert "--mask FILE" in text
    made = MadeUpConfig(sharpness=2.0, lens="one", stops=(1, 3), filters=9, mask=Path("m.png"))
    shown = show(
        *("--sharpness", "2", "--lens", "one", "--stops", "1", "--stops", "3"),
        *("--filters", "many", "--mask", "m.png"),
    )
    assert shown == f"{made}\n"
    assert show() == f"{MadeUpConfig()}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sharpness", "9"), "Invalid value for '--sharpness': 9.0 is not in the range 0.25<=x<=8."),
        (("--stops", "0"), "Invalid value for '--stops': 0 is not in the range x>=1."),
        (("--filters", "few"), "Invalid value for '--filters': 'few' is not a valid integer range."),
        (("--lens", "two"), "Invalid value for '--lens': 'two' is not one of 'one', 'flip'."),
    ],
)
def test_its_range_is_the_options(arguments: tuple[str, str], message: str) -> None:
    assert message in show(*arguments, code=2)


def test_it_has_a_line_in_the_file_of_init() -> None:
    assert setting_lines(MadeUpConfig, NAMES).splitlines() == [
        "# sharpness = 0.5  # Sharpness of the image, in diopters",
        '# lens = "flip"  # Lens of the camera (one, flip); if not set, that of the file',
        "# stops = [2, 4]  # Stops of the aperture",
        "# filters = 0  # Number of filters; many is 9",
        '# mask = "mask.png"  # Image that hides parts of each image',
    ]
    assert setting_lines(MadeUpConfig).startswith(setting_lines(settings.ExtractConfig))


def test_it_is_a_key_of_a_pipeline_file(tmp_path: Path) -> None:
    text = 'sharpness = 2\nlens = "one"\nstops = [1, 3]\nfilters = "many"\nmask = "m.png"\nimage_size = 64'
    made = read_plan_file(tmp_path, text)
    assert made == MadeUpConfig(
        image_size=64, sharpness=2.0, lens="one", stops=(1, 3), filters=9, mask=tmp_path / "m.png"
    )
    assert isinstance(made.sharpness, float)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sharpness = 0", "[extract] `sharpness` must be at least 0.25 and at most 8, not 0.0"),
        ('sharpness = "2"', "[extract] `sharpness` must be a number, not '2'"),
        ("sharpness = true", "[extract] `sharpness` must be a number, not True"),
        ("filters = [1]", "[extract] `filters` must be a whole number, not [1]; to try several, write them in"),
        ("stops = 3", "[extract] `stops` must be a list, not 3"),
        ("stops = [3, 0]", "[extract] `stops` must be at least 1, not 0"),
        ('mask = "s3://bucket/m.png"', "[extract] `mask` must be a local path, not 's3://bucket/m.png'"),
        ("sharpnes = 1", "[extract] has no key `sharpnes`; did you mean `sharpness`?"),
    ],
)
def test_a_pipeline_file_with_a_wrong_one_is_refused_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(PipelineError) as error:
        read_plan_file(tmp_path, line)
    assert str(error.value).startswith(f"{tmp_path / 'p.toml'}:2: {message}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sharpness": 9}, "`sharpness` must be at least 0.25 and at most 8, not 9"),
        ({"sharpness": float("nan")}, "`sharpness` must be a finite number, not nan"),
        ({"sharpness": None}, "`sharpness` must be a number, not None"),
        ({"lens": "two"}, "`lens` must be one of one, flip, not 'two'"),
        ({"filters": 1.5}, "`filters` must be a whole number, not 1.5"),
        ({"filters": True}, "`filters` must be a whole number, not True"),
        ({"stops": "12"}, "`stops` must be a list, not '12'"),
        ({"mask": 3}, "`mask` must be a path, not 3"),
        ({"compile": 1}, "`compile` must be true or false, not 1"),
        ({"weights": 1}, "`weights` must be a string, not 1"),
    ],
)
def test_python_is_refused_a_wrong_one_by_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        MadeUpConfig(**values)
    assert str(error.value) == message


def test_paths_may_be_strings_and_the_other_way_round_and_numbers_stay_as_they_are() -> None:
    values: dict[str, Any] = {"mask": "m.png", "weights": Path("w.pth"), "stops": [1], "sharpness": 1}
    made = MadeUpConfig(**values)
    assert (made.mask, made.weights, made.stops) == (Path("m.png"), "w.pth", (1,))
    assert isinstance(made.sharpness, int)  # what records and checkpoints hold is what was given


@pytest.mark.parametrize("rerank", ["matcher", "both"])
def test_a_training_without_the_matcher_that_its_search_needs_is_refused(rerank: settings.Rerank) -> None:
    with pytest.raises(SettingError, match=f"^`rerank` {rerank} needs a matcher: leave `matcher_epochs` 0 out$"):
        settings.TrainConfig(matcher_epochs=0, search=settings.SearchConfig(rerank=rerank))


def test_numbers_of_numpy_are_stored_as_pythons_which_json_knows() -> None:
    config = settings.TrainConfig(hidden_dim=cast(int, np.int64(24)), dropout=cast(float, np.float32(0.5)))
    assert json.loads(json.dumps([config.hidden_dim, config.dropout])) == [24, 0.5]


def test_the_api_page_has_its_default_range_and_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("setting_docs", ROOT / "scripts" / "setting_docs.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setitem(sys.modules, "made_up", sys.modules[__name__])
    (tmp_path / "made_up.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    module = griffe.load("made_up", search_paths=[tmp_path], extensions=griffe.load_extensions(script.SettingDocs))
    documented = {
        name: (attribute.value, attribute.docstring.value)
        for name, attribute in module["MadeUpConfig"].attributes.items()
    }
    assert documented["sharpness"] == ("0.5", "Sharpness of the image, in diopters. At least 0.25 and at most 8.")
    assert documented["lens"] == ("None", "Lens of the camera. One of one, flip. Default: that of the file.")
    assert (
        documented["filters"][1] == "Number of filters; many is 9. At least 0 and at most 9. 9 is the command's many."
    )
    assert str(module["MadeUpConfig"].parameters["sharpness"].default) == "0.5"


@pytest.mark.parametrize(
    ("annotation", "read"),
    [
        (settings.Backbone, SettingType(str, ("resnet50", "resnet101", "resnet152", "scenes-resnet14"))),
        (Lens | None, SettingType(str, ("one", "flip"), is_optional=True)),
        (tuple[Path, ...], SettingType(Path, is_list=True)),
        (float | None, SettingType(float, is_optional=True)),
        (bool, SettingType(bool)),
    ],
)
def test_one_reader_reads_every_kind_of_annotation(annotation: Any, read: SettingType) -> None:
    assert read_type(annotation) == read


@pytest.mark.parametrize("annotation", [dict[str, int], int | str, tuple[int, str], object])
def test_an_annotation_that_nothing_could_show_is_a_bug(annotation: Any) -> None:
    with pytest.raises(TypeError, match="is not a type that a setting can have"):
        read_type(annotation)


CONFIGURATIONS = [
    kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, Configuration)
]


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_every_setting_is_a_sentence_with_a_range_where_it_is_a_number(kind: type[Configuration]) -> None:
    known = settings_of(kind)
    assert {field.name for field in fields(kind)} - {*known} <= {"search", "bootstrap"}
    for one in known.values():
        assert one.help[0].isupper()
        assert one.help.endswith(".")
        assert one.default is not None or (one.unset and one.example is not None), one.name
        if one.type.kind in (int, float):
            assert one.least is not None, one.name
        if one.default is not None:
            assert one.accept(one.default) == one.default


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (settings.SearchConfig, {"beam_size": 10**23}, "`beam_size` must be at least 1 and at most 10000, not 10000"),
        (settings.SearchConfig, {"max_length": 10**12}, "`max_length` must be at least 1 and at most 10000, not 1000"),
        (settings.SearchConfig, {"top_k": 10**12}, "`top_k` must be at most 2147483647, not 1000000000000"),
        (settings.ExtractConfig, {"batch_size": 10**23}, "`batch_size` must be at least 1 and at most 1000000, not 1"),
        (settings.TrainConfig, {"max_epochs": 10**5000}, "`max_epochs` must be at most 2147483647, not a number of 1"),
        (settings.TrainConfig, {"learning_rate": 10**5000}, "`learning_rate` must be a finite number, not a number of"),
        (settings.ExtractConfig, {"weights": "a\0b"}, "`weights` must be without a NUL character, not 'a\\\\x00b'"),
        (BootstrapConfig, {"resamples": 10**12}, "`resamples` must be at least 1 and at most 1000000, not 1000000"),
    ],
)
def test_numbers_beyond_any_use_are_refused_at_once(
    kind: type[Configuration], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        kind(**values)
