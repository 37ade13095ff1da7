"""`mpcache plan`: the price of a generation for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from mpcache.generation.network import Network, parse_network
from mpcache.generation.price import Price, Prices, computing_seconds, dealing_seconds, price, seconds
from mpcache.generation.request import GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.parties.prepared import OVERHEAD_BYTES
from mpcache.policies import PolicySettings
from mpcache.protocols.session import Cost

PASS = "first pass"
"""With drafts, in place of a decode step."""


def plan_policies(
    model: ModelConfig, request: GenerationRequest, policies: Sequence[tuple[str, PolicySettings]], batch: int = 1
) -> list[Any]:
    """A JSON-able record for each (label, policy): phases, and in them parts, with bytes, rounds and seconds.

    batch: how many such prompts share their rounds.
    """
    return [_record(label, replace(request, policy=policy), model, batch) for label, policy in policies]


def _record(label: str, request: GenerationRequest, model: ModelConfig, batch: int) -> dict[str, Any]:
    request.check_values()
    network, prices = parse_network(request.network), price(model, request)
    return {
        "policy": label,
        "prompt_tokens": request.prompt_tokens,
        "new_tokens": request.max_new_tokens,
        "prefill_block": request.block_for(model),
        "draft": request.draft,
        "passes": request.passes,
        "network": {"round_trip_seconds": network.round_trip, "bytes_per_second": network.bandwidth},
        "batch": batch,
        "phases": {name: _phase(phase.shared(batch), network) for name, phase in _phases(prices, request).items()},
        "prepared": {
            "disk_bytes": prices.total.cost.correction_bytes + OVERHEAD_BYTES,
            "seconds": dealing_seconds(prices.total),
        },
    }


def _phases(prices: Prices, request: GenerationRequest) -> dict[str, Price]:
    phases = {"prefill": prices.prefill, "eviction": prices.eviction, "decode": prices.decoding}
    if prices.decode:
        phases[PASS if request.draft else "decode step"] = prices.decode[0]
    return phases


def _phase(phase: Price, network: Network) -> dict[str, Any]:
    parts = {name: _costs(cost) for name, cost in sorted(phase.parts.items())}
    return {
        **_costs(phase.cost),
        "seconds": seconds(phase, network),
        "computing_seconds": computing_seconds(phase),
        "multiply_adds": phase.multiply_adds,
        "parts": parts,
    }


def _costs(cost: Cost) -> dict[str, int]:
    return {"online_bytes": cost.online_bytes, "correlation_bytes": cost.correction_bytes, "rounds": cost.rounds}


def show_plan(records: list[Any], network: Network) -> None:
    """Phases as lines, their parts below them."""
    title = f"{network.name}: {network.round_trip * 1e3:g} ms round trip, {network.bandwidth * 8 / 1e6:,.0f} Mbit/s"
    for record in records:
        table = Table(
            title=f"{record['policy']}, {_prompts(record)}, {title}",
            title_justify="left",
            box=box.SIMPLE,
        )
        for name in ("phase", "online MB", "correlation MB", "rounds", "estimated s"):
            table.add_column(name, justify="left" if name == "phase" else "right")
        for name, phase in record["phases"].items():
            table.add_row(name, *_cells(phase), f"{phase['seconds']:,.2f}", style="bold")
            for part, costs in phase["parts"].items():
                table.add_row(f"  {part}", *_cells(costs), "")
        Console().print(table)
        if PASS in record["phases"]:
            most, taken = record["draft"] + 1, record["phases"][PASS]["seconds"]
            click.echo(
                f"  a pass gives 1 to {most} tokens: {taken:,.2f} to {taken / most:,.2f} s a token. Decode is for "
                f"{record['passes']} pass{'es' * (record['passes'] != 1)}, as many as there may be"
            )
        if record["batch"] > 1:  # it is not prepared
            continue
        prepared = record["prepared"]
        click.echo(
            f"  prepared ahead of time: {prepared['disk_bytes'] / 1e6:,.2f} MB on the dealer's disk, made in about "
            f"{prepared['seconds']:,.1f} s of one core\n"
        )


def _prompts(record: dict[str, Any]) -> str:
    of_one = f"{record['prompt_tokens']:,} prompt tokens in blocks of {record['prefill_block']}"
    return of_one if record["batch"] == 1 else f"{record['batch']} prompts that share their rounds, each of {of_one}"


def _cells(costs: dict[str, Any]) -> list[str]:
    online, correlations = costs["online_bytes"] / 1e6, costs["correlation_bytes"] / 1e6
    return [f"{online:,.2f}", f"{correlations:,.2f}", f"{costs['rounds']:,}"]
