"""Workers on a Ray cluster of this machine, with two processors. Skipped where Ray is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from mpcache.benchmarks.records.store import read_records
from mpcache.parties.making import Maker
from mpcache.parties.workers.choice import chosen_pool
from mpcache.parties.workers.ray_actors import TOKEN_HINT
from mpcache.protocols.errors import ConfigError, PeerLost
from tests.end_to_end.test_dealer_workers import answer, parties
from tests.mpcache.models import save_random_model
from tests.parties.test_making import LARGE, SECRETS, plan
from tests.parties.test_workers import PATIENT, counted, killed, refused, zeros

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'mpcache[ray]'"),
]

HEAD = """
import json, sys
from mpcache.parties.workers.ray_actors import ray_pool
pool = ray_pool("local", 2)
import ray
for worker in pool.workers():
    worker.stop()
nodes = [node["NodeManagerAddress"] for node in ray.nodes()]
folder = ray._private.worker._global_node.get_session_dir_path()
print(json.dumps([ray.get_runtime_context().gcs_address, nodes, folder]), flush=True)
sys.stdin.read()
pool.close()
"""
"""Starts a Ray, says where, and ends it when nobody holds its standard input any more."""


class Cluster:
    def __init__(self, said: str) -> None:
        self.address, self.nodes, folder = json.loads(said)
        self.folder = Path(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder, "llama")
    return folder


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    """Ray asks for a token, and one of its own would be written to the user's home. Set before Ray is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Ray gives a node half a minute to start, which a busy machine may not manage at once."""
    for _ in range(5):
        command = [sys.executable, "-c", HEAD]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as head:
            assert head.stdout is not None and head.stdin is not None
            if said := head.stdout.readline():
                yield Cluster(said)
                head.stdin.close()
                assert head.wait(PATIENT) == 0
                return
    pytest.fail("Ray did not start within its half minute, five times")


def test_a_ray_that_is_started_here_listens_on_loopback_alone(cluster: Cluster) -> None:
    assert cluster.nodes == ["127.0.0.1"] and cluster.address.startswith("127.0.0.1:")


def test_actors_make_what_one_process_makes_and_ray_logs_no_seed(cluster: Cluster) -> None:
    alone = b"".join(Maker(None, LARGE).corrections(SECRETS, plan()))
    maker = Maker(chosen_pool(2, cluster.address), 1 << 20)
    try:
        assert b"".join(maker.corrections(SECRETS, plan())) == alone
    finally:
        maker.close()
    secrets = [*SECRETS.seeds, SECRETS.weight_key or b""]
    files = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert not any(secret in data or secret.hex().encode() in data for secret in secrets), path


def test_an_actor_that_dies_is_replaced_and_errors_are_told(cluster: Cluster) -> None:
    pool = chosen_pool(1, cluster.address)
    assert pool is not None
    try:
        first, other = pool.workers()
        assert first.submit(counted, 7).result(PATIENT) == (1, bytes(7))
        with pytest.raises(ConfigError, match="seven"):
            other.submit(refused, ConfigError).result(PATIENT)
        calls = [first.submit(killed), first.submit(zeros, 1), first.submit(zeros, 1)]
        for call in calls:
            with pytest.raises(PeerLost, match="a worker on Ray ended"):
                call.result(PATIENT)
        replaced, same = pool.workers()
        assert same is other and replaced.submit(counted, 1).result(PATIENT)[0] == 1
    finally:
        pool.close()


def test_who_lacks_the_token_is_told_what_to_set(cluster: Cluster) -> None:
    code = f"from mpcache.parties.workers.choice import chosen_pool; chosen_pool(2, {cluster.address!r})"
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, timeout=PATIENT)
    assert ended.returncode != 0 and "there is no Ray at 127.0.0.1" in ended.stderr and TOKEN_HINT in ended.stderr


def test_more_workers_than_processors_are_refused(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="has 2 processors, and 3 are needed"):
        chosen_pool(3, cluster.address)


def test_a_dealer_on_ray_gives_the_answer_and_the_bytes_of_one_process(
    cluster: Cluster, tmp_path: Path, model: Path
) -> None:
    with parties(model, tmp_path / "one") as connection:
        alone = answer(connection)
    with parties(model, tmp_path / "ray", ray=cluster.address) as connection:
        assert answer(connection) == alone


def test_the_quality_grid_runs_on_ray_and_resumes(cluster: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mpcache", "bench", "quality", "--task", "count", "--tokens", "150"]
    command += ["--policy", "full,streaming", "--budget", "0.5", "--documents", "1", "--out", str(tmp_path)]
    for more in (["--ray", cluster.address, "--workers", "2"], []):
        assert subprocess.run([*command, *more], timeout=PATIENT, check=False, capture_output=True).returncode == 0
        records = read_records(tmp_path)
        assert [r["status"] for r in records] == ["done"] * 4
        assert {(r["placement"], r["policy"]) for r in records} == {
            (placement, policy) for placement in ("end", "later") for policy in ("full", "streaming")
        }
        times = [r["measured_at"] for r in records]
    assert times == [r["measured_at"] for r in read_records(tmp_path)]
