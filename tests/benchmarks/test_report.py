"""The report, from records as the suite writes them."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mpcache.benchmarks.cases.networks import network_rows
from mpcache.benchmarks.records.record import Record, make_record
from mpcache.benchmarks.records.store import Records
from mpcache.benchmarks.report import write_report
from mpcache.benchmarks.report.svg import (
    Axis,
    Bar,
    Legend,
    Point,
    Series,
    Style,
    line_plot,
    scatter_plot,
    stacked_bars,
)
from mpcache.protocols.errors import ConfigError


class Balanced(HTMLParser):
    """Fails on an element that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        pass


def part(share: float) -> Record:
    return {
        "seconds": 0.1 * share,
        "cpu_seconds": 0.1 * share,
        "online_bytes": int(1e6 * share),
        "correlation_bytes": int(3e6 * share),
        "rounds": 10,
    }


def decoded(policy: str, tokens: int, share: float, bench: str = "decode", **changes: Any) -> Record:
    settings = {
        "bench": bench,
        "label": policy,
        "shape": "gpt2",
        "tokens": tokens,
        "layers": 1,
        "network": None,
        "backend": "mpc",
        "repeat": 3,
        "program": {"head": False},
        "policy": {"name": policy, "budget": 0.125},
        **changes,
    }
    figures = {
        **part(share),
        "policy": policy,
        "tokens": tokens,
        "backend": settings["backend"],
        "all_seconds": [0.09 * share, 0.1 * share, 0.2 * share],
        "cpu_seconds_by_process": {"owner": 0.02, "client": 0.03, "dealer": 0.01},
        "parts": {"linear": part(share / 2), "attention": part(share / 2)},
    }
    return make_record(settings, "done", figures)


def answered(policy: str, budget: float | None, match: float, placement: str, task: str = "day-sheet") -> Record:
    settings = {
        "bench": "quality",
        "label": policy,
        "task": task,
        "tokens": 512,
        "placement": placement,
        "policy": {"name": policy, "budget": budget or 0.125},
    }
    figures = {
        "policy": policy,
        "task": task,
        "tokens": 512,
        "placement": placement,
        "budget": budget,
        "exact_match": match,
        "standard_error": 0.01,
        "asked": 40,
        "cells": {"depth 0%": [1, 2], "depth 50%": [2, 2]} if task == "needle" else {},
    }
    return make_record(settings, "done", figures)


def generated(policy: str, seconds: float, **changes: Any) -> Record:
    prefill = {**part(1.0), "seconds": seconds, "all_seconds": [seconds]}
    figures = {
        "policy": policy,
        "tokens": 492,
        "new_tokens": 2,
        "first_token_seconds": seconds + 2,
        "prefill": prefill,
        "token": {**part(1.0), "all_seconds": [0.1]},
        "peak_memory_bytes": {"owner": 1 << 29, "client": 1 << 29, "dealer": 1 << 29},
        "same": True,
    }
    settings = {"bench": "generate", "label": policy, "model": "demo", "repeat": 3, "max_new_tokens": 8}
    return make_record({**settings, **changes}, "done", figures)


def compared(task: str, given: list[list[int]]) -> Record:
    cases = [{"seed": i, "expected": [i + 1], "plain": [i + 1], "mpc": answer} for i, answer in enumerate(given)]
    same = sum(c["plain"] == c["mpc"] for c in cases)
    figures = {"policy": "mpcache", "task": task, "tokens": 512, "same": same, "asked": 2, "cases": cases}
    return make_record({"bench": "agreement", "label": "mpcache", "task": task, "tokens": 512}, "done", figures)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = Records(tmp_path)
    for tokens in (512, 1024):
        for policy, share in (("full", 1.0), ("mpcache", 0.5), ("h2o <b>", 0.8)):
            records.add(decoded(policy, tokens, share * tokens / 512))
    wan = {"name": "wan", "round_trip": 0.02, "bandwidth": 5e7}
    records.add(decoded("full", 512, 1.0, "network", network=wan))
    records.add(decoded("full", 512, 7.0, backend="crypten"))
    for placement in ("end", "later"):
        records.add(answered("full", None, 1.0, placement))
        for policy, match in (("mpcache", 0.99), ("h2o <b>", 0.4)):
            for budget in (0.125, 0.25):
                records.add(answered(policy, budget, match, placement))
        records.add(answered("full", None, 1.0, placement, "needle"))
        records.add(answered("full", None, 0.1, placement, "count"))
    records.add(decoded("mpcache", 512, 3.0, layers=12, program={"head": True, "embedding": True}))
    for policy, seconds in (("full", 6.0), ("mpcache", 7.0)):
        records.add(generated(policy, seconds))
    for task, given in (("day-sheet", [[1], [2]]), ("needle", [[1], [3]])):
        records.add(compared(task, given))
    records.add(make_record({"bench": "decode", "label": "quest", "tokens": 9}, "failed", {"error": "it <died>"}))
    settings = {"bench": "peers", "system": "spu-aby3", "label": "full", "tokens": 1024}
    spu = {"system": "spu", "protocol": "ABY3", "what": "block", "policy": "full", "tokens": 1024, "messages": 9}
    records.add(make_record(settings, "done", {**spu, **part(9.0), "correlation_bytes": None, "rounds": None}))
    whole = {**spu, "what": "model", "tokens": 512, **part(90.0), "correlation_bytes": None, "rounds": None}
    records.add(make_record({**settings, "what": "model", "tokens": 512}, "done", whole))
    absent = {**settings, "system": "spu-semi2k"}
    records.add(make_record(absent, "absent", {"error": "SPU is not installed"}))
    return tmp_path


