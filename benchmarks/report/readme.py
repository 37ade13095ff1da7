"""The README's tables, written from a run's records, so that none of its figures can drift from them.

A section stands between `<!-- figures: NAME -->` and `<!-- end -->`. What a run has no record of is left out; a section
of which it has none says so. Each names the command that gives its figures alone, with the run's own settings: where a
folder has runs of several sizes (--quick and the full one), a table is that of the largest, alone.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mpcache.benchmarks.cases.generation import MAX_NEW_TOKENS
from mpcache.benchmarks.cases.quality_cases import PLACED
from mpcache.benchmarks.records.records import Record, is_block, is_whole_model, largest_run, read_records
from mpcache.benchmarks.records.tables import Rows, markdown
from mpcache.benchmarks.report.page import origin
from mpcache.files import written_whole
from mpcache.policies import PolicySettings, policies
from mpcache.protocols.errors import ConfigError

ABSENT = "Not in these records.\n"
BLOCK_TOKENS = (512, 1024, 2048)
QUALITY_TOKENS = 1024
MIDDLE = PolicySettings().budget
"""The share that policies attend to by default."""
WIDTH = 120
ROLES = ("owner", "client", "dealer")
POLICIES = {"full": "full cache", "mpcache": "mpcache"}
ABLATED = ("mpcache-static", "mpcache-dynamic")
_COSTS = ("seconds", "online", "correlations", "rounds")
_SECTION = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_BEGIN, _END = "<!-- figures:", "<!-- end -->"


def write_readme(folder: Path, path: Path) -> None:
    """Rewrite the sections of the file at `path` from the folder's records. Raises ConfigError."""
    records = read_records(folder)
    try:
        text = render(path.read_text(), records)
        with written_whole(path) as partial:
            partial.write_text(text)
    except OSError as error:
        raise ConfigError(f"the figures cannot be written to {path}: {error}") from None


def render(text: str, records: Sequence[Record]) -> str:
    """The text with its sections made anew. Raises ConfigError if a section is unknown or has no end."""
    whole = len(_SECTION.findall(text))
    if not whole or whole != text.count(_BEGIN) or whole != text.count(_END):
        raise ConfigError(f"sections for figures begin with a line '{_BEGIN} NAME -->' and end with '{_END}'")
    done = [r for r in records if r["status"] == "done"]

    def section(found: re.Match[str]) -> str:
        begin, name, _, end = found.groups()
        if name not in SECTIONS:
            raise ConfigError(f"there are no figures called {name!r} (known: {', '.join(SECTIONS)})")
        return f"{begin}{SECTIONS[name](done) or ABSENT}{end}"

    return _SECTION.sub(section, text)


# ------------------------------------------------------------ sections


def _generation(records: Sequence[Record]) -> str:
    made = [r for r in records if r["bench"] == "generate" and r["settings"]["model"] == "demo"]
    found = _by_policy(largest_run(r for r in made if r["policy"] in POLICIES))
    if not found:
        return ""
    first = next(iter(found.values()))
    header = (f"demo model, day sheet of {first['tokens']} tokens", *_COSTS)
    rows = [[f"prefill, to the first token: {POLICIES[n]}", *_costs(r["prefill"])] for n, r in found.items()]
    for name, r in found.items():
        if r["token"] is not None:
            rows.append([f"each token after it: {POLICIES[name]}", *_costs(r["token"])])
    peaks = "; ".join(f"{POLICIES[name]}: {_peaks(r)}" for name, r in found.items())
    same = [POLICIES[name] for name, r in found.items() if r["same"]]
    agrees = f"with {' and '.join(same)}" if same else "with neither"
    settings = first["settings"]
    command = f"mpcache bench generate --policy {','.join(found)} --repeat {settings['repeat']}"
    if settings["max_new_tokens"] != MAX_NEW_TOKENS:
        command += f" --max-new-tokens {settings['max_new_tokens']}"
    note = f"`{command}`. Peak memory: {peaks}. The private answer was that of plaintext {agrees}."
    return f"{markdown(header, rows)}\n{_prose(note)}"


