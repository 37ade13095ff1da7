"""The report's sections in order, each with what makes its figures.

A figure has a title that says what was found, a plot, and the numbers as a table.
"""

from __future__ import annotations

from mpcache.benchmarks.report.agreement import agreements
from mpcache.benchmarks.report.decode import decode_steps
from mpcache.benchmarks.report.figure import Maker
from mpcache.benchmarks.report.generation import generations
from mpcache.benchmarks.report.networks import computed_networks, measured_networks
from mpcache.benchmarks.report.prefill import prefills
from mpcache.benchmarks.report.quality import needles, other_tasks, quality_by_budget
from mpcache.benchmarks.report.systems import against_crypten, peers
from mpcache.benchmarks.report.tradeoff import quality_against_cost

SECTIONS: dict[str, Maker] = {
    "Quality against cost": quality_against_cost,
    "A decode step": decode_steps,
    "Quality": lambda records, legend: [
        *quality_by_budget(records, legend),
        *needles(records, legend),
        *other_tasks(records, legend),
    ],
    "Plaintext and MPC": agreements,
    "Networks": lambda records, legend: [*measured_networks(records, legend), *computed_networks(records, legend)],
    "CrypTen": against_crypten,
    "Peers": peers,
    "Prefill": prefills,
    "A whole generation": generations,
}