def test_the_page_is_whole_and_its_titles_say_the_finding(folder: Path) -> None:
    html, text = (path.read_text() for path in write_report(folder))
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    for finding in (
        "At 1,024 tokens mpcache takes 0.50 of the full cache's bytes",
        "CrypTen's own protocols take 7 times the seconds",
        "at 12.5%, mpcache keeps 97% of the full cache's answers",
        "Tasks beyond day sheets: the model itself fails at count",
        "SPU ABY3, full takes 0.90 s a block; MPCache, full 0.20 s (4.5 times as fast)",
        "SPU ABY3, full takes 9.00 s a whole model's step; MPCache, mpcache 0.30 s (30 times as fast)",
        "takes 6.0 s (full), 7.0 s (mpcache) from the start of the prefill; each further token takes 0.10 s (full), "
        "0.10 s (mpcache)",
        "the answers of plaintext in 3 of 4 cases; not in needle, mpcache",
        "peers spu-semi2k full 1024: absent: SPU is not installed",
    ):
        assert finding.replace("'", "&#x27;") in html and finding in text
    assert "src=" not in html and "href=" not in html, "it must need nothing else"
    assert "<b>" not in html and "it &lt;died&gt;" in html and "it <died>" in text


def lines(folder: Path) -> list[str]:
    return write_report(folder)[1].read_text().splitlines()


