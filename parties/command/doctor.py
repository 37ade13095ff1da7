"""`mpcache doctor`: what this machine computes with, and how fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mpcache.files import write_json
from mpcache.protocols.products import choice
from mpcache.protocols.products.choice import CLASSES, SETTING, ShapeClass, Speeds
from mpcache.protocols.products.kernels import KERNELS


@click.command()
@click.option("--measure", is_flag=True, help="Measure the kernels anew, and keep what they reach.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the findings as JSON.")
def doctor(measure: bool, json_path: Path | None) -> None:
    """Show this machine's processor and how fast it multiplies.

    For each shape of product, the fastest kernel is chosen. All give the same results. Speeds are measured once and
    kept in the cache folder; measure anew while nothing else works on the machine.
    """
    torch.set_num_threads(1)  # as every party does
    findings = examine(anew=measure)
    show(findings)
    if json_path is not None:
        write_json(json_path, findings, "the findings")


def examine(anew: bool = False) -> dict[str, Any]:
    """A JSON-able record. Measures what was never measured here; anew: everything."""
    setting, kept = choice.setting(), choice.cache_file()
    return {
        "processor": choice.processor(),
        "cores": os.cpu_count(),
        "vector_width": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "setting": setting,
        "measurements": str(kept) if kept else None,
        "kept_bytes": 0,  # limbs are cut anew for every product
        "products": [_product(what, choice.speeds(what, anew=anew), setting) for what in CLASSES],
    }


def _product(what: ShapeClass, speeds: Speeds, setting: str) -> dict[str, Any]:
    chosen = choice.fastest(speeds) if setting == "auto" else setting
    return {
        "form": what.form,
        "rows": what.rows,
        "bits": what.bits,
        "giga_multiply_adds_per_second": dict(speeds),
        "chosen": chosen,
        "why": _why(chosen, speeds) if setting == "auto" else f"{SETTING}={setting}",
    }


def _why(chosen: str, speeds: Speeds) -> str:
    if chosen != "torch":
        return f"{speeds[chosen] / speeds['torch']:.1f} times torch"
    return "fastest" if speeds["torch"] == max(speeds.values()) else "no other is clearly faster"


def show(findings: dict[str, Any]) -> None:
    click.echo(f"processor     {findings['processor']}, {findings['cores']} cores")
    click.echo(f"vector width  {findings['vector_width']} (torch {findings['torch']}, {findings['threads']} threads)")
    click.echo(f"setting       {SETTING}={findings['setting']}")
    click.echo(f"measurements  {findings['measurements'] or 'kept nowhere: there is no cache folder'}")
    click.echo(f"memory kept   {findings['kept_bytes']} bytes for limbs: they are cut anew for every product")
    table = Table(title="G multiply-adds a second", title_justify="left", box=box.SIMPLE)
    names = list(KERNELS)
    for column in ("product", "rows", "bits", *names, "chosen", "why"):
        table.add_column(column, justify="right" if column in ("bits", *names) else "left")
    for product in findings["products"]:
        speeds = product["giga_multiply_adds_per_second"]
        cells = [f"{speeds[name]:.2f}" if name in speeds else "wrong" for name in names]
        shape = (product["form"], product["rows"], str(product["bits"]))
        table.add_row(*shape, *cells, product["chosen"], product["why"])
    Console().print(table)
    click.echo("One row is multiplied as a vector, and what is small by torch, without a measurement.")
