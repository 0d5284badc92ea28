"""The documents say what the program does."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from captionmill.cli import main

ROOT = Path(__file__).parents[2]
TOPS = ("data", "stages", "pipeline", "benchmarks", "scripts")
NOT_OURS = {
    *("resnext50_32x4d", "wide_resnet50_2"),  # of torchvision
    *("weight_ih_lK", "weight_hh_lK", "bias_ih_lK", "bias_hh_lK"),  # of torch, K a number
    "data_offsets",  # of safetensors
}


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def walk_commands(command: click.Command, *names: str) -> list[tuple[str, ...]]:
    found = [names]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += walk_commands(child, *names, name)
    return found


def test_the_command_page_is_the_programs_own_help() -> None:
    script = load_script("write_cli_docs")
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == script.render_cli_docs(), (
        "run: python scripts/write_cli_docs.py"
    )


def test_help_lists_the_commands_in_the_order_in_which_a_user_meets_them() -> None:
    names = main.list_commands(click.Context(main))
    assert sorted(names) == sorted(main.commands)
    stages = ["demo", "init", "run", "extract", "train", "evaluate", "caption", "completion"]
    assert [name for name in names if name in stages] == stages


@pytest.mark.parametrize("group", [main, main.commands["features"]], ids=["captionmill", "features"])
def test_the_list_of_commands_cuts_no_sentence(group: click.Group) -> None:
    listed = group.get_help(click.Context(group, terminal_width=80)).partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(group.commands)
    assert [line for line in listed if not re.fullmatch(r"  [a-z]+ +[A-Z][^.]*(\.md[^.]*)?\.", line)] == []


@pytest.mark.parametrize("names", walk_commands(main)[1:])
def test_every_command_and_option_has_help_and_every_command_an_example(names: tuple[str, ...]) -> None:
    command: click.Command = main
    for name in names:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    if not isinstance(command, click.Group):
        assert f"Example: captionmill {' '.join(names)}" in command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
    ],
)
def test_links_between_documents_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_a_name_of_the_code_in_a_page_is_there() -> None:
    modules = [ROOT / "__init__.py", *(path for top in TOPS for path in (ROOT / top).rglob("*.py"))]
    known = {name for path in modules for name in re.findall(r"\w+", path.read_text("utf-8"))} | NOT_OURS
    pages = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for path in [page for page in pages if page.name != "export.md"]:  # whose names are put together
        text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        snakes = set(re.findall(r"`(_[a-z]\w*|[A-Za-z]\w*_\w+)`", text))
        assert snakes <= known, (path.name, snakes - known)


def test_every_benchmark_has_a_section_and_the_page_stays_short() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    modules = (ROOT / "benchmarks").glob("*.py")
    scripts = {path.name for path in modules if "__main__" in path.read_text("utf-8")}
    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    assert scripts | folders == set(re.findall(r"python benchmarks/(\w+(?:\.py)?)", page))
    assert len(page.splitlines()) <= 350


def test_a_benchmark_has_one_table_and_at_most_four_sentences() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    _, *sections = re.split(
        r"^## ", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE
    )
    assert len(sections) > 15
    for section in sections:
        title, text = section.split("\n", 1)
        prose = " ".join(line for line in text.splitlines() if not line.startswith("|"))
        assert len(re.findall(r"[.!?](?=\s|$)", prose)) in range(1, 5), title
        assert len(re.findall(r"^\|[-|]+\|$", text, flags=re.MULTILINE)) == 1, title
