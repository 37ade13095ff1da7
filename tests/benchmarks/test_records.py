from pathlib import Path

import pytest

from mpcache.benchmarks.measure.runner import Case, run_cases
from mpcache.benchmarks.records.record import Record, described, make_record
from mpcache.benchmarks.records.selection import is_whole_model, largest_run, most_measured
from mpcache.benchmarks.records.store import FILE, Records, read_records
from mpcache.files import write_json
from mpcache.protocols.errors import ConfigError, PeerLost


def case(name: str, calls: list[str], error: Exception | None = None) -> Case:
    def run() -> dict[str, object]:
        calls.append(name)
        if error is not None:
            raise error
        return {"seconds": 1.0}

    return Case(name, {"bench": "test", "name": name}, run)


def test_an_interrupted_run_resumes_and_skips_what_is_done(tmp_path: Path) -> None:
    calls: list[str] = []
    run_cases([case("a", calls)], Records(tmp_path))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"bench": "test", "settings"')  # killed in the middle of a line
    records = run_cases([case("a", calls), case("b", calls)], Records(tmp_path))
    assert calls == ["a", "b"]
    assert [r["status"] for r in records] == ["done", "done"]


def test_a_failing_case_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    calls: list[str] = []
    failing = case("a", calls, PeerLost("the owner went away"))
    first, second = run_cases([failing, case("b", calls)], Records(tmp_path))
    assert (first["status"], first["error"], second["status"]) == ("failed", "the owner went away", "done")
    (again,) = run_cases([case("a", calls)], Records(tmp_path))
    assert again["status"] == "done" and len(read_records(tmp_path)) == 2


def test_what_is_absent_is_named_as_absent_and_tried_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def run() -> dict[str, object]:
        calls.append("a")
        return {"status": "absent", "error": "it is not installed"}

    for _ in range(2):
        (record,) = run_cases([Case("a", {"bench": "test"}, run)], Records(tmp_path))
        assert (record["status"], record["error"]) == ("absent", "it is not installed")
    assert calls == ["a", "a"]


def test_a_record_says_what_ran_it_and_what_was_run() -> None:
    record = make_record({"bench": "test", "tokens": 5}, "done", {"seconds": 2.0})
    assert record["settings"] == {"bench": "test", "tokens": 5} and record["seconds"] == 2.0
    assert record["versions"]["torch"] and record["machine"]["cores"] >= 1 and record["measured_at"]
    machine = record["machine"]
    words = described(machine)
    assert all(str(machine[key]) in words for key in ("processor", "vector_width", "cores"))
    assert described({"processor": "AMD EPYC", "cores": 2}) == "AMD EPYC, 2 cores"  # as older records have it


def test_unusable_folders_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no records"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_json(tmp_path / "nowhere" / "records.json", [], "the records")


def sized(bench: str = "decode", **settings: object) -> Record:
    return make_record({"bench": bench, **settings}, "done", {})


def test_of_runs_of_several_sizes_the_largest_is_taken_alone() -> None:
    quick = [sized(tokens=512, repeat=3), sized(tokens=1024, repeat=3)]
    full = sized(tokens=512, repeat=21)
    assert largest_run([*quick, full]) == [full] and largest_run(quick) == quick and largest_run([]) == []
    short, long = sized(repeat=3, max_new_tokens=8), sized(repeat=3, max_new_tokens=64)
    assert largest_run([long, short]) == [long]


def test_a_case_that_was_measured_twice_is_taken_once_and_others_stay() -> None:
    quick, other = sized(tokens=512, label="full", repeat=3), sized(tokens=1024, label="full", repeat=3)
    full = sized(tokens=512, label="full", repeat=21)
    assert most_measured([full, quick, other]) == [full, other]


def test_answers_about_fewer_documents_stand_beside_none_about_more() -> None:
    few, more = sized("quality", task="needle", label="own", documents=10), sized("quality", label="own", documents=10)
    full = sized("quality", task="needle", label="full", documents=50)
    assert most_measured([few, full, more]) == [full, more]


@pytest.mark.parametrize(
    ("shape", "layers", "whole"), [("gpt2", 12, True), ("gpt2", 2, False), ("tiny", 2, True), ("/nowhere", 2, False)]
)
def test_a_whole_model_has_all_of_its_shapes_layers(shape: str, layers: int, whole: bool) -> None:
    program = {"head": True, "embedding": True}
    assert is_whole_model(sized(shape=shape, layers=layers, program=program, network=None)) == whole
