"""Options that the benchmark commands share, and how their lists are read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.decode import Workload
from mpcache.benchmarks.measure.program import Program
from mpcache.generation.network import LOOPBACK, Network
from mpcache.policies import LabelledPolicy
from mpcache.protocols.errors import ConfigError

Command = Callable[..., None]
BACKENDS = ("plain", "crypten", "mpc")

json_option = click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the records as a JSON list."
)
out_option = click.option("--out", type=click.Path(path_type=Path), help="Keep the records here, and resume from them.")
tokens_option = click.option("--tokens", default="512,1024,2048", show_default=True, help="Lengths, joined by commas.")
model_option = click.option(
    "--model", type=click.Path(path_type=Path, exists=True), help="Model folder (default: the demo model)."
)
backend_option = click.option("--backend", default="mpc", show_default=True, help="Any of plain, crypten, mpc.")
network_option = click.option(
    "--network", default="loopback", show_default=True, help="loopback, lan, wan or e.g. 5ms,100mbit."
)


def policy_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--policy",
        default=default,
        show_default=True,
        help="Policies, joined by commas, or 'all', or 'ablations'. Settings follow a name: mpcache:clusters=8+4.",
    )


def repeat_option(default: int, what: str) -> Callable[[Command], Command]:
    return click.option("--repeat", type=click.IntRange(1), default=default, show_default=True, help=what)


@dataclass(frozen=True)
class StepOptions:
    """The options of commands that measure a shape's decode steps or prefills, under their names on the command line.

    shape: a known shape's name; model: a folder, in its place.
    """

    shape: str
    model: Path | None
    layers: int | None
    embedding: bool
    head: bool
    tokens: str
    policy: str
    repeat: int
    out: Path | None
    json_path: Path | None

    def workload(self, kind: str, network: Network = LOOPBACK) -> Workload:
        delayed = None if network == LOOPBACK else network
        program = Program(kind, self.embedding, self.head)
        return Workload(str(self.model or self.shape), self.layers, program, delayed)

    @property
    def lengths(self) -> list[int]:
        return numbers(self.tokens)

    @property
    def policies(self) -> list[LabelledPolicy]:
        return compared_policies(self.policy)


def step_options(policy: str, repeat: int, what: str) -> Callable[[Callable[..., None]], Command]:
    """Gives a command its StepOptions as the first argument, its other options by name.

    policy, repeat: the defaults; what: the help text of --repeat.
    """
    shared = (
        click.option("--shape", default="gpt2", show_default=True, help="gpt2, gpt2-medium, llama-7b."),
        click.option(
            "--model", type=click.Path(path_type=Path, exists=True), help="A model folder, in place of --shape."
        ),
        click.option("--layers", type=click.IntRange(1), help="Layers of the shape (default: all)."),
        click.option("--embedding", is_flag=True, help="Include the lookup of the token's embedding."),
        click.option("--head", is_flag=True, help="Include final norm, logits and arg max."),
        tokens_option,
        policy_option(policy),
        repeat_option(repeat, what),
        out_option,
        json_option,
    )

    def decorate(command: Callable[..., None]) -> Command:
        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            own = {field.name: values.pop(field.name) for field in fields(StepOptions)}
            command(StepOptions(**own), **values)

        decorated: Command = with_options
        for option in reversed(shared):
            decorated = option(decorated)
        return decorated

    return decorate


def numbers(text: str, least: int = 1) -> list[int]:
    """Raises ConfigError, as all of these."""
    try:
        out = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r} is not a list of whole numbers such as 512,1024") from None
    if min(out) < least:
        raise ConfigError(f"numbers of tokens are {least} or more")
    return out


def shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r} is not a list of numbers such as 0.05,0.125") from None


def words(text: str, known: tuple[str, ...], what: str) -> list[str]:
    out = [part.strip() for part in text.split(",") if part.strip()]
    for word in out:
        if word not in known:
            raise ConfigError(f"unknown {what} {word!r} (known: {', '.join(known)})")
    return out
