"""`mpcache plan`: the price of a generation for people and as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mpcache.generation.network import Network
from mpcache.generation.price import Generation, Price, Prices, computing_seconds, price, seconds
from mpcache.policies import PolicySettings
from mpcache.protocols.session import Cost


def plan_policies(generation: Generation, policies: list[tuple[str, PolicySettings]], network: Network) -> list[Any]:
    """A JSON-able record for each (label, policy): phases, and in them parts, with bytes, rounds and seconds."""
    out = []
    for label, policy in policies:
        prices = price(Generation(**{**vars(generation), "policy": policy}))
        out.append(
            {
                "policy": label,
                "prompt_tokens": generation.prompt_tokens,
                "new_tokens": generation.new_tokens + 1,
                "network": {"round_trip_seconds": network.round_trip, "bytes_per_second": network.bandwidth},
                "phases": {name: _phase(phase, network) for name, phase in _phases(prices).items()},
            }
        )
    return out


def _phases(prices: Prices) -> dict[str, Price]:
    phases = {"prefill": prices.prefill, "eviction": prices.eviction, "decode": prices.decoding}
    if prices.decode:
        phases["decode step"] = prices.decode[0]
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
            title=f"{record['policy']}, {record['prompt_tokens']:,} prompt tokens, {title}",
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


def _cells(costs: dict[str, Any]) -> list[str]:
    online, correlations = costs["online_bytes"] / 1e6, costs["correlation_bytes"] / 1e6
    return [f"{online:,.2f}", f"{correlations:,.2f}", f"{costs['rounds']:,}"]
