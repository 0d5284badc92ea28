"""Errors raised below the terminal name parameters in backticks; here they become the options that a user types."""

import re

import click

_NAME = re.compile(r"`(\w+)`")


def as_typed(message: str, command: click.Command | None = None) -> str:
    """`message` with each parameter of `command` (default: the running one) as it is typed: --batch-size.

    A name that is not a parameter of it, such as a key of a pipeline file, keeps its backticks.
    """
    if command is None:
        context = click.get_current_context(silent=True)
        command = context.command if context else None
    typed = _typed_names(command) if command else {}
    return _NAME.sub(lambda found: typed.get(found[1], found[0]), message)


def _typed_names(command: click.Command) -> dict[str, str]:
    """How each parameter of `command`, or of the commands of a group, is typed, by its name and by its option's."""
    names: dict[str, str] = {}
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        names |= _typed_names(child)
    for parameter in command.params:
        long_names = [option for option in parameter.opts if option.startswith("--")]
        typed = long_names[0] if long_names else parameter.human_readable_name
        names |= dict.fromkeys((parameter.name or "", typed.removeprefix("--").replace("-", "_")), typed)
    return names
