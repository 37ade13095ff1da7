"""`mpcache inspect`: what was found of a model, for people."""

from __future__ import annotations

import click
from rich import box
from rich.console import Console
from rich.table import Table

from mpcache.inspection.bounds import SHOWN, Reading, Sizes, written
from mpcache.inspection.inspect import Inspection


def show_inspection(inspection: Inspection) -> None:
    """What the weights imply, then what was measured, a line for each place."""
    _list("certain to be wrong, by the weights alone", inspection.implied.certain)
    _list("not excluded by the weights alone; norms allow", inspection.implied.possible)
    click.echo(
        f"measured in plaintext: {inspection.prompt_tokens} tokens ({inspection.prompt}), {inspection.new_tokens} new "
        f"ones, policy {inspection.policy.name}"
    )
    table = Table(box=box.SIMPLE)
    for name in ("place", "layer", "largest", "limit", "share"):
        table.add_column(name, justify="left" if name == "place" else "right", no_wrap=True)
    for r in _nearest(inspection.measured):
        layer = "" if r.layer is None else str(r.layer)
        table.add_row(r.bound.name, layer, written(r.size), written(r.bound.limit), f"{r.share:.2%}")
    Console().print(table)


def _nearest(sizes: Sizes) -> list[Reading]:
    """Of each place the layer that comes nearest to its limit; nearest first."""
    found: dict[str, Reading] = {}
    for reading in sizes.readings():
        found.setdefault(reading.bound.name, reading)
    return list(found.values())


def _list(title: str, readings: list[Reading]) -> None:
    click.echo(f"{title}: {len(readings) or 'nothing'}{' places' if readings else ''}")
    for reading in readings[:SHOWN]:
        click.echo(f"  {reading}")
    if len(readings) > SHOWN:
        click.echo(f"  ... and {len(readings) - SHOWN} more (--json has all)")
