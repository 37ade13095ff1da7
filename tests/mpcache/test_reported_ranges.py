"""What a finished generation tells of the sizes of its plaintext twin's values."""

import json
from pathlib import Path

import pytest

from mpcache.benchmarks.records.ranges import all_ranges
from mpcache.benchmarks.run.show import show_records
from mpcache.generation.loop import Meter, Phase
from mpcache.inspection import bounds
from mpcache.inspection.bounds import Sizes
from mpcache.parties.command.report import FullCache, Result
from mpcache.protocols.session import Cost


def sizes(stream: float) -> Sizes:
    out = Sizes()
    out.note(bounds.STREAM, 1, stream)
    out.note(bounds.LOGITS, None, 20.0)
    return out


def result(stream: float) -> Result:
    return Result("yes", 3, 1, Meter(Cost), 0, 0.0, plain_answer="yes", ranges=sizes(stream))


def test_a_passed_bound_is_said_and_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    passed = result(54_788)
    passed.show()
    shown = capsys.readouterr().out
    assert "layer 1, residual stream: 54,788, beyond 32,768: the private answer is not to be trusted" in shown
    passed.write(tmp_path / "out.json")
    ranges = json.loads((tmp_path / "out.json").read_text())["ranges"]
    assert ranges["passed"] == 1
    assert ranges["places"] == [
        {"place": "residual stream", "layer": 1, "size": 54_788.0, "limit": 32_768.0},
        {"place": "difference of logits", "layer": None, "size": 20.0, "limit": 4_096.0},
    ]


def test_within_all_bounds_one_line_says_what_came_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    result(3_000).show()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "bounds" in line]
    assert line == "all values within their bounds; nearest: layer 1, residual stream: 3,000, of 32,768 (9.2%)"


def test_the_full_cache_speaks_up_only_if_its_twin_passed_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    for stream, said in ((3_000, 0), (54_788, 1)):
        shown = result(3_000)
        shown.full_cache = FullCache("planned", Phase(), Phase(), 1, ranges=sizes(stream))
        shown.show()
        assert capsys.readouterr().out.count("not to be trusted") == said


def test_a_result_is_for_nobody_else_to_read(tmp_path: Path) -> None:
    result(1.0).write(tmp_path / "out.json")
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o600


def test_records_of_a_benchmark_say_where_a_twin_passed_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"bench": "old"}, {"bench": "x", "ranges": sizes(10).to_dict()}]
    assert all_ranges(records).passed() == []
    show_records([*records, {"bench": "x", "ranges": sizes(float("inf")).to_dict()}])
    assert "layer 1, residual stream: inf, beyond 32,768" in capsys.readouterr().out
