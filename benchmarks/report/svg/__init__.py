"""Plots as SVG text: lines with error bars, points with names, stacked bars. Drawn for the width of a phone."""

from mpcache.benchmarks.report.svg.axis import Axis
from mpcache.benchmarks.report.svg.bars import Bar, stacked_bars
from mpcache.benchmarks.report.svg.frame import Point, Series
from mpcache.benchmarks.report.svg.legend import Legend, keys
from mpcache.benchmarks.report.svg.lines import line_plot
from mpcache.benchmarks.report.svg.scatter import scatter_plot
from mpcache.benchmarks.report.svg.style import Style

__all__ = ["Axis", "Bar", "Legend", "Point", "Series", "Style", "keys", "line_plot", "scatter_plot", "stacked_bars"]