def _block(records: Sequence[Record]) -> str:
    decoded = [r for r in records if r["bench"] == "decode" and r["backend"] == "mpc" and is_block(r)]
    shown = [r for r in decoded if r["tokens"] in BLOCK_TOKENS and r["settings"]["shape"] == "gpt2"]
    ours, spu = _ordered(shown), _spu([r for r in records if r.get("tokens") in BLOCK_TOKENS], "block")
    rows = [_step(_ours(r), r) for r in ours] + [_step(_theirs(r), r) for r in spu]
    commands = []
    if ours:
        options = f"--shape gpt2 --layers 1 --tokens {_all_tokens(ours)} --policy {_all_policies(ours)}"
        commands.append(f"mpcache bench decode {options} --repeat {ours[0]['settings']['repeat']}")
    return _steps("one block, decode step", rows, commands, spu) + _unchanged(ours) if rows else ""


def _unchanged(records: Sequence[Record]) -> str:
    """What of a step's bytes a policy can change, at the most tokens."""
    at = {r["policy"]: r for r in records if r["tokens"] == max(r["tokens"] for r in records)}
    if not {"full", "mpcache"} <= at.keys():
        return ""

    def size(name: str, *parts: str) -> str:
        own = at[name]["parts"]
        return _size(sum(own[p]["online_bytes"] + own[p]["correlation_bytes"] for p in parts if p in own))

    return _prose(
        f"Of mpcache's bytes at {at['full']['tokens']:,} tokens, correlations included, "
        f"{size('mpcache', 'linear', 'other')} are weights, norms and activation, which no policy changes; attention "
        f"with selection is {size('mpcache', 'attention', 'selection')}, against {size('full', 'attention')} for the "
        "full cache."
    )


def _whole_model(records: Sequence[Record]) -> str:
    whole = [r for r in records if r["bench"] in ("decode", "prefill") and r["backend"] == "mpc" and is_whole_model(r)]
    gpt2 = [r for r in whole if r["settings"]["shape"] == "gpt2"]
    steps = _ordered(r for r in gpt2 if r["bench"] == "decode")
    prefills = _ordered(r for r in gpt2 if r["bench"] == "prefill")
    spu = _spu(records, "model")
    rows = [_step(f"decode step, {_ours(r)}", r) for r in steps]
    rows += [_step(f"decode step, {_theirs(r)}", r) for r in spu]
    rows += [_step(f"prefill with the first token, {_ours(r)}", r) for r in prefills]
    commands = []
    for bench, own in (("decode", steps), ("prefill", prefills)):
        if own:
            options = f"--shape gpt2 --embedding --head --tokens {_all_tokens(own)} --policy {_all_policies(own)}"
            times = own[0]["settings"].get("repeat", 1)
            repeat = f" --repeat {times}" if bench == "decode" or times > 1 else ""
            commands.append(f"mpcache bench {bench} {options}{repeat}")
    peaks = [
        _prose(f"Peak memory in the prefill of {r['tokens']:,} tokens, {_ours(r)}: {_peaks(r)}.") for r in prefills[-1:]
    ]
    title = "12 layers, embedding, logits and arg max of 50,257"
    return "".join([_steps(title, rows, commands, spu), *peaks]) if rows else ""


def _steps(title: str, rows: Rows, commands: list[str], spu: Sequence[Record]) -> str:
    """Ours and SPU's, and the commands that give them."""
    note = ""
    if spu:
        settings = spu[0]["settings"]
        options = f"--tokens {_all_tokens(spu)} --system spu-aby3 --repeat {settings['repeat']}"
        commands = [*commands, f"python -m mpcache.benchmarks.peers --what {settings['what']} {options}"]
        version = spu[0]["system_versions"]["spu"]
        note = f" SPU is version {version}: its three parties need no dealer, and are sent no correlations."
    header = (title, "cached tokens", "seconds, median (fastest)", *_COSTS[1:])
    given = "; ".join(f"`{command}`" for command in commands)
    return f"{markdown(header, rows)}\n{_prose(f'{given}.{note}')}"


def _quality(records: Sequence[Record]) -> str:
    named = [r for r in records if r["bench"] == "quality" and r["policy"] in (*policies(), *ABLATED)]
    where = ("day-sheet", QUALITY_TOKENS, "demo")
    found = largest_run(r for r in named if (r["task"], r["tokens"], r["settings"]["model"]) == where)
    if not found:
        return ""
    budgets = sorted({r["budget"] for r in found if r["budget"] is not None})
    match = {(r["policy"], r["placement"], r["budget"]): r["exact_match"] for r in found}
    names = list(dict.fromkeys(r["policy"] for r in found))
    rows = []
    for name in names:
        cells = (match.get((name, p, b), match.get((name, p, None))) for p in PLACED for b in budgets or [None])
        rows.append([name, *("" if cell is None else f"{cell:.3f}" for cell in cells)])
    error = max(r["standard_error"] for r in found)
    command = _quality_command(found[0]["settings"]["documents"], budgets, names)
    note = (
        f"`{command}`: {found[0]['asked']} questions a cell about sheets of {QUALITY_TOKENS:,} tokens, "
        f"standard error up to {error:.3f}.{_kept(match)}"
    )
    return f"{markdown(_quality_header(budgets), rows)}\n{_prose(note)}"


