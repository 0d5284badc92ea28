"""`captionmill completion`."""

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print the script that makes a shell complete commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and paths of captionmill.

    bash: add  eval "$(captionmill completion bash)"  to ~/.bashrc. zsh: the same with zsh, in ~/.zshrc. fish:
    captionmill completion fish > ~/.config/fish/completions/captionmill.fish

    Example: captionmill completion bash
    """
    shell_completion = get_completion_class(shell)
    assert shell_completion is not None  # for mypy: click knows all three
    program = shell_completion(ctx.find_root().command, {}, "captionmill", "_CAPTIONMILL_COMPLETE")
    click.echo(program.source())
