"""The command line, as a user meets it."""

import json
import re
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from mpcache.demo import DEMO_MODEL
from mpcache.demo.daysheet import sheet_of_tokens
from mpcache.generation.request import ClientRequest
from mpcache.model.tokenizer import load_tokenizer
from mpcache.parties.client import Connection
from mpcache.parties.command.main import main
from mpcache.parties.data_owner import DataOwner
from mpcache.parties.gateway import GatewayServer
from mpcache.parties.generated import client_pb2, client_pb2_grpc
from mpcache.parties.launcher import local_parties, role_process, write_settings
from mpcache.parties.prepared import OVERHEAD_BYTES
from mpcache.policies import PRESETS, available_policies, policy_settings, spelled
from mpcache.protocols.errors import PeerLost
from tests.asking import asking


def mpcache(*arguments: object, cwd: Path | None = None, typed: str = "") -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    command = [sys.executable, "-m", "mpcache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd, input=typed)


def here(*arguments: object) -> Result:
    """In this process, which spares the start of another; what is no expected error is raised."""
    result = CliRunner(catch_exceptions=False).invoke(main, list(map(str, arguments)))
    assert "Traceback" not in result.stderr
    return result


def test_three_commands_generate_from_three_files(stories: Path, tmp_path: Path) -> None:
    assert mpcache("certs", cwd=tmp_path).returncode == 0
    (tmp_path / "dealer.toml").write_text('listen = "127.0.0.1:0"\n')
    with role_process("dealer", tmp_path / "dealer.toml") as dealer:
        (tmp_path / "owner.toml").write_text(
            f'listen = "127.0.0.1:0"\ndealer = "{dealer.address}"\nmodel = "{stories}"\n'
        )
        with role_process("owner", tmp_path / "owner.toml") as owner:
            (tmp_path / "client.toml").write_text(
                f'owner = "{owner.address}"\ndealer = "{dealer.address}"\ntokenizer = "{stories}"\nmax_new_tokens = 4\n'
                '[policy]\nname = "quest"\nbudget = 80\n'
            )
            options = ("--policy", "mpcache:clusters=8+4:budget=20", "--budget", "80", "--json", tmp_path / "out.json")
            result = mpcache("client", "--config", tmp_path / "client.toml", *options, typed="Once upon a time\n")
    assert result.returncode == 0, result.stderr
    assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == 0o600, "an answer is for who asked alone"
    assert result.stdout.startswith(", there was a")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["answer"] == ", there was a" and written["prompt_tokens"] == 5 and written["rounds"] > 0
    assert written["policy"] == "mpcache"
    assert written["policy_settings"]["clusters"] == [8, 4] and written["policy_settings"]["budget"] == 80


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Connection, ClientRequest]]:
    """What commands ask for, of nobody."""
    found: list[tuple[Connection, ClientRequest]] = []

    def generation(connection: Connection, request: ClientRequest, on_block: object) -> None:
        found.append((connection, request))
        raise PeerLost("nobody is there")

    def gateway(listen: str, me: DataOwner) -> None:
        generation(me.connection, me.defaults, None)

    monkeypatch.setattr("mpcache.parties.data_owner.Generation", generation)
    monkeypatch.setattr("mpcache.parties.command.roles.GatewayServer", gateway)
    return found


@pytest.mark.parametrize("command", ["client", "gateway"])
def test_what_the_data_owner_sets_reaches_the_session(
    command: str, tmp_path: Path, asked: list[tuple[Connection, ClientRequest]]
) -> None:
    path, prompt = tmp_path / "client.toml", tmp_path / "prompt.txt"
    prompt.write_text("Q: Who?\n")
    path.write_text(
        f'owner = "127.0.0.1:1"\ndealer = "127.0.0.1:2"\ntokenizer = "{DEMO_MODEL}"\nstate = "kept"\ninsecure = true\n'
        f'max_new_tokens = 7\ntemperature = 0.5\nmodel_digest = "{"0" * 64}"\nnetwork = "20ms,50mbit"\n'
        'fixed_length = true\ntimeout_seconds = 9\nmax_model_gib = 3\nmax_step_gib = 1\n[policy]\nname = "tova"\n'
    )
    result = here(command, "--config", path, *(("--prompt-file", prompt) if command == "client" else ()))
    assert result.exit_code == 1 and result.stderr.strip() == "mpcache: nobody is there"
    tokens = load_tokenizer(DEMO_MODEL).encode("Q: Who?").ids if command == "client" else ()
    own = {"model_digest": "0" * 64, "fixed_length": True}
    own |= {"end_tokens": (199,), "vocabulary": 842}  # of its own tokenizer's folder
    request = asking(tokens, 7, temperature=0.5, policy=policy_settings("tova"), network="20ms,50mbit", **own)
    assert asked == [(Connection("127.0.0.1:1", "127.0.0.1:2", None, tmp_path / "kept", 9.0, 3.0, 1.0), request)]


