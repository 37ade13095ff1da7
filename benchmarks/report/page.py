"""Put the figures together: one HTML file that needs nothing else, and a Markdown twin with the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from mpcache.benchmarks.cases.ops import HEADER, operation_rows
from mpcache.benchmarks.records.record import Record, described
from mpcache.benchmarks.records.selection import done, most_measured
from mpcache.benchmarks.records.store import read_records
from mpcache.benchmarks.records.tables import markdown
from mpcache.benchmarks.report.figure import Figure
from mpcache.benchmarks.report.html import table
from mpcache.benchmarks.report.sections import SECTIONS
from mpcache.benchmarks.report.svg import Legend
from mpcache.protocols.errors import ConfigError

_STYLE = (Path(__file__).parent / "report.css").read_text()


def write_report(folder: Path) -> tuple[Path, Path]:
    """report.html and report.md of a folder's records, in that folder, and each plot under plots/, named by its section
    and the figure's name or number. Raises ConfigError if there are none."""
    records = read_records(folder)
    html, text = folder / "report.html", folder / "report.md"
    try:
        html.write_text(page(records))
        text.write_text(twin(records))
        _write_plots(records, folder / "plots")
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {folder}: {error}") from None
    return html, text


def _write_plots(records: Sequence[Record], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for title, figures in _sections(records, Legend()):
        for number, figure in enumerate(figures, 1):
            if figure.plot.startswith("<svg "):
                plot = figure.plot.replace("<svg ", '<svg style="background:#fff" ', 1)
                (folder / f"{title.lower().replace(' ', '-')}-{figure.name or number}.svg").write_text(plot)


def _sections(records: Sequence[Record], legend: Legend) -> list[tuple[str, list[Figure]]]:
    shown = _shown(records)
    made = [(title, make(shown, legend)) for title, make in SECTIONS.items()]
    return [(title, figures) for title, figures in made if figures]


def _shown(records: Sequence[Record]) -> list[Record]:
    """Each case once, as it was measured most."""
    return most_measured(done(records))


def page(records: Sequence[Record]) -> str:
    body = [f"<h1>{_TITLE}</h1>", f'<p class="note">{escape(origin(records))}</p>']
    for title, figures in _sections(records, Legend()):
        body.append(f"<h2>{escape(title)}</h2>")
        body.append(f'<div class="figures">{"".join(_figure(figure) for figure in figures)}</div>')
    rows = operation_rows([r for r in _shown(records) if r["bench"] == "ops"])
    if rows:
        body.append(f"<h2>Protocols alone</h2>{table(HEADER, rows)}")
    body.append(_failures(records))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_TITLE}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


_TITLE = "MPCache: cache policies under secure computation"


def _figure(figure: Figure) -> str:
    return (
        f"<figure><h3>{escape(figure.title)}</h3>{figure.plot}{figure.legend}"
        f"<figcaption>{escape(figure.note)}</figcaption>"
        f"<details><summary>Numbers</summary>{table(figure.header, figure.rows)}</details></figure>"
    )


def origin(records: Sequence[Record]) -> str:
    """What ran the records, and when."""
    versions = {f"{r['versions']['mpcache']} ({r['versions']['commit'] or 'no commit'})" for r in records}
    times = sorted(r["measured_at"] for r in records)
    loads = sorted(r["load_average"] for r in records if r["load_average"] is not None)
    where = "; ".join(sorted({described(r["machine"]) for r in records}))
    load = f", load average {loads[0]:.1f} to {loads[-1]:.1f}" if loads else ""
    return (
        f"{len(records)} records, measured {times[0]} to {times[-1]} with MPCache {', '.join(sorted(versions))} "
        f"on {where}{load}. Seconds vary with the load; bytes and rounds are exact. Every record has its full settings."
    )


def _failures(records: Sequence[Record]) -> str:
    failed = [r for r in records if r["status"] != "done"]
    if not failed:
        return ""
    items = "".join(f"<li>{escape(_failure(r))}</li>" for r in failed)
    return f"<h2>Failed or absent</h2><ul>{items}</ul>"


def _failure(record: Record) -> str:
    settings = record["settings"]
    names = ("bench", "system", "label", "operation", "tokens", "backend")
    what = " ".join(str(settings[k]) for k in names if k in settings)
    return f"{what}: {record['status']}: {record['error']}"


def twin(records: Sequence[Record]) -> str:
    """The same figures as tables."""
    out = [f"# {_TITLE}\n", f"{origin(records)}\n"]
    for title, figures in _sections(records, Legend()):
        out.append(f"## {title}\n")
        for figure in figures:
            out.append(f"### {figure.title}\n\n{figure.note}\n\n{markdown(figure.header, figure.rows)}")
    rows = operation_rows([r for r in _shown(records) if r["bench"] == "ops"])
    if rows:
        out.append(f"## Protocols alone\n\n{markdown(HEADER, rows)}")
    failed = [r for r in records if r["status"] != "done"]
    if failed:
        out.append("## Failed or absent\n\n" + "".join(f"- {_failure(r)}\n" for r in failed))
    return "\n".join(out)
