"""``castoff completion``: the script that makes a shell complete castoff's words."""

from __future__ import annotations

import click

from castoff.cli.app import COMPLETE_VARIABLE, Command, cli

__all__ = ["command"]


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash  castoff completion bash > /etc/bash_completion.d/castoff
    zsh   castoff completion zsh > "${fpath[1]}/_castoff"
    fish  castoff completion fish > ~/.config/fish/completions/castoff.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "castoff", COMPLETE_VARIABLE).source())
