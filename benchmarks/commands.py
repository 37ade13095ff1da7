"""`mpcache bench`: the parts of the benchmark suite as commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import tables
from benchmarks.decode import Workload, decode_cases
from benchmarks.policies import parse_contenders
from benchmarks.program import Program
from benchmarks.quality import PLACEMENTS
from benchmarks.quality_cases import QualityOptions, quality_tables, run_quality
from benchmarks.records import Record, Records, write_json
from benchmarks.runner import Case, ProcessPool, run_cases
from benchmarks.tasks import TASKS
from mpcache.network import LOOPBACK, Network, parse_network
from protocols.errors import ConfigError

Command = Callable[..., None]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def bench() -> None:
    """Measure cost and quality of cache policies.

    Every case's record says what was run, on what, and what each figure contains. With --out, records are kept as
    they finish, and a run that was interrupted goes on where it stopped.
    """


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r} is not a list of whole numbers such as 512,1024") from None
    if min(numbers) < 1:
        raise ConfigError("numbers of tokens are 1 or more")
    return numbers


def _words(text: str, known: tuple[str, ...], what: str) -> list[str]:
    words = [part.strip() for part in text.split(",") if part.strip()]
    for word in words:
        if word not in known:
            raise ConfigError(f"unknown {what} {word!r} (known: {', '.join(known)})")
    return words


BACKENDS = ("plain", "crypten", "mpc")

_json = click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the records as a JSON list.")
_out = click.option("--out", type=click.Path(path_type=Path), help="Keep records here, and resume from them.")
_policy = click.option(
    "--policy",
    default="full,mpcache",
    show_default=True,
    help="Policies, joined by commas; 'all', 'ablations'; with settings: mpcache:keep_ratio=1:clusters=8+4.",
)
_tokens = click.option("--tokens", default="512,1024,2048", show_default=True, help="Lengths, joined by commas.")
_backend = click.option("--backend", default="mpc", show_default=True, help="Of plain, crypten, mpc.")


def _shape_options(command: Command) -> Command:
    for option in (
        click.option("--head", is_flag=True, help="Also final norm, logits and arg max."),
        click.option("--embedding", is_flag=True, help="Also the lookup of the token's embedding."),
        click.option("--layers", type=click.IntRange(1), help="Layers of the shape (default: all)."),
        click.option("--model", type=click.Path(path_type=Path, exists=True), help="A model folder, for --shape."),
        click.option("--shape", default="gpt2", show_default=True, help="gpt2, gpt2-medium, llama-7b."),
    ):
        command = option(command)
    return command


def _workload(
    kind: str, shape: str, model: Path | None, layers: int | None, embedding: bool, head: bool, network: Network
) -> Workload:
    delayed = None if network == LOOPBACK else network
    return Workload(str(model or shape), layers, Program(kind, embedding, head), delayed)


def _finish(cases: list[Case], out: Path | None, json_path: Path | None) -> list[Record]:
    records = run_cases(cases, Records(out))
    if json_path is not None:
        write_json(json_path, records)
    return records


@bench.command()
@_shape_options
@_tokens
@_policy
@_backend
@click.option("--network", default="loopback", show_default=True, help="loopback, lan, wan or e.g. 5ms,100mbit.")
@click.option("--repeat", type=click.IntRange(1), default=7, show_default=True, help="Steps measured.")
@_out
@_json
def decode(
    shape: str,
    model: Path | None,
    layers: int | None,
    embedding: bool,
    head: bool,
    tokens: str,
    policy: str,
    backend: str,
    network: str,
    repeat: int,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """One decode step over three real processes, by policy and cached tokens.

    The cache is filled with random keys and values, so no prefill is run.
    """
    workload = _workload("decode", shape, model, layers, embedding, head, parse_network(network))
    pool = ProcessPool()
    try:
        cases = decode_cases(
            workload, _numbers(tokens), parse_contenders(policy), _words(backend, BACKENDS, "backend"), repeat, pool
        )
        records = _finish(cases, out, json_path)
    finally:
        pool.close()
    _show_decode(records)


@bench.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="Model folder (default: the demo model).")
@click.option("--task", default="day-sheet", show_default=True, help=f"Of {', '.join(TASKS)}; or all.")
@_tokens
@click.option("--policy", default="all", show_default=True, help="See `mpcache bench decode --help`.")
@click.option("--budget", default="0.05,0.1,0.125,0.25", show_default=True, help="Tokens attended to, or their share.")
@click.option("--placement", default="end,later", show_default=True, help="Of the question: end of prompt, or later.")
@click.option("--documents", type=click.IntRange(1), default=50, show_default=True, help="Documents of each length.")
@_out
@_json
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables as Markdown.")
def quality(
    model: Path | None,
    task: str,
    tokens: str,
    policy: str,
    budget: str,
    placement: str,
    documents: int,
    out: Path | None,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Exact match of answers by policy and budget, in plaintext.

    All policies see the same documents; each document's prefill is computed once.
    """
    from parties.demo import DEMO_MODEL

    options = QualityOptions(
        model or DEMO_MODEL,
        list(TASKS) if task == "all" else _words(task, tuple(TASKS), "task"),
        _numbers(tokens),
        parse_contenders(policy),
        _shares(budget),
        _words(placement, PLACEMENTS, "placement"),
        documents,
    )
    records = run_quality(options, Records(out))
    if json_path is not None:
        write_json(json_path, records)
    written = []
    for title, header, rows in quality_tables(records):
        tables.show(title, header, rows)
        written.append(f"### {title}\n\n{tables.markdown(header, rows)}")
    if markdown is not None:
        markdown.write_text("\n".join(written))


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r} is not a list of numbers such as 0.05,0.125") from None


def _show_decode(records: list[Record]) -> None:
    tables.show(
        "A decode step: medians",
        tables.COSTS,
        tables.cost_rows(records),
        "online: both directions; corr.: correlations, both parties; CPU: all three processes",
    )
    tables.show(
        "By part (eviction: once, before the steps)",
        ("policy", "tokens", "", *tables.PARTS, "eviction"),
        tables.part_rows(records),
    )
    tables.show(
        "By process: CPU seconds a step, peak MiB, and how long a step waited for the dealer",
        (
            "policy",
            "tokens",
            "backend",
            *(f"{r} {w}" for w in ("CPU s", "MiB") for r in ("owner", "client", "dealer")),
            "waited s",
        ),
        tables.process_rows(records),
    )
