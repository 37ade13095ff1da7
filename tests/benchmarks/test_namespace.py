"""Decode steps over a link between network namespaces: a real one, of two virtual devices."""

import subprocess
from collections.abc import Iterator

import pytest

from benchmarks.decode import Workload, decode_cases
from benchmarks.namespace import Namespace, parse_namespace
from benchmarks.policies import parse_contenders
from benchmarks.program import Program
from benchmarks.records import Records
from benchmarks.runner import ProcessPool, run_cases
from protocols.errors import ConfigError

NAME, HERE, THERE = "mpcache-test", "10.213.97.1", "10.213.97.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    try:
        ip("netns", "add", NAME)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("network namespaces need Linux, iproute2 and root")
    try:
        try:
            ip("link", "add", "mpcache0", "type", "veth", "peer", "name", "mpcache1", "netns", NAME)
            ip("addr", "add", f"{HERE}/24", "dev", "mpcache0")
            ip("-n", NAME, "addr", "add", f"{THERE}/24", "dev", "mpcache1")
            ip("link", "set", "mpcache0", "up")
            for device in ("lo", "mpcache1"):
                ip("-n", NAME, "link", "set", device, "up")
        except subprocess.SubprocessError:
            pytest.skip("no virtual network devices here")
        yield Namespace(NAME, THERE, THERE)
    finally:
        ip("netns", "del", NAME)


def test_owner_and_dealer_run_in_another_network_namespace(namespace: Namespace) -> None:
    workload = Workload("tiny", 1, Program("decode"), namespace=namespace)
    pool = ProcessPool()
    try:
        cases = decode_cases(workload, [24], parse_contenders("full"), ["mpc"], 1, pool, "network")
        (record,) = run_cases(cases, Records())
    finally:
        pool.close()
    assert record["status"] == "done", record
    assert record["settings"]["namespace"] == {"name": NAME, "owner": THERE, "dealer": THERE}


@pytest.mark.parametrize("text", ["far", "far,10.9.0.1", "far,,10.8.0.1", "a,b,c,d"])
def test_a_namespace_that_is_written_otherwise_is_a_clear_error(text: str) -> None:
    with pytest.raises(ConfigError, match="name, owner's, dealer's"):
        parse_namespace(text)
