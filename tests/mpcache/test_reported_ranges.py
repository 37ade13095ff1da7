"""What a finished generation tells of the sizes of its plaintext twin's values."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mpcache.benchmarks.records.ranges import all_ranges
from mpcache.benchmarks.run.show import show_records
from mpcache.files import write_json
from mpcache.generation.loop import Meter, Phase
from mpcache.inspection import bounds
from mpcache.inspection.bounds import Sizes
from mpcache.parties.command.report import show_result
from mpcache.parties.result import FullCache, Result
from mpcache.protocols.session import Cost
from tests.asking import asked


def sizes(stream: float) -> Sizes:
    out = Sizes()
    out.note(bounds.STREAM, 1, stream)
    out.note(bounds.LOGITS, None, 20.0)
    return out


def result(stream: float) -> Result:
    return Result(
        answer="yes", new_tokens=1, request=asked(3, 1), meter=Meter(Cost), plain_answer="yes", ranges=sizes(stream)
    )


def test_a_passed_bound_is_said_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    passed = result(54_788)
    show_result(passed)
    shown = capsys.readouterr().out
    assert "layer 1, residual stream: 54,788, beyond 32,768: the private answer is not to be trusted" in shown
    ranges = json.loads(json.dumps(passed.to_dict()))["ranges"]
    assert ranges["passed"] == 1
    assert ranges["places"] == [
        {"place": "residual stream", "layer": 1, "size": 54_788.0, "limit": 32_768.0},
        {"place": "difference of logits", "layer": None, "size": 20.0, "limit": 4_096.0},
    ]


def test_within_all_bounds_one_line_says_what_came_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(result(3_000))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "bounds" in line]
    assert line == "all values within their bounds; nearest: layer 1, residual stream: 3,000, of 32,768 (9.2%)"


def test_the_full_cache_speaks_up_only_if_its_twin_passed_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    for stream, said in ((3_000, 0), (54_788, 1)):
        full = FullCache(kind="planned", prefill=Phase(), decode=Phase(), tokens=1, ranges=sizes(stream))
        show_result(replace(result(3_000), full_cache=full))
        assert capsys.readouterr().out.count("not to be trusted") == said


def test_a_result_is_for_nobody_else_to_read(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", result(1.0).to_dict(), "the result", private=True)
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o600


def test_records_of_a_benchmark_say_where_a_twin_passed_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"bench": "old"}, {"bench": "x", "ranges": sizes(10).to_dict()}]
    assert all_ranges(records).passed() == []
    show_records([*records, {"bench": "x", "ranges": sizes(float("inf")).to_dict()}])
    assert "layer 1, residual stream: inf, beyond 32,768" in capsys.readouterr().out
