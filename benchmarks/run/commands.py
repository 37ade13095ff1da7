"""`mpcache bench`: the parts of the benchmark suite as commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from mpcache.benchmarks.cases.agreement import ANSWERED, agreement_cases
from mpcache.benchmarks.cases.decode import decode_cases
from mpcache.benchmarks.cases.generation import MAX_NEW_TOKENS, generation_cases
from mpcache.benchmarks.cases.networks import network_cases
from mpcache.benchmarks.cases.ops import OPERATIONS, operation_cases
from mpcache.benchmarks.cases.policies import parse_contenders
from mpcache.benchmarks.cases.prefill import prefill_cases
from mpcache.benchmarks.cases.quality import PLACEMENTS
from mpcache.benchmarks.cases.quality_cases import QualityOptions, quality_tables, run_quality
from mpcache.benchmarks.cases.tasks import TASKS
from mpcache.benchmarks.measure.namespace import parse_namespace
from mpcache.benchmarks.measure.runner import Case, ProcessPool, run_cases
from mpcache.benchmarks.records import tables
from mpcache.benchmarks.records.records import Record, Records, read_records
from mpcache.benchmarks.run.options import (
    BACKENDS,
    backend_option,
    json_option,
    model_option,
    network_option,
    numbers,
    out_option,
    policy_option,
    repeat_option,
    shape_options,
    shares,
    tokens_option,
    words,
    workload,
)
from mpcache.benchmarks.run.show import show_records
from mpcache.benchmarks.run.suite import FULL, QUICK, run_suite
from mpcache.files import write_json
from mpcache.generation.network import parse_network
from mpcache.protocols.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def bench() -> None:
    """Measure cost and quality of cache policies.

    Every case's record says what was run, on what, and what each figure contains. With --out, records are kept as
    they finish, and a run that was interrupted goes on where it stopped.
    """


def _run(cases: list[Case], pool: ProcessPool | None, out: Path | None, json_path: Path | None) -> None:
    try:
        records = run_cases(cases, Records(out))
    finally:
        if pool is not None:
            pool.close()
    _finish(records, json_path)


def _finish(records: list[Record], json_path: Path | None) -> None:
    if json_path is not None:
        write_json(json_path, records, "the records")
    show_records(records)


@bench.command()
@shape_options
@tokens_option
@policy_option("full,mpcache")
@backend_option
@network_option
@repeat_option(7, "Steps measured.")
@out_option
@json_option
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
    work, pool = workload("decode", shape, model, layers, embedding, head, parse_network(network)), ProcessPool()
    backends = words(backend, BACKENDS, "backend")
    cases = decode_cases(work, numbers(tokens), parse_contenders(policy), backends, repeat, pool)
    _run(cases, pool, out, json_path)


@bench.command()
@model_option
@policy_option("full,mpcache")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=MAX_NEW_TOKENS, show_default=True, help="Tokens to generate."
)
@repeat_option(3, "Generations measured.")
@out_option
@json_option
def generate(
    model: Path | None, policy: str, max_new_tokens: int, repeat: int, out: Path | None, json_path: Path | None
) -> None:
    """Whole generations from the demo's day sheet, between the three real processes.

    Each policy with processes of its own: prefill, eviction and answer, their memory, and whether plaintext agrees.
    """
    from mpcache.demo import DEMO_MODEL

    cases = generation_cases(model or DEMO_MODEL, parse_contenders(policy), max_new_tokens, repeat)
    _run(cases, None, out, json_path)


@bench.command()
@shape_options
@tokens_option
@policy_option("full")
@backend_option
@network_option
@repeat_option(1, "Prefills measured.")
@out_option
@json_option
def prefill(
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
    """A prompt's prefill over three real processes, by its length."""
    work, pool = workload("prefill", shape, model, layers, embedding, head, parse_network(network)), ProcessPool()
    backends = words(backend, BACKENDS, "backend")
    cases = prefill_cases(work, numbers(tokens), parse_contenders(policy), backends, pool, repeat)
    _run(cases, pool, out, json_path)