@pytest.mark.parametrize("command", ["client", "demo"])
def test_a_fixed_length_is_asked_for_on_the_command_line(
    command: str, tmp_path: Path, asked: list[tuple[Connection, ClientRequest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Connection("", "", None, tmp_path)
    monkeypatch.setattr("mpcache.parties.command.demo.local_parties", lambda folder: nullcontext(nobody))
    path, prompt = tmp_path / "client.toml", tmp_path / "prompt.txt"
    prompt.write_text("Q: Who?\n")
    path.write_text(f'owner = "127.0.0.1:1"\ndealer = "127.0.0.1:2"\ntokenizer = "{DEMO_MODEL}"\ninsecure = true\n')
    config = ("--config", path) if command == "client" else ()
    for fixed in ((), ("--fixed-length",)):
        assert here(command, *config, "--prompt-file", prompt, *fixed).exit_code == 1
    assert [(request.fixed_length, request.end_tokens) for _, request in asked] == [(False, (199,)), (True, (199,))]


@pytest.mark.parametrize("role", ["owner", "client", "dealer"])
def test_a_users_mistake_gets_one_line_and_no_traceback(role: str, tmp_path: Path) -> None:
    for text, message in [
        (None, "there is no file"),
        ("listen =", "not valid TOML"),
        ("colour = 1", "unknown setting 'colour'"),
    ]:
        path = tmp_path / f"{role}.toml"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        result = here(role, "--config", path)
        assert result.exit_code == 1 and message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("client", "--config", "client.toml"), ("demo",)])
def test_a_prompt_on_the_command_line_is_refused(command: tuple[str, ...]) -> None:
    """Where every user of the machine could list it."""
    result = here(*command, "--prompt", "my secret")
    assert result.exit_code == 1 and "--prompt-file" in result.stderr and "secret" not in result.stderr
    assert "--prompt " not in here(command[0], "--help").stdout


def test_the_size_of_batches_without_prompts_is_refused(tmp_path: Path) -> None:
    values = {"owner": "127.0.0.1:1", "dealer": "127.0.0.1:1", "tokenizer": DEMO_MODEL}
    result = here("client", "--config", write_settings(tmp_path / "client.toml", values), "--batch", 4)
    assert result.exit_code != 0 and "--batch is for the prompts of --prompts" in result.stderr


def test_no_sample_puts_a_prompt_on_a_command_line() -> None:
    root = Path(__file__).resolve().parents[2]
    samples = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("docs/**/*.toml"), *root.glob("scripts/*")]
    assert len(samples) > 10
    assert not [path for path in samples if re.search(r"--prompt(?!-|s\b)", path.read_text())]


