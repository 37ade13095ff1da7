"""Options that the benchmark commands share, and how their lists are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from mpcache.benchmarks.cases.decode import Workload
from mpcache.benchmarks.measure.program import Program
from mpcache.generation.network import LOOPBACK, Network
from mpcache.protocols.errors import ConfigError

Command = Callable[..., None]
BACKENDS = ("plain", "crypten", "mpc")

json_option = click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the records as a JSON list."
)
out_option = click.option("--out", type=click.Path(path_type=Path), help="Keep records here, and resume from them.")
tokens_option = click.option("--tokens", default="512,1024,2048", show_default=True, help="Lengths, joined by commas.")
model_option = click.option(
    "--model", type=click.Path(path_type=Path, exists=True), help="Model folder (default: the demo model)."
)
backend_option = click.option("--backend", default="mpc", show_default=True, help="Of plain, crypten, mpc.")
network_option = click.option(
    "--network", default="loopback", show_default=True, help="loopback, lan, wan or e.g. 5ms,100mbit."
)


def policy_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--policy",
        default=default,
        show_default=True,
        help="Policies, joined by commas; 'all', 'ablations'; with settings: mpcache:keep_ratio=1:clusters=8+4.",
    )


def repeat_option(default: int, what: str) -> Callable[[Command], Command]:
    return click.option("--repeat", type=click.IntRange(1), default=default, show_default=True, help=what)


def shape_options(command: Command) -> Command:
    for option in (
        click.option("--head", is_flag=True, help="Also final norm, logits and arg max."),
        click.option("--embedding", is_flag=True, help="Also the lookup of the token's embedding."),
        click.option("--layers", type=click.IntRange(1), help="Layers of the shape (default: all)."),
        click.option("--model", type=click.Path(path_type=Path, exists=True), help="A model folder, for --shape."),
        click.option("--shape", default="gpt2", show_default=True, help="gpt2, gpt2-medium, llama-7b."),
    ):
        command = option(command)
    return command


def workload(
    kind: str,
    shape: str,
    model: Path | None,
    layers: int | None,
    embedding: bool,
    head: bool,
    network: Network = LOOPBACK,
) -> Workload:
    delayed = None if network == LOOPBACK else network
    return Workload(str(model or shape), layers, Program(kind, embedding, head), delayed)


def numbers(text: str) -> list[int]:
    """Raises ConfigError, as all of these."""
    try:
        out = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r} is not a list of whole numbers such as 512,1024") from None
    if min(out) < 1:
        raise ConfigError("numbers of tokens are 1 or more")
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