@bench.command()
@shape_options
@tokens_option
@policy_option("full,mpcache")
@click.option("--network", default="loopback lan wan", show_default=True, help="Presets, or e.g. 5ms,100mbit; spaces.")
@click.option(
    "--namespace",
    metavar="NAME,OWNER,DEALER",
    help="Owner and dealer in a network namespace, at addresses of it; the link there is as --network says (root).",
)
@repeat_option(5, "Steps measured.")
@out_option
@json_option
def network(
    shape: str,
    model: Path | None,
    layers: int | None,
    embedding: bool,
    head: bool,
    tokens: str,
    policy: str,
    network: str,
    namespace: str | None,
    repeat: int,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """Decode steps on slower networks, beside what rounds, bytes and CPU predict.

    Delays are made in both parties' processes, so no privileges are needed. Corrections are made ahead and arrive
    undelayed.
    """
    work, pool = workload("decode", shape, model, layers, embedding, head), ProcessPool()
    networks = [parse_network(text) for text in network.split()]
    if namespace is not None:
        if len(networks) != 1:
            raise ConfigError("the link to a namespace is one network: say with --network which, e.g. 20ms,400mbit")
        work = replace(work, namespace=parse_namespace(namespace))
    cases = network_cases(work, networks, numbers(tokens), parse_contenders(policy), repeat, pool)
    _run(cases, pool, out, json_path)


@bench.command()
@click.option("--operation", help=f"Of {'; '.join(OPERATIONS)}.  Default: all.")
@repeat_option(5, "Runs measured.")
@out_option
@json_option
def ops(operation: str | None, repeat: int, out: Path | None, json_path: Path | None) -> None:
    """Each protocol alone: both parties and the dealer in one process."""
    if operation is not None and operation not in OPERATIONS:
        raise ConfigError(f"unknown operation {operation!r} (known: {'; '.join(OPERATIONS)})")
    _run(operation_cases(repeat, [operation] if operation else tuple(OPERATIONS)), None, out, json_path)


@bench.command()
@model_option
@click.option("--task", default="day-sheet", show_default=True, help=f"Of {', '.join(TASKS)}; or all.")
@tokens_option
@policy_option("all")
@click.option("--budget", default="0.05,0.1,0.125,0.25", show_default=True, help="Tokens attended to, or their share.")
@click.option("--placement", default="end,later", show_default=True, help="Of the question: end of prompt, or later.")
@click.option("--documents", type=click.IntRange(1), default=50, show_default=True, help="Documents of each length.")
@out_option
@json_option
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
    from mpcache.demo import DEMO_MODEL

    options = QualityOptions(
        model or DEMO_MODEL,
        list(TASKS) if task == "all" else words(task, tuple(TASKS), "task"),
        numbers(tokens),
        parse_contenders(policy),
        shares(budget),
        words(placement, PLACEMENTS, "placement"),
        documents,
    )
    records = run_quality(options, Records(out))
    _finish(records, json_path)
    if markdown is not None:
        written = [f"### {title}\n\n{tables.markdown(head, rows)}" for title, head, rows in quality_tables(records)]
        markdown.write_text("\n".join(written))


@bench.command()
@click.option("--task", default="day-sheet,needle", show_default=True, help=f"Of {', '.join(ANSWERED)}.")
@click.option("--tokens", default="512", show_default=True, help="Lengths, joined by commas.")
@policy_option("full,mpcache")
@click.option("--documents", type=click.IntRange(1), default=3, show_default=True, help="Documents of each length.")
@out_option
@json_option
def agreement(task: str, tokens: str, policy: str, documents: int, out: Path | None, json_path: Path | None) -> None:
    """The quality part's first documents under MPC: the same answers as in plaintext, case by case?"""
    from mpcache.demo import DEMO_MODEL

    tasks = words(task, ANSWERED, "task with an answer")
    cases = agreement_cases(DEMO_MODEL, tasks, numbers(tokens), parse_contenders(policy), documents)
    _run(cases, None, out, json_path)


@bench.command("all")
@click.option("--quick", is_flag=True, help="Fewer sizes and documents: within a quarter of an hour on two cores.")
@click.option("--out", type=click.Path(path_type=Path), default="out/bench", show_default=True, help="As everywhere.")
@json_option
def everything(quick: bool, out: Path, json_path: Path | None) -> None:
    """The whole suite, and its report."""
    from mpcache.demo import DEMO_MODEL

    records = run_suite(QUICK if quick else FULL, DEMO_MODEL, Records(out), lambda part: click.echo(part, err=True))
    _finish(records, json_path)
    _report(out)


@bench.command()
@click.argument("folder", type=click.Path(path_type=Path))
def calibrate(folder: Path) -> None:
    """The constants of `mpcache plan`'s estimated seconds, fitted to the records in FOLDER."""
    from mpcache.benchmarks.run.calibration import fit

    speed, estimates = fit(read_records(folder))
    for record, estimate in estimates:
        what = f"{record['bench']} {record['policy']} {record['tokens']}"
        ratio = record["seconds"] / estimate
        click.echo(f"{what:40} measured {record['seconds']:9.3f} s, estimated {estimate:9.3f} s, ratio {ratio:.2f}")
    click.echo(repr(speed))


@bench.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """One HTML page and its Markdown twin of the records in FOLDER, written there."""
    _report(folder)


@bench.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("readme", type=click.Path(path_type=Path), default="README.md")
def readme(folder: Path, readme: Path) -> None:
    """Rewrite README.md's tables (between its comments) from the records in FOLDER."""
    from mpcache.benchmarks.report.readme import write_readme

    write_readme(folder, readme)
    click.echo(f"wrote {readme}")


def _report(folder: Path) -> None:
    from mpcache.benchmarks.report import write_report

    for path in write_report(folder):
        click.echo(f"wrote {path}")
