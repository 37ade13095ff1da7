"""The command line: `mpcache --help`. Each command is loaded when it is asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from mpcache import __version__
from mpcache.parties.logs import configure, log_service, one_line
from mpcache.parties.memory import keep_memory
from mpcache.protocols.errors import MpcacheError

_HERE = "mpcache.parties.command"
COMMANDS = {
    "bench": "mpcache.benchmarks.run.commands:bench",  # by name: the suite stands above the command line
    "certs": f"{_HERE}.roles:certs",
    "client": f"{_HERE}.ask:client",
    "dealer": f"{_HERE}.roles:dealer",
    "demo": f"{_HERE}.ask:demo",
    "doctor": f"{_HERE}.doctor:doctor",
    "gateway": f"{_HERE}.roles:gateway",
    "inspect": f"{_HERE}.look:inspect",
    "owner": f"{_HERE}.roles:owner",
    "plan": f"{_HERE}.look:plan",
    "policies": f"{_HERE}.look:list_policies",
}
"""Where each command is."""
SERVICES = ("dealer", "gateway", "owner")


class _Commands(click.Group):
    """Prints expected errors as one line, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in SERVICES:
            log_service()  # before the command's module imports gRPC, which reads then what it logs
        module, _, name = COMMANDS[cmd_name].partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MpcacheError as error:
            click.echo(f"mpcache: {one_line(str(error))}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@click.option("--verbose", is_flag=True, help="Log what the processes do, never a secret.")
def main(verbose: bool) -> None:
    """Answer private prompts with private language models.

    The model's owner sees no prompt, and the user sees no weights.
    """
    configure(verbose)
    keep_memory()
