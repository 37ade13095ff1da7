"""`mpcache bench generate`, `ops`, `decode`, `prefill`, `profile` and `network`: what a part of the work costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.decode import decode_cases
from mpcache.benchmarks.cases.generation import MAX_NEW_TOKENS, generation_cases
from mpcache.benchmarks.cases.networks import network_cases
from mpcache.benchmarks.cases.ops import OPERATIONS, operation_cases
from mpcache.benchmarks.cases.prefill import prefill_cases
from mpcache.benchmarks.cases.profile import PROFILED, profile_cases
from mpcache.benchmarks.measure.namespace import parse_namespace
from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.run.finish import run_and_show
from mpcache.benchmarks.run.options import (
    BACKENDS,
    StepOptions,
    backend_option,
    json_option,
    model_option,
    network_option,
    out_option,
    policy_option,
    repeat_option,
    step_options,
    words,
)
from mpcache.generation.network import parse_network
from mpcache.generation.request import MOST_DRAFTS
from mpcache.protocols.errors import ConfigError


@click.command()
@model_option
@policy_option("full,mpcache")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=MAX_NEW_TOKENS, show_default=True, help="Tokens to generate."
)
@click.option(
    "--draft", type=click.IntRange(0, MOST_DRAFTS), default=0, show_default=True, help="Tokens that a pass tries ahead."
)
@repeat_option(3, "Generations measured.")
@out_option
@json_option
def generate(
    model: Path | None,
    policy: str,
    max_new_tokens: int,
    draft: int,
    repeat: int,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """Measure whole generations from the demo's day sheet, between three real processes.

    Each policy has its own processes. The record has the costs of prefill and tokens, each process's memory, and
    whether plaintext gives the same answer.
    """
    from mpcache.demo import DEMO_MODEL

    cases = generation_cases(model or DEMO_MODEL, compared_policies(policy), max_new_tokens, repeat, draft)
    run_and_show(cases, out, json_path)


@click.command()
@click.option("--operation", help=f"One of {'; '.join(OPERATIONS)}. Default: all.")
@repeat_option(5, "Runs measured.")
@out_option
@json_option
def ops(operation: str | None, repeat: int, out: Path | None, json_path: Path | None) -> None:
    """Measure each protocol alone. Both parties and the dealer run in one process."""
    if operation is not None and operation not in OPERATIONS:
        raise ConfigError(f"unknown operation {operation!r} (known: {'; '.join(OPERATIONS)})")
    run_and_show(operation_cases(repeat, [operation] if operation else tuple(OPERATIONS)), out, json_path)


@click.command()
@step_options("full,mpcache", 7, "Steps measured.")
@backend_option
@network_option
def decode(options: StepOptions, backend: str, network: str) -> None:
    """Measure one decode step between three real processes, by policy and cached tokens.

    The cache is filled with random keys and values, so no prefill is run.
    """
    pool = ProcessPool()
    backends = words(backend, BACKENDS, "backend")
    work = options.workload("decode", parse_network(network))
    cases = decode_cases(work, options.lengths, options.policies, backends, options.repeat, pool)
    run_and_show(cases, options.out, options.json_path, pool)


@click.command()
@step_options("full", 1, "Prefills measured.")
@backend_option
@network_option
def prefill(options: StepOptions, backend: str, network: str) -> None:
    """Measure the prefill of a prompt between three real processes, by its length."""
    pool = ProcessPool()
    backends = words(backend, BACKENDS, "backend")
    work = options.workload("prefill", parse_network(network))
    cases = prefill_cases(work, options.lengths, options.policies, backends, pool, options.repeat)
    run_and_show(cases, options.out, options.json_path, pool)


@click.command()
@step_options("full,mpcache", 5, "Steps measured.")
@click.option(
    "--network",
    default="loopback lan wan",
    show_default=True,
    help="Networks, separated by spaces: loopback, lan, wan, or e.g. 5ms,100mbit.",
)
@click.option(
    "--namespace",
    metavar="NAME,OWNER,DEALER",
    help="Run owner and dealer in this network namespace, at these addresses (as root). --network describes the link.",
)
def network(options: StepOptions, network: str, namespace: str | None) -> None:
    """Measure decode steps on slower networks, beside what rounds, bytes and CPU time predict.

    Both parties delay their messages themselves, so no privileges are needed. The dealer's stream is not delayed.
    """
    work, pool = options.workload("decode"), ProcessPool()
    networks = [parse_network(text) for text in network.split()]
    if namespace is not None:
        if len(networks) != 1:
            raise ConfigError("the link to a namespace is one network: say with --network which, e.g. 20ms,400mbit")
        work = replace(work, namespace=parse_namespace(namespace))
    cases = network_cases(work, networks, options.lengths, options.policies, options.repeat, pool)
    run_and_show(cases, options.out, options.json_path, pool)


@click.command()
@click.option("--shape", default="gpt2", show_default=True, help="gpt2, gpt2-medium, llama-7b.")
@click.option("--only", type=click.Choice(["decode", "prefill"]), help="One of the two. Default: both.")
@repeat_option(200, "Decode steps measured.")
@out_option
@json_option
def profile(shape: str, only: str | None, repeat: int, out: Path | None, json_path: Path | None) -> None:
    """Show what CPU seconds of owner, client and dealer go to, between three real processes.

    Of a decode step of one block (1,024 tokens, full cache; 2,048, mpcache) and of a prefill of two layers (512 tokens,
    full cache): by kind of work and by part, with system time and page faults.
    """
    pool = ProcessPool()
    profiled = [what for what in PROFILED if only in (None, what.kind)]
    run_and_show(profile_cases(shape, profiled, repeat, pool), out, json_path, pool)
