"""`mpcache bench all`, and what is made from a folder of records: `report`, `readme`, `calibrate`."""

from __future__ import annotations

from pathlib import Path

import click

from mpcache.benchmarks.records.store import Records, read_records
from mpcache.benchmarks.run.finish import show_and_write
from mpcache.benchmarks.run.options import json_option
from mpcache.benchmarks.run.suite import FULL, QUICK, run_suite


@click.command("all")
@click.option("--quick", is_flag=True, help="Fewer sizes and documents: about a quarter of an hour on two cores.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="out/bench",
    show_default=True,
    help="Keep the records here, and resume from them.",
)
@json_option
def everything(quick: bool, out: Path, json_path: Path | None) -> None:
    """Run the whole suite, and write its report."""
    from mpcache.demo import DEMO_MODEL

    records = run_suite(QUICK if quick else FULL, DEMO_MODEL, Records(out), lambda part: click.echo(part, err=True))
    show_and_write(records, json_path)
    _report(out)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def calibrate(folder: Path) -> None:
    """Fit the constants of `mpcache plan`'s estimated seconds to the records in FOLDER."""
    from mpcache.benchmarks.run.calibration import fit

    speed, estimates = fit(read_records(folder))
    for record, estimate in estimates:
        what = f"{record['bench']} {record['policy']} {record['tokens']}"
        ratio = record["seconds"] / estimate
        click.echo(f"{what:40} measured {record['seconds']:9.3f} s, estimated {estimate:9.3f} s, ratio {ratio:.2f}")
    click.echo(repr(speed))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write report.html and report.md from the records in FOLDER, beside them."""
    _report(folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("readme", type=click.Path(path_type=Path), default="README.md")
@click.option("--beside", type=click.Path(path_type=Path), help="Show this folder's tables of seconds, too.")
def readme(folder: Path, readme: Path, beside: Path | None) -> None:
    """Rewrite the tables of README.md from the records in FOLDER."""
    from mpcache.benchmarks.report.readme import write_readme

    write_readme(folder, readme, beside)
    click.echo(f"wrote {readme}")


def _report(folder: Path) -> None:
    from mpcache.benchmarks.report import write_report

    for path in write_report(folder):
        click.echo(f"wrote {path}")