def _quality_header(budgets: Sequence[float]) -> list[str]:
    """The full cache alone has no budget: then one column for each place of the question."""
    header = ["policy"]
    for where in PLACED.values():
        first, *others = [f"{budget * 100:.3g}%" for budget in budgets] or [""]
        header += [f"{where}: {first}" if first else where, *others]
    return header


def _quality_command(documents: int, budgets: Sequence[float], names: Sequence[str]) -> str:
    every = set(policies()) <= set(names)
    shown = ["all", *(name for name in names if name not in policies())] if every else names
    budget = f" --budget {','.join(f'{b:g}' for b in budgets)}" if budgets else ""
    options = f"--tokens {QUALITY_TOKENS} --documents {documents}{budget} --policy {','.join(shown)}"
    return f"mpcache bench quality {options}"


def _kept(match: dict[tuple[str, str, float | None], float]) -> str:
    """What mpcache's defaults keep of the full cache's answers."""
    kept = []
    for placement, where in PLACED.items():
        full, own = match.get(("full", placement, None)), match.get(("mpcache", placement, MIDDLE))
        if full and own is not None:
            kept.append(f"{own / full:.0%} with the {where}")
    return f" Of the full cache's answers, mpcache's defaults keep {' and '.join(kept)}." if kept else ""


SECTIONS: dict[str, Callable[[Sequence[Record]], str]] = {
    "origin": lambda records: _prose(origin(records)),
    "generation": _generation,
    "block": _block,
    "whole-model": _whole_model,
    "quality": _quality,
}


# ------------------------------------------------------------ cells


def _prose(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def _by_policy(records: Iterable[Record]) -> dict[str, Record]:
    found = {r["policy"]: r for r in records}
    return {name: found[name] for name in POLICIES if name in found}


def _ordered(records: Iterable[Record]) -> list[Record]:
    names = list(POLICIES)
    own = (r for r in records if r["policy"] in names)
    return sorted(largest_run(own), key=lambda r: (names.index(r["policy"]), r["tokens"]))


def _spu(records: Iterable[Record], what: str) -> list[Record]:
    peers = (r for r in records if r["bench"] == "peers" and (r["what"], r["policy"]) == (what, "full"))
    return sorted(largest_run(r for r in peers if r["protocol"] == "ABY3"), key=lambda r: r["tokens"])


def _all_tokens(records: Sequence[Record]) -> str:
    return ",".join(str(tokens) for tokens in sorted({r["tokens"] for r in records}))


def _all_policies(records: Sequence[Record]) -> str:
    return ",".join(dict.fromkeys(r["policy"] for r in records))


def _ours(record: Record) -> str:
    return POLICIES[record["policy"]]


def _theirs(record: Record) -> str:
    return f"{record['system'].upper()} {record['protocol']}, full cache"


def _step(name: str, record: Record) -> list[str]:
    """Of a prefill, which runs once, the only time."""
    shown = _seconds(record["seconds"])
    if "all_seconds" in record:
        shown += f" ({_seconds(min(record['all_seconds']))})"
    return [name, f"{record['tokens']:,}", shown, *_costs(record)[1:]]


def _costs(record: Record) -> list[str]:
    """Seconds, online and correlation bytes, and rounds: for who does not tell them, messages of a party."""
    correlations = record["correlation_bytes"]
    return [
        _seconds(record["seconds"]),
        _size(record["online_bytes"]),
        "" if correlations is None else _size(correlations),
        f"{record['messages_per_party']:,} messages" if record["rounds"] is None else f"{record['rounds']:,}",
    ]


def _seconds(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2 if value >= 0.1 else 3}f}"


def _size(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    megabytes = count / 1e6
    return f"{megabytes:.{0 if megabytes >= 100 else 1 if megabytes >= 10 else 2}f} MB"


def _peaks(record: Record) -> str:
    peaks = record["peak_memory_bytes"]
    return ", ".join(f"{role} {peaks[role] / 2**30:.1f} GiB" for role in ROLES if peaks.get(role))
