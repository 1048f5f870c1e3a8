"""The root command: global options, subcommands imported only when they run, and the one place where failures end."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from castoff.cli.exits import Exit, Signalled, code_of, line_of, printable
from castoff.cli.globals import Globals, global_options

__all__ = ["COMMANDS", "COMPLETE_VARIABLE", "Command", "Group", "cli", "execute"]

COMPLETE_VARIABLE = "_CASTOFF_COMPLETE"

COMMANDS = {
    "run": "Run a command in a new machine made from an image.",
    "rootfs": "Build, list, show, remove and verify bootable root filesystems.",
    "publish": "Publish the rootfs artifact of an image, so that any host can boot it before its data is there.",
    "preload": "Make images ready, so that their machines start at once.",
    "profile": "Look at boot profiles: what machines of an image read before they were ready.",
    "image": "Look at images and what of them is here.",
    "machine": "Make machines, look at them, and tell them what to do.",
    "app": "Create, list, show and delete apps: what machines, volumes and secrets belong to.",
    "volume": "Create, list, show, extend, copy and delete volumes: filesystems that outlive machines.",
    "secret": "Set, list and unset the secrets of an app: variables that its machines get.",
    "agent": "Run the agent: the Machines API, and machines that outlive it.",
    "fleet": "Look at the fleet: which hosts are there, what they have, and whether this one is seen.",
    "token": "Make, list and revoke the tokens of the agent's API.",
    "store": "Look after what castoff keeps on this host.",
    "trust": "List, add and remove the keys whose artifacts count on this host.",
    "key": "Show the key that this host signs artifacts with.",
    "timeline": "Draw stored timelines, several side by side.",
    "doctor": "Tell what this host can do, what it gives and how to get the rest.",
    "config": "Show and check the configuration.",
    "completion": "Print the completion script of a shell.",
    "version": "Print the versions of castoff and of what it stands on.",
}
"""Every subcommand and its line in ``castoff --help``, which imports none of them: each would cost its imports."""

_MODULES = {"app": "apps"}
"""Where a command's module has another name than the command: this one is castoff.cli.app."""


class _TakesGlobals(click.Command):
    """Takes the global options too, because behind the subcommand is where people type them."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *global_options(environment=False)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        names = {option.name for option in global_options(environment=False)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                (shared if parameter.name in names else own).append(record)
        for title, records in (("Options", own), ("Global options", shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class Command(_TakesGlobals):
    """A subcommand."""


class Group(_TakesGlobals, click.Group):
    """A subcommand with subcommands of its own."""

    command_class = Command


class _Root(click.Group):
    """The root group; knows its subcommands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"castoff.cli.{_MODULES.get(cmd_name, cmd_name)}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        ctx.ensure_object(Globals).command = name or ""
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


cli = _Root(
    name="castoff",
    params=list[click.Parameter](global_options(environment=True)),
    help="Turns OCI images into bootable root filesystems, without unpacking them, and runs them as microVMs.",
    epilog="`castoff COMMAND --help` tells more; exit codes and environment variables are in docs/cli.md.",
    no_args_is_help=True,
)


def execute(words: Sequence[str], *, entered: float) -> int:
    """Runs a command line.

    Args:
        words: The words after ``castoff``.
        entered: ``time.monotonic()`` when the program began to run.

    Returns:
        The exit code.
    """
    shared = Globals(entered=entered)
    try:
        code = _complete_words() if COMPLETE_VARIABLE in os.environ else _invoke(words, shared)
        sys.stdout.flush()
    except click.ClickException as error:
        return _usage(error, shared)
    except Signalled as error:
        return error.exit_code
    except BrokenPipeError as error:
        _leave_pipe()
        return code_of(error)
    except KeyboardInterrupt as error:
        return code_of(error)
    except Exception as error:
        return _failed(error, shared)
    return code


def _invoke(words: Sequence[str], shared: Globals) -> int:
    """Runs the command itself, without click's own ``main``, which turns EPIPE into 1 and Ctrl-C into a blank line."""
    try:
        with cli.make_context("castoff", list(words), obj=shared) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return result if isinstance(result, int) else Exit.OK


def _complete_words() -> int:
    from click.shell_completion import shell_complete

    return shell_complete(cli, {"obj": Globals()}, "castoff", COMPLETE_VARIABLE, os.environ[COMPLETE_VARIABLE])


def _usage(error: click.ClickException, shared: Globals) -> int:
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "castoff"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return _own(Exit.USAGE, shared)
    message = printable(error.format_message().rstrip("."))
    _say(f"{message[:1].lower()}{message[1:]}; `{path} --help` tells how it is used", shared)
    return _own(Exit.USAGE, shared)


def _failed(error: Exception, shared: Globals) -> int:
    _settle_output()
    if shared.debug:
        import traceback

        traceback.print_exception(error)
    console = getattr(error, "console", "")  # of a machine that was lost: castoff.machine.machine.MachineLost
    if console:
        print("\n".join(f"console: {line}" for line in console.splitlines()), file=sys.stderr)
    _say(line_of(error), shared)
    return _own(code_of(error), shared)


def _own(code: int, shared: Globals) -> int:
    """``run`` hands on the command's codes, so everything of castoff's own is one code there, as with ``docker run``."""
    return Exit.RUN_FAILED if shared.command == "run" else code


def _say(text: str, shared: Globals) -> None:
    name = click.style("castoff:", fg="red", bold=True) if shared.colours(sys.stderr) else "castoff:"
    try:
        print(name, text, file=sys.stderr, flush=True)
    except OSError:
        return  # stderr is gone too: the exit code is all that is left to say


def _settle_output() -> None:
    """What stdout still holds is written now or given up: failing once more at exit, Python would make the exit code 120."""
    try:
        sys.stdout.flush()
    except OSError:
        _leave_pipe()


def _leave_pipe() -> None:
    """Nobody takes our output any more; without this Python complains once more when it flushes at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
