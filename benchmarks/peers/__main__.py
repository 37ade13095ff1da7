"""`python -m mpcache.benchmarks.peers`: measure SPU and CrypTen's own protocols on the decode step's parts."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import click

from mpcache.benchmarks.peers import spu_peer
from mpcache.benchmarks.peers.case import POLICIES, WHATS, Case, Record, cases
from mpcache.benchmarks.peers.systems import SYSTEMS, measure_case
from mpcache.protocols.errors import ConfigError, MpcacheError


def _words(_: object, parameter: click.Parameter, text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        return [int(word) for word in _words(context, parameter, text)]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 512,1024") from None


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--what", default="block", show_default=True, callback=_words, help=f"Of {', '.join(WHATS)}.")
@click.option("--tokens", default="512,1024,2048", show_default=True, callback=_numbers, help="Prompt tokens.")
@click.option("--policy", default="full", show_default=True, callback=_words, help=f"Of {', '.join(POLICIES)}.")
@click.option("--system", default=",".join(SYSTEMS), show_default=True, callback=_words, help="Whom to measure.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Steps measured, after a warm-up.")
@click.option("--limit", type=click.IntRange(1), default=600, show_default=True, help="Seconds that a case may take.")
@click.option("--full", is_flag=True, help="Also 12 layers and the head at 512 tokens: gigabytes, minutes.")
@click.option("--install", is_flag=True, help="First make SPU's environment (0.9 GB, a Python 3.11 must be there).")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the records as a JSON list.")
def main(
    what: list[str],
    tokens: list[int],
    policy: list[str],
    system: list[str],
    repeat: int,
    limit: int,
    full: bool,
    install: bool,
    json_path: Path | None,
) -> None:
    """Measure what others take for one token of GPT-2 small's parts; absent ones and failures are named as such."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that processes are ended
    wanted = cases(what, tokens, policy, repeat, limit)
    if full:
        wanted.append(Case("model", 512, "full", repeat, limit))
    unknown = [name for name in system if name not in SYSTEMS]
    if unknown:
        raise ConfigError(f"unknown system {unknown[0]!r} (known: {', '.join(SYSTEMS)})")
    if install:
        spu_peer.install()
    records: list[Record] = []
    for case in wanted:
        for name in system:
            record = measure_case(name, case)
            records.append(record)
            click.echo(line(record))
            if json_path is not None:
                json_path.write_text(json.dumps(records, indent=2) + "\n")


def line(record: Record) -> str:
    """A record as a line of a table."""
    start = (
        f"{record['system']:8}{record['protocol']:9}{record['what']:10}{record['policy']:8}{record['tokens'] or '':>6} "
    )
    if record["status"] != "done":
        return f"{start} {record['status']}: {record['reason']}"
    correlations = record["correlation_bytes"]
    return (
        f"{start}{record['seconds']:8.3f} s {record['cpu_seconds']:8.3f} CPU s {record['online_bytes'] / 1e6:9.2f} MB"
        f" {'' if correlations is None else f'+ {correlations / 1e6:.2f} MB correlations'}"
        f" {record['messages_per_party']:6} messages a party, error {record['error']:.1e},"
        f" load {record['load_average']:.1f}"
    )


if __name__ == "__main__":
    try:
        main()
    except MpcacheError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
