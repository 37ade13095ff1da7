"""Options that commands share, and what is read from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mpcache.generation.request import MOST_DRAFTS
from mpcache.policies import PolicySettings, check_policy, policy_settings
from mpcache.protocols.errors import ConfigError

prefill_block_option = click.option(
    "--prefill-block",
    type=click.IntRange(0),
    help="How many of the prompt's tokens go through the model at once: more take fewer rounds, and more memory. 0: a "
    "number that follows from the network.",
)
config = click.option(
    "--config", "path", type=click.Path(path_type=Path), required=True, help="The TOML file of this role."
)
backend = click.option(
    "--backend", type=click.Choice(["mpc", "crypten"]), default="mpc", show_default=True, help="crypten is a baseline."
)
insecure = click.option("--insecure", is_flag=True, help="Use no TLS. On loopback only, for tests.")


class Extended(click.Command):
    """A command that has further ones under it: without one of their names it is itself. further: by their names."""

    def __init__(self, *arguments: Any, further: dict[str, click.Command], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.further = further

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in self.further:
            return self.further[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            rows = [(name, command.get_short_help_str(80)) for name, command in self.further.items()]
            formatter.write_dl(rows)


def worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """How many processes work, and where: for `chosen_pool`."""
    for option in (
        click.option(
            "--ray", metavar="ADDRESS", help="Work on this Ray cluster (host:port, or local). Needs mpcache[ray]."
        ),
        click.option(
            "--workers", type=click.IntRange(1), help="Work in so many processes. Default with --ray: all of its CPUs."
        ),
    ):
        command = option(command)
    return command


def refuse_prompt(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise ConfigError(
            "a prompt does not belong on a command line, which every user of this machine can list: put it into a file "
            "and name that with --prompt-file, or give it on standard input"
        )


def prompt_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--prompt", hidden=True, expose_value=False, callback=refuse_prompt),
        click.option(
            "--prompt-file",
            type=click.Path(path_type=Path),
            help="File with the private prompt, or - for standard input. A newline at its end is left out.",
        ),
        click.option("--max-new-tokens", type=click.IntRange(1), help="How many tokens to generate at most."),
        click.option(
            "--fixed-length", is_flag=True, help="Always generate --max-new-tokens tokens, to hide the answer's length."
        ),
        click.option(
            "--json",
            "json_path",
            type=click.Path(path_type=Path),
            help="Also write the result as JSON, readable by you alone.",
        ),
    ):
        command = option(command)
    return command


def draft_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--max-passes",
            type=click.IntRange(0),
            help="With drafts: end after so many passes. 0: as many as --max-new-tokens may need.",
        ),
        click.option(
            "--draft",
            type=click.IntRange(0, MOST_DRAFTS),
            help="Try so many tokens ahead in each pass, guessed from the text. Gives the same answer in fewer passes, "
            "under a policy that takes drafts, such as full.",
        ),
    ):
        command = option(command)
    return command


def policy_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--policy",
            metavar="NAME[:KEY=VALUE]...",
            help="Cache policy, with the settings to change: mpcache:keep_ratio=1. `mpcache policies` lists them.",
        ),
        click.option(
            "--budget", type=float, help="How many tokens a step attends to. Below 1: a fraction of the prompt."
        ),
    ):
        command = option(command)
    return command


def chosen_policy(settings: PolicySettings, policy: str | None, budget: float | None) -> PolicySettings:
    """What the command line says; the settings where it says nothing."""
    chosen = settings if policy is None else policy_settings(policy)
    return check_policy(chosen if budget is None else replace(chosen, budget=budget))


def read_prompt(path: Path) -> str:
    """From a file, or from standard input for '-'. Raises ConfigError."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt in {path} cannot be read: {error}") from None
    return text.removesuffix("\n")  # an editor's last newline is no part of the prompt
