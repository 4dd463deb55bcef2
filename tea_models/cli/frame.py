"""What all commands share: lazy loading, common options, and the one place that catches and exits."""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tea_models.caller import Caller
from tea_models.cli.exits import guarded
from tea_models.cli.output import Output
from tea_models.cli.progress import Bar
from tea_models.errors import UsageError
from tea_models.progress import Progress
from tea_models.settings import Settings

FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class App:
    """What a command gets: the resolved settings and where its output goes."""

    settings: Settings
    out: Output

    @property
    def caller(self) -> Caller:
        """The person at the terminal: sees progress and notes on stderr."""
        return Caller(self.settings, Bar(sys.stderr) if self.out.live else Progress(), self.out.note)


class LazyGroup(click.Group):
    """A group whose commands live in modules of `package` that have their name, or the one that `homes` says.

    Where a name is not in `commands`, the groups that `entry_points` brings are asked.
    """

    def __init__(
        self,
        *,
        package: str,
        commands: Mapping[str, str],
        homes: Mapping[str, str] | None = None,
        entry_points: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, **options)
        self.package = package
        self.lazy = commands
        self.homes = homes or {}
        self.entry_points = entry_points
        click.version_option(package_name="tea-models", message="%(prog)s %(version)s")(self)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module = importlib.import_module(f"{self.package}.{self.homes.get(cmd_name, cmd_name)}")
            found = (one for one in vars(module).values() if isinstance(one, click.Command) and one.name == cmd_name)
            command = next(found)
            if ctx.resilient_parsing:  # the shell asks how a word could go on
                _complete_models(command)
            return command
        others = self.others()
        for other in others:
            if cmd_name in other.lazy:
                return other.get_command(ctx, cmd_name)
        if ctx.resilient_parsing:  # the shell asks how a word could go on
            return None
        known = [*self.lazy, *(name for other in others for name in other.lazy)]
        near = difflib.get_close_matches(cmd_name, known, n=1)
        raise click.UsageError(f"no command {cmd_name!r}." + (f" Did you mean {near[0]!r}?" if near else ""), ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for other in (self, *self.others()):
            with formatter.section("Commands" if other is self else f"Commands of {other.name}, here too"):
                formatter.write_dl(list(other.lazy.items()))

    def others(self) -> list[LazyGroup]:
        """The groups that installed distributions add; looked for only when a command is not found here."""
        if self.entry_points is None:
            return []
        from importlib.metadata import entry_points

        return [entry.load()() for entry in entry_points(group=self.entry_points)]


def _complete_models(command: click.Command) -> None:
    """Let the shell complete models, where a command takes them."""

    def complete(_ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from tea_models.registry.entries import Registry

        if any(mark in incomplete for mark in "/.~"):
            return [CompletionItem(incomplete, type="file")]
        entries = Registry.load(Settings.resolve(os.environ, cwd=Path.cwd())).entries.values()
        known = [entry.name for entry in entries]
        if ":" in incomplete:
            known = [f"{entry.name}:{variant}" for entry in entries for variant in entry.variants]
        return [CompletionItem(name) for name in known if name.startswith(incomplete)]

    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.name in ("name", "names", "model", "ref", "refs"):
            parameter.shell_complete = complete  # type: ignore[assignment]


def answering(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`, `--quiet` and `--offline`, and an `App` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="No notes and no progress on stderr.")
    @click.option("--offline", is_flag=True, help="Fetch nothing.")
    @functools.wraps(function)
    def command(
        *args: Any, as_json: bool, quiet: bool, offline: bool, only_locked: bool = False, **options: Any
    ) -> Any:
        settings = Settings.resolve(os.environ, cwd=Path.cwd(), offline=offline or None, locked=only_locked or None)
        app = App(settings, Output.from_environment(os.environ, as_json=as_json, quiet=quiet))
        app.out.note_foreign_registry(settings)
        return function(app, *args, **options)

    return command


def together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one decorator, in the order in which `--help` shows them."""
    return lambda function: functools.reduce(lambda made, option: option(made), reversed(options), function)


# For commands that are given models by name. The nearest models.lock says what a name means in any case.
takes_locked = click.option("--locked", "only_locked", is_flag=True, help="Only models of the nearest models.lock.")
takes_lock_file = click.option(
    "--lock", "lock_path", type=FILE, default="models.lock", show_default=True, help="The lock file."
)


def run(command: click.Command, argv: Sequence[str]) -> int:
    """Run a command and turn whatever happens into an exit code and one message."""
    out = Output.from_environment(os.environ, as_json="--json" in argv, quiet=False)
    return guarded(lambda: _run(command, argv, out), out)


def _run(command: click.Command, argv: Sequence[str], out: Output) -> object:
    try:
        return command.main(args=list(argv), prog_name=command.name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        return 2
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"`{context.command_path} --help` shows the usage" if context else ""
        return out.error(UsageError(error.format_message(), hint=hint))
    except click.Abort:
        raise KeyboardInterrupt from None
