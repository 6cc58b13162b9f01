"""Commands whose modules are imported when the command runs, so that `--help` and a mistyped word are answered at once."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommand(NamedTuple):
    """Where a command is, as ``module:name`` of a function or of a Typer application, and its line in the help of its group."""

    place: str
    short_help: str


class LazyGroup(TyperGroup):
    """A group of commands that imports the modules of ``lazy`` as late as possible. Its help shows ``lazy`` before other commands."""

    lazy: ClassVar[dict[str, LazyCommand]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._loaded = dict(self.commands)
        self.commands = {name: TyperCommand(name=name, short_help=command.short_help) for name, command in self.lazy.items()} | self._loaded

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.lazy and cmd_name not in self._loaded:
            self._loaded[cmd_name] = _load(cmd_name, self.lazy[cmd_name])
        return self._loaded.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        limit = formatter.width - 6 - max(map(len, self.commands))
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit)) for name, command in self.commands.items() if not command.hidden])


def _load(name: str, command: LazyCommand) -> Any:
    module, _, attribute = command.place.partition(":")
    found = getattr(import_module(f"animl_pipeline.cli.{module}"), attribute)
    parent = typer.Typer(callback=lambda: None, rich_markup_mode=None)  # with a callback, one command is a group, too
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=name, short_help=command.short_help)
    else:
        parent.command(name, short_help=command.short_help)(found)
    return typer.main.get_group(parent).commands[name]
