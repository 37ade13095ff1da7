"""The README's tables of a block's decode step and of a whole model, with SPU's beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import is_block, is_whole_model, largest_run
from mpcache.benchmarks.records.tables import Rows, markdown
from mpcache.benchmarks.report.readme.cells import (
    COSTS,
    POLICIES,
    all_policies,
    all_tokens,
    costs,
    data_size,
    peak_memory,
    prose,
    seconds,
)

BLOCK_TOKENS = (512, 1024, 2048)


def block(records: Sequence[Record]) -> str:
    decoded = [r for r in records if r["bench"] == "decode" and r["backend"] == "mpc" and is_block(r)]
    shown = [r for r in decoded if r["tokens"] in BLOCK_TOKENS and r["settings"]["shape"] == "gpt2"]
    ours, spu = _ordered(shown), _spu([r for r in records if r.get("tokens") in BLOCK_TOKENS], "block")
    rows = [_step(_ours(r), r) for r in ours] + [_step(_theirs(r), r) for r in spu]
    commands = []
    if ours:
        options = f"--shape gpt2 --layers 1 --tokens {all_tokens(ours)} --policy {all_policies(ours)}"
        commands.append(f"mpcache bench decode {options} --repeat {ours[0]['settings']['repeat']}")
    return _steps("one block, decode step", rows, commands, spu) + _unchanged(ours) if rows else ""


def _unchanged(records: Sequence[Record]) -> str:
    """What of a step's bytes a policy can change, at the most tokens."""
    at = {r["policy"]: r for r in records if r["tokens"] == max(r["tokens"] for r in records)}
    if not {"full", "mpcache"} <= at.keys():
        return ""

    def size(name: str, *parts: str) -> str:
        own = at[name]["parts"]
        return data_size(sum(own[p]["online_bytes"] + own[p]["correlation_bytes"] for p in parts if p in own))

    return prose(
        f"Of mpcache's bytes at {at['full']['tokens']:,} tokens, correlations included, "
        f"{size('mpcache', 'linear', 'other')} are weights, norms and activation, which no policy changes; attention "
        f"with selection is {size('mpcache', 'attention', 'selection')}, against {size('full', 'attention')} for the "
        "full cache."
    )


def whole_model(records: Sequence[Record]) -> str:
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
            options = f"--shape gpt2 --embedding --head --tokens {all_tokens(own)} --policy {all_policies(own)}"
            times = own[0]["settings"].get("repeat", 1)
            repeat = f" --repeat {times}" if bench == "decode" or times > 1 else ""
            commands.append(f"mpcache bench {bench} {options}{repeat}")
    peaks = [
        prose(f"Peak memory in the prefill of {r['tokens']:,} tokens, {_ours(r)}: {peak_memory(r)}.")
        for r in prefills[-1:]
    ]
    title = "12 layers, embedding, logits and arg max of 50,257"
    return "".join([_steps(title, rows, commands, spu), *peaks]) if rows else ""


def _steps(title: str, rows: Rows, commands: list[str], spu: Sequence[Record]) -> str:
    """Ours and SPU's, and the commands that give them."""
    note = ""
    if spu:
        settings = spu[0]["settings"]
        options = f"--tokens {all_tokens(spu)} --system spu-aby3 --repeat {settings['repeat']}"
        commands = [*commands, f"python -m mpcache.benchmarks.peers --what {settings['what']} {options}"]
        version = spu[0]["system_versions"]["spu"]
        note = f" SPU is version {version}: its three parties need no dealer, and are sent no correlations."
    header = (title, "cached tokens", "seconds, median (fastest)", *COSTS[1:])
    given = "; ".join(f"`{command}`" for command in commands)
    return f"{markdown(header, rows)}\n{prose(f'{given}.{note}')}"


def _ordered(records: Iterable[Record]) -> list[Record]:
    names = list(POLICIES)
    own = (r for r in records if r["policy"] in names)
    return sorted(largest_run(own), key=lambda r: (names.index(r["policy"]), r["tokens"]))


def _spu(records: Iterable[Record], what: str) -> list[Record]:
    peers = (r for r in records if r["bench"] == "peers" and (r["what"], r["policy"]) == (what, "full"))
    return sorted(largest_run(r for r in peers if r["protocol"] == "ABY3"), key=lambda r: r["tokens"])


def _ours(record: Record) -> str:
    return POLICIES[record["policy"]]


def _theirs(record: Record) -> str:
    return f"{record['system'].upper()} {record['protocol']}, full cache"


def _step(name: str, record: Record) -> list[str]:
    """Of a prefill, which runs once, the only time."""
    shown = seconds(record["seconds"])
    if "all_seconds" in record:
        shown += f" ({seconds(min(record['all_seconds']))})"
    return [name, f"{record['tokens']:,}", shown, *costs(record)[1:]]
