"""The README's tables, written from a run's records, so that none of its figures can drift from them.

A section stands between `<!-- figures: NAME -->` and `<!-- end -->`. What a run has no record of is left out; a section
of which it has none says so. Each names the command that gives its figures alone, with the run's own settings: where a
folder has runs of several sizes (--quick and the full one), a table is that of the largest, alone. Where another folder
has the same cases on another processor, its tables of seconds stand below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mpcache.benchmarks.records.record import Record, described
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.store import read_records
from mpcache.benchmarks.report.page import origin
from mpcache.benchmarks.report.readme.cells import prose
from mpcache.benchmarks.report.readme.costs import block, whole_model
from mpcache.benchmarks.report.readme.generation import generation
from mpcache.benchmarks.report.readme.quality import quality
from mpcache.files import written_whole
from mpcache.protocols.errors import ConfigError

ABSENT = "Not in these records.\n"
_SECTION = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_BEGIN, _END = "<!-- figures:", "<!-- end -->"
SECTIONS: dict[str, Callable[[Sequence[Record]], str]] = {
    "origin": lambda records: prose(origin(records)),
    "generation": generation,
    "block": block,
    "whole-model": whole_model,
    "quality": quality,
}
TIMED = ("generation", "block", "whole-model")
"""Sections with seconds, which every processor has its own of."""


def write_readme(folder: Path, path: Path, beside: Path | None = None) -> None:
    """Rewrite the sections of the file at `path` from the folder's records, and from those that another processor gave
    in the folder `beside`. Raises ConfigError."""
    records = read_records(folder)
    others = read_records(beside) if beside is not None else ()
    try:
        text = render(path.read_text(), records, others)
        with written_whole(path) as partial:
            partial.write_text(text)
    except OSError as error:
        raise ConfigError(f"the figures cannot be written to {path}: {error}") from None


def render(text: str, records: Sequence[Record], beside: Sequence[Record] = ()) -> str:
    """The text with its sections made anew. Raises ConfigError if a section is unknown or has no end."""
    whole = len(_SECTION.findall(text))
    if not whole or whole != text.count(_BEGIN) or whole != text.count(_END):
        raise ConfigError(f"sections for figures begin with a line '{_BEGIN} NAME -->' and end with '{_END}'")
    measured, others = done(records), done(beside)

    def section(found: re.Match[str]) -> str:
        begin, name, _, end = found.groups()
        if name not in SECTIONS:
            raise ConfigError(f"there are no figures called {name!r} (known: {', '.join(SECTIONS)})")
        return f"{begin}{SECTIONS[name](measured) or ABSENT}{_beside(name, others)}{end}"

    return _SECTION.sub(section, text)


def _beside(name: str, records: Sequence[Record]) -> str:
    shown = SECTIONS[name](records).split("\n\n")[0] if name in TIMED else ""  # the table, without its commands
    where = "; ".join(sorted({described(r["machine"]) for r in records}))
    return f"\nThe same on {where}:\n\n{shown}\n" if shown else ""