def test_the_demo_needs_a_prompt_for_another_model(tmp_path: Path) -> None:
    result = mpcache("demo", "--model", tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "mpcach"), "did you mean 'mpcache'?"),
        (("--budget", "20"), "a budget of 20 tokens is below the 27"),
        (("--policy", "mpcache:clusters"), "'clusters' is no setting: write key=value"),
        (("--policy", "mpcache:clusters=24+16"), "whole clusters of the next"),
        (("--policy", "mpcache:colour=1"), "unknown setting 'colour'"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_at_once(options: tuple[str, str], message: str) -> None:
    result = here("demo", *options)
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1


def test_policies_are_listed_with_what_they_cost() -> None:
    result = here("policies")
    assert result.exit_code == 0
    for name, policy in available_policies().items():
        assert name in result.stdout and policy.summary in result.stdout and policy.mpc_cost in result.stdout
        assert f"default: {spelled(policy_settings(name))}\n" in result.stdout
    for name, preset in PRESETS.items():
        assert f"{name} " in result.stdout and preset.summary in result.stdout and preset.policy in result.stdout


@pytest.mark.slow
def test_the_demo_shows_what_a_full_cache_costs_planned_or_measured(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(DEMO_MODEL)
    sheet = sheet_of_tokens(3, "heldout", 90, tokenizer)
    (tmp_path / "prompt.txt").write_text(sheet.text + sheet.questions[0][0])
    always = "only_if_cheaper=false:evict_if_cheap=false"
    policy = ("--policy", f"mpcache:clusters=8+4:recent=8:{always}", "--budget", "30")
    full = []
    for compare in ((), ("--compare",)):
        options = ("--prompt-file", tmp_path / "prompt.txt", "--max-new-tokens", 3, "--json", tmp_path / "out.json")
        result = mpcache("demo", *options, *policy, *compare)
        assert result.returncode == 0, result.stderr
        written = json.loads((tmp_path / "out.json").read_text())
        assert written["policy"] == "mpcache" and written["answer"] == written["plain_answer"]
        assert written["ranges"]["passed"] == 0 and "all values within their bounds" in result.stdout
        assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o600
        full.append(written["full_cache"])
        assert f"full cache, {full[-1]['kind']}" in result.stdout
        assert full[-1]["phases"]["decode"]["online_bytes"] > written["phases"]["decode"]["online_bytes"]
    planned, measured = full
    assert (planned["kind"], measured["kind"]) == ("planned", "measured")
    for phase in ("prefill", "decode"):
        assert planned["phases"][phase].pop("seconds") is None and measured["phases"][phase].pop("seconds") > 0
    assert planned["phases"] == measured["phases"]


def test_every_command_explains_itself() -> None:
    for command in (
        "certs",
        "owner",
        "client",
        "gateway",
        "dealer",
        "demo",
        "doctor",
        "inspect",
        "plan",
        "policies",
        "bench",
    ):
        result = here(command, "--help")
        assert result.exit_code == 0 and "Usage" in result.stdout
    for command in ("client", "dealer"):
        assert "prepare" in here(command, "--help").stdout
        assert f"{command} prepare [OPTIONS]" in here(command, "prepare", "--help").stdout


def test_a_plan_says_what_a_prepared_session_takes(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    shown = here("plan", "--model", DEMO_MODEL, "--tokens", 5, "--max-new-tokens", 2, "--json", out)
    [record] = json.loads(out.read_text())
    bytes_ = sum(record["phases"][phase]["correlation_bytes"] for phase in ("prefill", "eviction", "decode"))
    assert record["prepared"]["disk_bytes"] == bytes_ + OVERHEAD_BYTES
    assert record["prepared"]["seconds"] > 0
    assert f"{record['prepared']['disk_bytes'] / 1e6:,.2f} MB on the dealer's disk" in shown.stdout


def test_a_plan_with_drafts_says_what_a_pass_takes(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    options = ("--model", DEMO_MODEL, "--tokens", 5, "--max-new-tokens", 9, "--draft", 3, "--network", "wan")
    shown = here("plan", *options, "--json", out)
    assert shown.exit_code == 0
    [record] = json.loads(out.read_text())
    one = record["phases"]["first pass"]["seconds"]
    assert (record["draft"], record["passes"]) == (3, 8)
    assert f"a pass gives 1 to 4 tokens: {one:,.2f} to {one / 4:,.2f} s a token" in shown.stdout
    refused = here("plan", *options, "--policy", "mpcache")
    assert refused.exit_code == 1 and "takes no drafts" in refused.stderr and "Traceback" not in refused.stderr


def test_the_gateway_answers_an_application() -> None:
    with local_parties(DEMO_MODEL) as where:
        me = DataOwner(where, load_tokenizer(DEMO_MODEL), asking((), 3, policy=policy_settings("tova")))
        server = GatewayServer("127.0.0.1:0", me)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = client_pb2_grpc.ClientStub(channel)
            replies = list(stub.Generate(client_pb2.GenerateRequest(prompt="Q: Which Dr does Jasdell see?")))
            with pytest.raises(grpc.RpcError, match="allows 256 new tokens"):
                list(stub.Generate(client_pb2.GenerateRequest(prompt="Q:", max_new_tokens=999)))
        server.stop()
    summary = json.loads(replies[-1].summary)
    assert "".join(r.text for r in replies) == summary["answer"]
    assert 1 <= summary["new_tokens"] <= 3 and summary["policy"] == "tova"
