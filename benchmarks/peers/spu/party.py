"""One party of a computation on SPU, as a process of its own: run by SPU's Python, started by `spu_peer`.

Party 0 makes the random inputs, shares all of them and scatters the shares; then all parties compute together, once
for the counters, once to warm up, and `repeat` times for the clock. Writes what it measured as JSON. Imports SPU,
JAX and NumPy alone.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import spu
from programs import program
from spu import libspu
from spu.utils import frontend

RECEIVE_MILLISECONDS = 600_000
CONNECT_TRIES = 600
CONNECT_INTERVAL_MILLISECONDS = 100
SEND_PIECE = 64 << 20
"""Bytes of shares handed over at a time."""

jax.config.update("jax_platforms", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", help="JSON: protocol, addresses, repeat, and the program's case")
    parser.add_argument("rank", type=int)
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    case = json.loads(arguments.case)
    signal.alarm(case["limit_seconds"])  # ends this process should nobody else
    libspu.logging.setup_logging(libspu.logging.LogOptions())  # the counters come as log lines
    arguments.result.write_text(json.dumps(measure(case, arguments.rank)))


def measure(case: dict[str, Any], rank: int) -> dict[str, Any]:
    function, inputs = program(case)
    executable = compile_secret(function, inputs)
    names = executable.input_names
    expected = reference(function, inputs) if rank == 0 else []
    if rank:
        inputs.clear()
    link = connect(case["addresses"], rank)

    def run(runtime: Any) -> tuple[float, float]:
        """Wall and CPU seconds of one computation on shares."""
        link.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        runtime.run(executable)
        return time.perf_counter() - wall, time.process_time() - cpu

    counting = spu.Runtime(link, runtime_config(case, profile=True))
    if rank:
        receive_shares(link, counting, names)
    else:
        deal_shares(link, case, inputs, counting, names)
    run(counting)
    runtime = spu.Runtime(link, runtime_config(case))
    hand_over(counting, runtime, names)
    run(runtime)
    times = [run(runtime) for _ in range(case["repeat"])]
    outputs = [runtime.get_var(name) for name in executable.output_names]
    errors = reveal_errors(link, case, outputs, expected, rank)
    link.barrier()
    link.stop_link()
    return {
        "seconds": [wall for wall, _ in times],
        "cpu_seconds": [cpu for _, cpu in times],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "errors": errors,
    }


def connect(addresses: list[str], rank: int) -> Any:
    description = libspu.link.Desc()
    description.recv_timeout_ms = RECEIVE_MILLISECONDS
    description.connect_retry_times = CONNECT_TRIES
    description.connect_retry_interval_ms = CONNECT_INTERVAL_MILLISECONDS
    for i, address in enumerate(addresses):
        description.add_party(f"party{i}", address)
    return libspu.link.create_brpc(description, rank)


def runtime_config(case: dict[str, Any], profile: bool = False) -> Any:
    """SPU's defaults in the ring of 64 bits; the profile counts bytes and messages."""
    config = libspu.RuntimeConfig(spu.parse_protocol_kind(case["protocol"]), libspu.FieldType.FM64)
    config.enable_pphlo_profile = profile
    return config


def compile_secret(function: Callable[..., Any], inputs: list[np.ndarray]) -> Any:
    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        function,
        inputs,
        {},
        [f"in{i}" for i in range(len(inputs))],
        [libspu.Visibility.VIS_SECRET] * len(inputs),
        lambda outputs: [f"out{i}" for i in range(len(outputs))],
    )
    return executable


def deal_shares(link: Any, case: dict[str, Any], inputs: list[np.ndarray], runtime: Any, names: Sequence[str]) -> None:
    """Party 0 makes the shares of every input, keeps its own and sends the others theirs; the inputs are used up."""
    parties = len(case["addresses"])
    io = spu.Io(parties, runtime_config(case))
    for name in names:
        shares = io.make_shares(inputs.pop(0), libspu.Visibility.VIS_SECRET)
        runtime.set_var(name, shares[0])
        for other in range(1, parties):
            send(link, other, dump_share(shares[other]))


def receive_shares(link: Any, runtime: Any, names: Sequence[str]) -> None:
    for name in names:
        runtime.set_var(name, load_share(receive(link, 0)))


def hand_over(old: Any, new: Any, names: Sequence[str]) -> None:
    """Move the shares to another runtime, one by one: a model's take gigabytes."""
    for name in names:
        new.set_var(name, old.get_var(name))
        old.del_var(name)


def dump_share(share: Any) -> bytes:
    return pickle.dumps((share.meta, list(share.share_chunks)))


def load_share(data: bytes) -> Any:
    share = libspu.Share()
    share.meta, share.share_chunks = pickle.loads(data)  # between the processes of one benchmark
    return share


def send(link: Any, other: int, data: bytes) -> None:
    pieces = [data[i : i + SEND_PIECE] for i in range(0, len(data), SEND_PIECE)]
    for message in (str(len(pieces)).encode(), *pieces):
        link.send(other, message)


def receive(link: Any, other: int) -> bytes:
    return b"".join(bytes(link.recv(other)) for _ in range(int(link.recv(other))))


def reference(function: Callable[..., Any], inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The same program in plaintext."""
    return [np.asarray(value) for value in jax.tree_util.tree_leaves(jax.jit(function)(*inputs))]


def reveal_errors(
    link: Any, case: dict[str, Any], outputs: list[Any], expected: list[np.ndarray], rank: int
) -> list[float]:
    """The largest error of each output, at party 0: shows that the right thing was computed. 0 or 1 for a token."""
    if rank:
        for share in outputs:
            send(link, 0, dump_share(share))
        return []
    io = spu.Io(len(case["addresses"]), runtime_config(case))
    others = range(1, len(case["addresses"]))
    errors = []
    for share, wanted in zip(outputs, expected, strict=True):
        found = io.reconstruct([share, *[load_share(receive(link, i)) for i in others]])
        if case["what"] == "selection":  # SPU's top-k are the right ones, in no order
            found, wanted = np.sort(found, axis=1), np.sort(wanted, axis=1)
        errors.append(float(np.abs(found - wanted).max() if found.dtype.kind == "f" else (found != wanted).any()))
    return errors


if __name__ == "__main__":
    main()
