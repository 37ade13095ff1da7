"""`mpcache bench`: the parts of the benchmark suite as commands."""

from __future__ import annotations

import click

from mpcache.benchmarks.run.cost_commands import decode, generate, network, ops, prefill, profile
from mpcache.benchmarks.run.quality_commands import agreement, drafts, prefill_study, quality
from mpcache.benchmarks.run.report_commands import calibrate, everything, readme, report


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def bench() -> None:
    """Measure cost and quality of cache policies.

    Each case gives a record. It says what was run, on which machine, and what each figure contains. With --out, every
    record is kept as soon as its case is done, and an interrupted run goes on where it stopped.
    """


for command in (
    decode,
    generate,
    prefill,
    network,
    ops,
    profile,
    quality,
    prefill_study,
    agreement,
    drafts,
    everything,
    calibrate,
    report,
    readme,
):
    bench.add_command(command)
