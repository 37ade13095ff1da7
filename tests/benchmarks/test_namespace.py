"""Decode steps over a link between network namespaces: a real one, of two virtual devices."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.decode import Workload, decode_cases
from mpcache.benchmarks.measure.namespace import Namespace, parse_namespace
from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.measure.program import Program
from mpcache.benchmarks.measure.runner import run_cases
from mpcache.benchmarks.records.store import Records
from mpcache.protocols.errors import ConfigError

PREFIX = "mpcache-test-"
NAME = f"{PREFIX}{os.getpid()}"
NEAR_DEVICE, FAR_DEVICE = (f"mpc{os.getpid()}{end}" for end in "ab")
HERE, THERE = (f"10.213.{os.getpid() % 256}.{host}" for host in (1, 2))


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=120).stdout


def remove(name: str) -> None:
    """With the link that leads to it; no error if it is not there."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ip("netns", "del", name)


def remove_left_over() -> None:
    """The namespaces of test runs that were killed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for line in ip("netns", "list").splitlines():
            name = line.split()[0]
            if name.startswith(PREFIX) and not Path(f"/proc/{name.removeprefix(PREFIX)}").exists():
                remove(name)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    remove_left_over()
    try:
        try:
            ip("netns", "add", NAME)
        except (OSError, subprocess.SubprocessError):
            pytest.skip("network namespaces need Linux, iproute2 and root")
        try:
            ip("link", "add", NEAR_DEVICE, "type", "veth", "peer", "name", FAR_DEVICE, "netns", NAME)
            ip("addr", "add", f"{HERE}/24", "dev", NEAR_DEVICE)
            ip("-n", NAME, "addr", "add", f"{THERE}/24", "dev", FAR_DEVICE)
            ip("link", "set", NEAR_DEVICE, "up")
            for device in ("lo", FAR_DEVICE):
                ip("-n", NAME, "link", "set", device, "up")
        except subprocess.SubprocessError:
            pytest.skip("no virtual network devices here")
        yield Namespace(NAME, THERE, THERE)
    finally:
        remove(NAME)


def test_owner_and_dealer_run_in_another_network_namespace(namespace: Namespace) -> None:
    workload = Workload("tiny", 1, Program("decode"), namespace=namespace)
    pool = ProcessPool()
    try:
        cases = decode_cases(workload, [24], compared_policies("full"), ["mpc"], 1, pool, "network")
        (record,) = run_cases(cases, Records())
    finally:
        pool.close()
    assert record["status"] == "done", record
    assert record["settings"]["namespace"] == {"name": NAME, "owner": THERE, "dealer": THERE}


@pytest.mark.parametrize("text", ["far", "far,10.9.0.1", "far,,10.8.0.1", "a,b,c,d"])
def test_a_namespace_that_is_written_otherwise_is_a_clear_error(text: str) -> None:
    with pytest.raises(ConfigError, match="name, owner's, dealer's"):
        parse_namespace(text)
