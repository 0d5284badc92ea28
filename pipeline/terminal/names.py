"""Errors raised below the terminal name parameters in backticks; here they become the options that a user types."""

import re

import click

_NAME = re.compile(r"`(\w+)`")


def as_typed(message: str, command: click.Command | None = None) -> str:
    """`message` with each parameter of `command` (default: the running one) as it is typed: --batch-size.

    Else as an option of another command, which the message advises. Other names keep their backticks, and so do all
    that are not its own in a command that reads a pipeline file, where they are keys.
    """
    context = click.get_current_context(silent=True)
    if command is None and context:
        command = context.command
    typed = _typed_names(command) if command else {}
    if context and command and "pipeline" not in {parameter.name for parameter in command.params}:
        others = _typed_names(context.find_root().command)
        typed = {name: option for name, option in others.items() if option.startswith("--")} | typed
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
