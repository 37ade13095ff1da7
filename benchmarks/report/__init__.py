"""The suite's records as one self-contained HTML page and its Markdown twin."""

from mpcache.benchmarks.report.page import write_report

__all__ = ["write_report"]
