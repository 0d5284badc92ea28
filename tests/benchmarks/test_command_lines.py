"""The command lines in benchmarks/ fit the commands. Nothing is run: the scripts are read as syntax trees."""

import ast
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import click
import pytest

from captionmill.cli import main

ROOT = Path(__file__).parents[2]
SCRIPTS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "benchmarks").rglob("*.py"))]
WITH_COMMANDS = {
    *("ablation", "caption_scale", "extract", "flickr8k", "folder", "leaks", "rerank", "small_sets", "startup"),
    *("store", "train", "memory", "world"),
}
UNKNOWN = "{}"
"""Stands for a word, or a part of one, that is known only when the script runs."""

Values = dict[str, list[ast.expr]]
"""Each value that is assigned to a name."""


class Script:
    """The words that a script holds."""

    def __init__(self, path: str) -> None:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        self.nodes = list(ast.walk(tree))
        functions = [node for node in self.nodes if isinstance(node, ast.FunctionDef)]
        self.scopes = [(range(node.lineno, (node.end_lineno or 0) + 1), assigned_in(node)) for node in functions]
        self.scopes.sort(key=lambda scope: len(scope[0]))
        self.scopes.append((range(10_000), assigned_in(tree)))

    def values_of(self, name: ast.Name) -> list[ast.expr]:
        """What is assigned to a name in the innermost function that assigns it."""
        found = (values[name.id] for lines, values in self.scopes if name.lineno in lines and name.id in values)
        return [value for value in next(found, []) if not uses(value, name.id)]

    def word(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str() | int() | float() as value):
                return str(value)
            case ast.JoinedStr(values=parts):
                return "".join(map(self.word, parts))
            case ast.FormattedValue(value=value):
                return self.word(value)
            case ast.Name() if len(values := self.values_of(node)) == 1:
                return self.word(values[0])
        return UNKNOWN

    def words(self, node: ast.expr) -> list[str]:
        """The words of a list, those of all branches of a condition one after the other."""
        match node:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [word for element in elements for word in self.words_in_list(element)]
            case ast.IfExp(body=left, orelse=right) | ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.words(left) + self.words(right)
            case ast.BinOp(left=left, op=ast.Mult()):
                return self.words(left)
            case ast.Name():
                return [word for value in self.values_of(node) for word in self.words(value)]
        return []

    def words_in_list(self, node: ast.expr) -> list[str]:
        return self.words(node.value) if isinstance(node, ast.Starred) else [self.word(node)]

    def command_lines(self) -> Iterator[list[str]]:
        """The words of each command that is run, `["features", "merge", "--output", "a.h5"]`."""
        for node in self.nodes:
            words: list[str] = []
            match node:
                case ast.Call(func=func, args=arguments) if not ast.unparse(func).endswith(".add_argument"):
                    words = [word for argument in arguments for word in self.words_in_list(argument)]
                case ast.List():
                    words = self.words(node)
                    words = words[3:] if words[1:3] == ["-m", "captionmill"] else []
                case ast.Constant(value=str()) | ast.JoinedStr():
                    text = self.word(node)
                    words = shlex.split(text) if re.match(r"[a-z]+ [^\n]*--[a-z-]+", text) else []
            if words and words[0] in main.commands and any(word.startswith("--") for word in words):
                yield words

    def own_options(self) -> set[str]:
        calls = [node for node in self.nodes if isinstance(node, ast.Call)]
        return {self.word(call.args[0]) for call in calls if ast.unparse(call.func).endswith(".add_argument")}

    def literal_options(self) -> set[str]:
        """Every word that looks like an option, wherever it is."""
        words = [self.word(node) for node in self.nodes if isinstance(node, ast.Constant)]
        return {word for word in words if re.fullmatch(r"--[a-z][a-z-]*", word)}


@cache
def read_script(path: str) -> Script:
    return Script(path)


def assigned_in(block: ast.Module | ast.FunctionDef) -> Values:
    """The assignments of a block, without those of the functions in it."""
    values: Values = defaultdict(list)
    nodes: list[ast.AST] = list(block.body)
    for node in nodes:  # grows on the way
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                continue
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=assigned)):
                pairs = list(zip(names, assigned, strict=False))
            case ast.Assign(targets=names, value=value):
                pairs = [(name, value) for name in names]
            case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.AugAssign(target=target, value=value):
                pairs = [(target, value)]
            case _:
                pairs = []
        for name, value in pairs:
            if isinstance(name, ast.Name):
                values[name.id].append(value)
        nodes += ast.iter_child_nodes(node)
    return values


def uses(value: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(value))


@cache
def find_command(words: Sequence[str]) -> tuple[click.Command, int]:
    """The command that some words call, and how many of them are its name."""
    command, count = main.commands[words[0]], 1
    if isinstance(command, click.Group):
        command, count = command.commands[words[1]], 2
    return command, count


def require_fit(words: list[str]) -> None:
    """Raises click.UsageError if the command has no such option, or an option takes no such value."""
    command, count = find_command(tuple(words[:2]))
    context = click.Context(command, click.Context(main, **main.context_settings))  # a command keeps its help option
    values, _, given = command.make_parser(context).parse_args([*words[count:], UNKNOWN])  # a last option's value
    for option in given:
        value = values[option.name or ""]
        if isinstance(option, click.Option) and UNKNOWN not in str(value) and not isinstance(option.type, click.Path):
            option.type_cast_value(context, value)


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_script_passes_only_options_that_its_commands_have(path: str) -> None:
    script = read_script(path)
    lines = list(script.command_lines())
    assert bool(lines) == (Path(path).stem in WITH_COMMANDS)
    for words in lines:
        try:
            require_fit(words)
        except click.UsageError as error:
            pytest.fail(f"{path}: captionmill {shlex.join(words)}: {error.format_message()}")
    if lines:  # what is added when it runs, such as the rows of a table
        options = [option for words in lines for option in find_command(tuple(words[:2]))[0].params]
        known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        assert script.literal_options() <= known | script.own_options()


def test_usages_of_a_benchmark_name_only_options_that_it_has() -> None:
    wrong = []
    for page in [*SCRIPTS, "docs/benchmarks.md", "docs/scale.md"]:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for name, usage in re.findall(r"^python benchmarks/(\w+)(?:\.py)? (.*(?:\n    \[--.*)*)", text, re.M):
            own = read_script(f"benchmarks/{name}{'/__main__' * (name == 'faults')}.py").own_options()
            if f"--{UNKNOWN}" in own:  # an option for each kind
                own |= {f"--{kind}" for kind in usage.split("--")[0].split()}
            words = re.sub(r'"[^"]*"', "", usage).partition("--options")[0]  # without what another program is told
            wrong += [(page, name, option) for option in re.findall(r"--[a-z][a-z-]*", words) if option not in own]
    assert wrong == []
