"""README.md's figures are those of docs/report, and the renderer refuses what it cannot place."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpcache.benchmarks.records.record import Record, make_record
from mpcache.benchmarks.records.store import Records, read_records
from mpcache.benchmarks.report.readme import ABSENT, SECTIONS, render
from mpcache.benchmarks.run.commands import bench
from mpcache.protocols.errors import ConfigError
from tests.benchmarks.test_report import answered, decoded, generated, part

ROOT = Path(__file__).parents[2]


def section(name: str) -> str:
    return f"before\n<!-- figures: {name} -->\nold\n<!-- end -->\nafter\n"


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def prefilled() -> Record:
    record = decoded("full", 512, 100.0, "prefill", shape="gpt2", layers=12, program={"head": True, "embedding": True})
    record.pop("all_seconds")
    return {**record, "peak_memory_bytes": {"owner": 4 << 30, "client": 3 << 30, "dealer": None}}


def peer(what: str, tokens: int, share: float, repeat: int = 7) -> Record:
    settings = {"bench": "peers", "system": "spu-aby3", "what": what, "tokens": tokens, "repeat": repeat}
    figures = {"system": "spu", "protocol": "ABY3", "what": what, "policy": "full", "tokens": tokens}
    unknown = {"correlation_bytes": None, "rounds": None, "messages_per_party": 455}
    times = {"all_seconds": [0.1 * share], "system_versions": {"spu": "0.9.5"}}
    return make_record(settings, "done", {**figures, **part(share), **unknown, **times})


def test_the_readmes_figures_are_those_of_the_report() -> None:
    text = (ROOT / "README.md").read_text()
    assert re.findall("<!-- figures: (.*) -->", text) == list(SECTIONS)
    assert render(text, read_records(ROOT / "docs" / "report")) == text, "run: mpcache bench readme docs/report"


def test_the_page_of_two_processors_has_the_figures_of_their_records() -> None:
    wide, avx2 = (read_records(ROOT / "docs" / "processors" / name) for name in ("avx512", "avx2"))
    text = (ROOT / "docs" / "processors.md").read_text()
    assert render(text, wide, avx2) == text, "run the page's second command"


def test_the_readmes_plots_are_there() -> None:
    plots = re.findall(r"!\[.*\]\((.*)\)", (ROOT / "README.md").read_text())
    assert plots and all((ROOT / plot).exists() for plot in plots)


def test_a_section_is_made_anew_and_nothing_else_is_touched() -> None:
    gpt2 = {"shape": "gpt2", "repeat": 21}
    records = [
        decoded("mpcache", 512, 1.0, **gpt2),
        decoded("full", 512, 2.0, **gpt2),
        decoded("quest", 512, 1, **gpt2),
    ]
    records += [peer("block", 512, 9.0), decoded("full", 512, 1.0, layers=12, **gpt2)]
    text = render(section("block"), records)
    assert text.startswith("before\n<!--") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert rows(text)[2:] == [
        ["full cache", "512", "0.20 (0.18)", "2.00 MB", "6.00 MB", "10"],
        ["mpcache", "512", "0.10 (0.090)", "1.00 MB", "3.00 MB", "10"],
        ["SPU ABY3, full cache", "512", "0.90 (0.90)", "9.00 MB", "", "455 messages"],
    ]
    assert "`mpcache bench decode --shape gpt2 --layers 1 --tokens 512 --policy full,mpcache --repeat 21`" in text
    assert "--what block --tokens 512 --system spu-aby3 --repeat 7" in text.replace("\n", " ")
    assert render(text, records) == text


def test_another_processors_seconds_stand_below() -> None:
    here, there = decoded("full", 512, 2.0, shape="gpt2"), decoded("full", 512, 3.0, shape="gpt2")
    there["machine"] = {**there["machine"], "processor": "Another", "model": "family 6", "vector_width": "AVX2"}
    text = render(section("block"), [here], [there])
    first, second = text.split("The same on Another (family 6), AVX2, ")
    assert [row[2] for part in (first, second) for row in rows(part)[2:]] == ["0.20 (0.18)", "0.30 (0.27)"]
    assert "Another" not in render(section("quality"), [here], [there]), "answers are the same on all"


def test_whole_models_and_generations_have_tables_of_their_own() -> None:
    whole = {"shape": "gpt2", "layers": 12, "program": {"head": True, "embedding": True}, "repeat": 5}
    records = [decoded("mpcache", 512, 1.0, **whole), peer("model", 512, 90.0), prefilled()]
    text = render(section("whole-model"), records)
    assert [row[0] for row in rows(text)[2:]] == [
        "decode step, mpcache",
        "decode step, SPU ABY3, full cache",
        "prefill with the first token, full cache",
    ]
    assert "Peak memory in the prefill of 512 tokens, full cache: owner 4.0 GiB, client 3.0 GiB." in text
    made = generated("full", 6.0)
    made["settings"]["repeat"] = 3
    text = render(section("generation"), [made])
    assert rows(text)[2:] == [
        ["prefill, to the first token: full cache", "6.0", "1.00 MB", "3.00 MB", "10"],
        ["each token after it: full cache", "0.10", "1.00 MB", "3.00 MB", "10"],
    ]
    assert "`mpcache bench generate --policy full --repeat 3`" in text and "of plaintext with full cache" in text


def test_answers_stand_by_placement_and_budget() -> None:
    records = []
    for placement, match in (("end", 0.9), ("later", 0.6)):
        for record in (answered("full", None, 1.0, placement), answered("mpcache", 0.125, match, placement)):
            record["settings"] |= {"model": "demo", "documents": 10}
            records.append({**record, "tokens": 1024})
    text = render(section("quality"), records)
    assert rows(text)[2:] == [["full", "1.000", "1.000"], ["mpcache", "0.900", "0.600"]]
    assert "keep 90% with the question at the end of the prompt and 60% with" in text.replace("\n", " ")


def test_a_folder_with_a_quick_and_a_full_run_gives_the_full_ones_tables() -> None:
    records = []
    for repeat, share in ((21, 2.0), (3, 1.0)):
        records += [decoded(policy, 512, share, repeat=repeat) for policy in ("full", "mpcache")]
        records += [decoded("full", 1024, 1.0, repeat=3)]
        records += [generated("full", share, repeat=repeat)]
        records.append(peer("block", 512, share, repeat))
    assert [row[1:3] for row in rows(render(section("block"), records))[2:]] == [
        ["512", "0.20 (0.18)"],
        ["512", "0.20 (0.18)"],
        ["512", "0.20 (0.20)"],
    ]
    text = render(section("generation"), records)
    assert rows(text)[2][:2] == ["prefill, to the first token: full cache", "2.0"] and "--repeat 21`" in text
    records = []
    for documents, match in ((50, 0.9), (10, 0.5)):
        for policy, budget in (("full", None), ("mpcache", 0.125), ("quest", 0.125)):
            record = answered(policy, budget, match, "end")
            record["settings"] |= {"model": "demo", "documents": documents}
            records.append({**record, "tokens": 1024, "asked": documents * 4})
    text = render(section("quality"), [*records[:2], *records[3:]])
    assert rows(text)[2:] == [["full", "0.900"], ["mpcache", "0.900"]]
    assert "--documents 50 --budget 0.125 --policy full,mpcache`: 200 questions" in text.replace("\n", " ")


def test_the_full_cache_alone_has_a_table_of_answers() -> None:
    record = answered("full", None, 1.0, "end")
    record["settings"] |= {"model": "demo", "documents": 10}
    text = render(section("quality"), [{**record, "tokens": 1024}])
    assert rows(text)[0][1:] == ["question at the end of the prompt", "question after eviction"]
    assert rows(text)[2:] == [["full", "1.000"]]
    assert "`mpcache bench quality --tokens 1024 --documents 10 --policy full`" in text


def test_a_longer_generations_command_says_how_long() -> None:
    text = render(section("generation"), [generated("full", 6.0, max_new_tokens=64)])
    assert "`mpcache bench generate --policy full --repeat 3 --max-new-tokens 64`" in text


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "origin"])
def test_a_table_without_records_says_so(name: str) -> None:
    failed = make_record({"bench": "decode", "label": "full"}, "failed", {"error": "it died"})
    assert render(section(name), [failed]) == section(name).replace("old\n", ABSENT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no section", "sections for figures begin"),
        (section("blocks"), "no figures called 'blocks'"),
        (section("block").replace("<!-- end -->", ""), "end with '<!-- end -->'"),
        (section("block") + "<!-- figures: quality -->\n", "end with '<!-- end -->'"),
    ],
)
def test_a_section_that_is_unknown_or_has_no_end_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        render(text, [])


def test_the_command_needs_records_and_a_file_to_write(tmp_path: Path) -> None:
    file, runner = tmp_path / "README.md", CliRunner()
    file.write_text(section("block"))
    nothing = runner.invoke(bench, ["readme", str(tmp_path), str(file)])
    assert isinstance(nothing.exception, ConfigError) and "no records" in str(nothing.exception)
    Records(tmp_path).add(decoded("full", 512, 1.0, shape="gpt2", repeat=3))
    missing = runner.invoke(bench, ["readme", str(tmp_path), str(tmp_path / "nowhere.md")])
    assert isinstance(missing.exception, ConfigError) and "cannot be written" in str(missing.exception)
    assert runner.invoke(bench, ["readme", str(tmp_path), str(file)]).exit_code == 0
    assert "| full cache | 512 |" in file.read_text()