def test_a_case_of_a_quick_and_a_full_run_is_shown_once(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for repeat, share in ((21, 2.0), (3, 1.0)):
        records.add(decoded("full", 512, share, "network", repeat=repeat))
        records.add(decoded("full", 512, share, repeat=repeat))
    text = lines(tmp_path)
    assert [line for line in text if line.startswith("| full, 512, loopback")] == [
        "| full, 512, loopback | 0.003 | 0.000 | 0.030 | 0.200 | 10 |"
    ]
    assert "| full | 0.200 |" in text and "| full | 0.100 |" not in text


def test_networks_over_a_real_link_are_named_so(tmp_path: Path) -> None:
    wan = {"name": "wan", "round_trip": 0.02, "bandwidth": 5e7}
    link = {"name": "far", "owner": "10.9.0.1", "dealer": "10.8.0.1"}
    records = Records(tmp_path)
    records.add(decoded("full", 512, 2.0, "network", network=wan))
    records.add(decoded("full", 512, 1.0, "network", network=wan, namespace=link))
    text = lines(tmp_path)
    names = [line.split(" | ")[0] for line in text if line.startswith("| full, 512")]
    assert names == ["| full, 512, wan", "| full, 512, wan (real link)"]
    assert any("hold messages back" in line and "Where it says real link" in line for line in text)
    assert [row[2] for row in network_rows(records.records)] == ["wan", "wan (real link)"]


def test_what_every_policy_takes_on_a_network_is_computed_and_said_to_be(tmp_path: Path) -> None:
    records, wan = Records(tmp_path), {"name": "wan", "round_trip": 0.02, "bandwidth": 5e7}
    for policy, tokens, share in (("full", 512, 1.0), ("full", 1024, 2.0), ("h2o", 1024, 4.0)):
        records.add(decoded(policy, tokens, share))
    records.add(decoded("full", 1024, 2.0, "network", network=wan))
    text = lines(tmp_path)
    at = next(i for i, line in enumerate(text) if line.startswith("Computed, not measured") and "wan: round" in line)
    assert "at 1,024 cached tokens" in text[at]
    # 10 rounds of 10.26 ms, 2 and 4 MB at 50 MB/s, 0.03 s of the client
    assert text[at + 4 : at + 6] == [
        "| full | 0.103 | 0.040 | 0.030 | 0.173 | 0.200 | 10 |",
        "| h2o | 0.103 | 0.080 | 0.030 | 0.213 |  | 10 |",
    ]


def test_other_shapes_have_figures_of_their_own_and_are_not_set_beside_peers(folder: Path) -> None:
    records = Records(folder)
    before = [line for line in lines(folder) if "SPU ABY3" in line or "CrypTen" in line]
    records.add(decoded("full", 1024, 50.0, shape="llama-7b"))
    text = lines(folder)
    assert [line for line in text if "SPU ABY3" in line or "CrypTen" in line] == before
    assert any("one block of the shape llama-7b" in line for line in text) and "| full | 5.000 |" in text


def test_a_prefills_title_is_a_sentence_and_unknown_memory_is_blank(tmp_path: Path) -> None:
    record = decoded("full", 512, 100.0, "prefill", layers=12, program={"head": True, "embedding": True})
    Records(tmp_path).add({**record, "peak_memory_bytes": {"owner": 4 << 30, "client": None, "dealer": None}})
    text = lines(tmp_path)
    assert "### A prompt of 512 tokens takes the whole model 10 s and 400 MB" in text
    assert any(
        line.startswith("| 512 tokens, whole model | 10.0 |") and line.endswith("| 4,096 |  |  |") for line in text
    )


def test_each_plot_is_a_file_of_its_own(folder: Path) -> None:
    write_report(folder)
    plots = list((folder / "plots").glob("*.svg"))
    assert plots and all(plot.read_text().endswith("</svg>") for plot in plots)


def test_a_report_of_nothing_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no records"):
        write_report(tmp_path)


def test_plots_keep_to_their_frame_and_show_what_they_are_given() -> None:
    points = [Point(512, 0.001), Point(2048, 10.0, 5.0, 20.0)]
    svg = line_plot([Series("one", points, Style.of(3))], Axis("x", True), Axis("y", True))
    assert svg.count("<polyline") == 1 and "nan" not in svg
    bars = stacked_bars([Bar("none", [0.0, 0.0]), Bar("some", [1.0, 2.0], 4.0)], [Style.of(0), Style.of(1)], "s", str)
    assert bars.count("<rect") == 4 and 'width="-' not in bars


def test_a_name_has_one_style_and_no_two_names_the_same() -> None:
    legend = Legend()
    styles = [legend.style(f"policy {i}") for i in range(20)]
    assert legend.style("policy 3") == styles[3]
    assert len({(s.colour, s.dash) for s in styles}) == 20


def test_series_with_error_bars_stand_side_by_side() -> None:
    series = [Series(f"{i}", [Point(1, 2.0, 1.0, 3.0), Point(2, 2.0)], Style.of(i), i == 0) for i in range(3)]
    svg = line_plot(series, Axis("x"), Axis("y"))
    starts = [float(x) for x in re.findall(r'<polyline points="([0-9.]+),', svg)]
    assert len(set(starts)) == 3 and max(starts) - min(starts) < 10
    assert svg.count('stroke-width="3"') == 1 and starts[-1] == min(starts), "the strong one is drawn last, above"


def test_names_of_crowded_points_do_not_cover_each_other() -> None:
    series = [Series(f"policy-{i}", [Point(1 + i / 100, 0.5)], Style.of(i)) for i in range(8)]
    svg = scatter_plot(series, Axis("x", limits=(0, 4)), Axis("y", limits=(0, 1)))
    at = re.findall(r'<text x="([0-9.]+)" y="([0-9.]+)" text-anchor="(start|end)" font-size', svg)
    spans = [(float(x) - (50 if a == "end" else 0), float(y)) for x, y, a in at]
    assert len(spans) == 8
    for i, (x, y) in enumerate(spans):
        assert all(abs(x - u) >= 50 or abs(y - v) >= 11 for u, v in spans[:i])
