"""What is on the disks says nothing: each correction is noise to whoever lacks the owner's seed, and the whole file to
whoever lacks the client's. And what the folders do, without a network."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcache.generation.plan import correlations
from mpcache.model.config import ModelConfig
from mpcache.parties.prepared import HEAD_BYTES, About, PreparedSessions, Unprepared, at_rest
from mpcache.parties.seeds import Facts, KeptSeeds, request_digest
from mpcache.protocols import correlation as dealing
from mpcache.protocols.correlation import Corrected, Correlation, Dealer, leaves
from mpcache.protocols.errors import Busy, HandshakeError, IdentityError
from mpcache.protocols.normalisation import rms_norm
from mpcache.protocols.plan import plan_of
from tests.asking import asked
from tests.mpcache.policies.matrix import small

LLAMA = ModelConfig("llama", 96, 32, 48, 2, 4, 2, 8, 128, 1e-6, "silu")
GPT2 = ModelConfig("gpt2", 96, 32, 128, 1, 4, 4, 8, 128, 1e-5, "gelu_tanh")
READING = replace(small("snapkv"), prefill_budget=200)
PLANS: dict[str, Callable[[], Iterable[Correlation]]] = {
    "mpcache, sampled": lambda: correlations(LLAMA, asked(40, 3, policy=small("mpcache"), temperature=0.7)),
    "h2o": lambda: correlations(LLAMA, asked(40, 2, policy=small("h2o"))),
    "a prompt read with a budget": lambda: correlations(
        replace(LLAMA, max_positions=512), asked(400, 1, policy=READING)
    ),
    "gpt2": lambda: correlations(GPT2, asked(20, 2)),
    "a slow network": lambda: correlations(LLAMA, asked(40, 2, network="wan")),
    "crypten": lambda: correlations(GPT2, asked(3, 2, backend="crypten")),
    "a norm alone": lambda: plan_of(lambda session, x: rms_norm(session, x, 1e-6), (2, 96)).correlations,
}


def kinds() -> set[type[Correlation]]:
    found, new = set(), [Correlation]
    while new:
        new = [kind for parent in new for kind in parent.__subclasses__()]
        found |= {kind for kind in new if kind.__module__.startswith("mpcache.") and not inspect.isabstract(kind)}
    return found


def corrections(seed: bytes, plan: Iterable[Correlation]) -> list[tuple[Correlation, bytes]]:
    """Under this seed of the owner's; the client's and the weight key are always the same."""
    dealer = Dealer((seed, b"c" * 16), b"w" * 16)
    return [(each, dealer.correction(each)) for each in plan]


@pytest.fixture
def equal_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dealt is the same whatever was drawn: zeros."""

    def zeros(fields: Any, dealt: Any, name: str = "") -> Iterator[torch.Tensor]:
        for field in leaves(fields):
            if isinstance(field, Corrected):
                yield torch.zeros(field.shape, dtype=torch.int64)

    monkeypatch.setattr(dealing, "_in_order", zeros)


@pytest.mark.parametrize("name", PLANS)
def test_every_field_of_every_correction_is_masked_by_the_owners_stream(equal_values: None, name: str) -> None:
    """The same values under another seed of the owner's: half of all bits differ, in each field."""
    for (correlation, one), (_, other) in zip(
        corrections(b"1" * 16, PLANS[name]()), corrections(b"2" * 16, PLANS[name]()), strict=True
    ):
        start = 0
        for field in leaves(correlation.fields()):
            if not isinstance(field, Corrected):
                continue
            end = start + field.nbytes()
            bits = math.prod(field.shape) * field.bits
            both = int.from_bytes(one[start:end], "big") ^ int.from_bytes(other[start:end], "big")
            if bits >= 256:
                assert abs(both.bit_count() - bits / 2) < 7 * (bits / 4) ** 0.5, (type(correlation), field)
            start = end
        assert start == len(one) == len(other)


def test_the_plans_above_have_every_kind_of_correction() -> None:
    seen = {type(each) for plan in PLANS.values() for each in plan()}
    assert {kind.__name__ for kind in kinds() - seen} == set()


def test_a_file_is_noise_without_the_clients_seed_and_its_corrections_with_it() -> None:
    parts = [bytes(1000), bytes(range(256)) * 5000, b"x"]
    encrypt, decrypt, other = at_rest(b"c" * 16), at_rest(b"c" * 16), at_rest(b"d" * 16)
    data = b"".join(map(encrypt, parts))
    assert decrypt(memoryview(data)[:7]) + decrypt(data[7:]) == b"".join(parts)
    theirs = b"".join(map(other, [data]))
    noise = (int.from_bytes(theirs, "big") ^ int.from_bytes(b"".join(parts), "big")).bit_count()
    assert abs(noise - 4 * len(data)) < 7 * (2 * len(data)) ** 0.5


# ---------------------------------------------------------------- the dealer's folder


ABOUT = About(session="00" * 16, asked="1" * 64, owner="2" * 64, client="3" * 64)


def nothing(nbytes: int) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PreparedSessions]:
    made = PreparedSessions(tmp_path, (10_000, 5_000), 3600)
    yield made
    made.close()


def test_what_is_written_is_handed_over_once(store: PreparedSessions, tmp_path: Path) -> None:
    heard: list[int] = []
    store.write(ABOUT, [b"abc", b"", b"de"], heard.append)
    assert heard[-1] == (tmp_path / f"{ABOUT.session}.corrections").stat().st_size
    with store.taken(ABOUT, nothing) as parts:
        assert b"".join(parts) == b"abcde"
        with pytest.raises(Unprepared), store.taken(ABOUT, nothing):
            pass
    with pytest.raises(Unprepared), store.taken(ABOUT, nothing):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_is_not_taken_to_its_end_is_not_handed_over_again(store: PreparedSessions) -> None:
    store.write(ABOUT, [b"abc"], nothing)
    with pytest.raises(KeyError), store.taken(ABOUT, nothing):
        raise KeyError
    with pytest.raises(Unprepared), store.taken(ABOUT, nothing):
        pass


def test_a_new_process_finds_what_is_whole_and_deletes_the_rest(store: PreparedSessions, tmp_path: Path) -> None:
    store.write(ABOUT, [b"abc"], nothing)
    store.close()
    whole = (tmp_path / f"{ABOUT.session}.corrections").read_bytes()
    for name in ("11.taken", "22.corrections.1.ab.partial", "33.corrections", f"{'ff' * 16}.corrections"):
        (tmp_path / name).write_bytes(whole)  # the last two have another session's name
    (tmp_path / "44.corrections").write_bytes(b"no head")
    again = PreparedSessions(tmp_path, (10_000, 5_000), 3600)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{ABOUT.session}.corrections", "lock"]
    assert again.summary().startswith("1 prepared sessions, 0.0 MB")
    with again.taken(ABOUT, nothing) as parts:
        assert b"".join(parts) == b"abc"
    again.close()


def test_room_is_counted_while_files_grow_and_free_when_they_are_gone(store: PreparedSessions) -> None:
    def about(number: int, client: str = "3" * 64) -> About:
        return replace(ABOUT, session=f"{number:032x}", client=client)

    store.write(about(1), [bytes(3000)], nothing)
    with pytest.raises(Busy, match="for a client"):
        store.write(about(2), [bytes(500), bytes(1500)], nothing)
    store.write(about(3, "4" * 64), [bytes(4000)], nothing)
    with pytest.raises(Busy, match="in all"):
        store.write(about(4, "5" * 64), [bytes(2000)], nothing)
    with store.taken(about(1), nothing), pytest.raises(Busy, match="does not fit"):
        store.write(about(5), [bytes(3000)], nothing)
    store.write(about(5), [bytes(3000)], nothing)


def test_a_writer_that_fails_leaves_nothing(store: PreparedSessions, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise HandshakeError("no")

    with pytest.raises(HandshakeError, match="no"):
        store.write(ABOUT, broken(), nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    store.write(ABOUT, [b"abc"], nothing)


def test_an_old_one_is_deleted(store: PreparedSessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(ABOUT, [b"abc"], nothing)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    with pytest.raises(Unprepared), store.taken(ABOUT, nothing):
        pass
    store.delete_old()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


# ---------------------------------------------------------------- a party's folder


REQUEST = asked(5, 2)
FACTS = Facts(peer="a" * 64, request=request_digest(REQUEST), model="b" * 64, plan="c" * 64, masked_weights="d" * 32)
SEED = bytes(range(16))


def test_a_seed_is_taken_once_and_for_what_it_is_for(tmp_path: Path) -> None:
    seeds = KeptSeeds(tmp_path, 1.0)
    seeds.keep(b"s" * 16, SEED, FACTS)
    for other in ("peer", "request", "model", "plan", "masked_weights"):
        assert seeds.take(b"s" * 16, replace(FACTS, **{other: "0" * 64})) is None
    assert seeds.take(b"t" * 16, FACTS) is None
    assert seeds.take(b"s" * 16, FACTS) == SEED
    assert seeds.take(b"s" * 16, FACTS) is None


def test_those_that_had_room_at_the_same_time_are_not_all_kept(tmp_path: Path) -> None:
    """A client prepares several sessions at once, each of which had room when it began."""
    seeds = KeptSeeds(tmp_path, 1.0, most=2, most_each=1)
    other = replace(FACTS, peer="0" * 64)
    for peer, session in ((FACTS.peer, b"s" * 16), (FACTS.peer, b"t" * 16), (other.peer, b"u" * 16)):
        seeds.check_room(peer, session)
    seeds.keep(b"s" * 16, SEED, FACTS)
    with pytest.raises(Busy, match="1 prepared sessions are kept at most for a client"):
        seeds.keep(b"t" * 16, SEED, FACTS)
    seeds.keep(b"u" * 16, SEED, other)
    with pytest.raises(Busy, match="2 prepared sessions are kept at most in all"):
        seeds.keep(b"v" * 16, SEED, replace(FACTS, peer="1" * 64))
    with pytest.raises(HandshakeError, match="a session of this id is prepared already"):
        seeds.keep(b"s" * 16, b"another seed, 16", FACTS)
    assert seeds.take(b"s" * 16, FACTS) == SEED


def test_one_seed_is_offered_to_one_at_a_time(tmp_path: Path) -> None:
    seeds, others = KeptSeeds(tmp_path, 1.0), KeptSeeds(tmp_path, 1.0)
    for session in (b"s" * 16, b"t" * 16):
        seeds.keep(session, SEED, FACTS)
    with seeds.offered(FACTS.peer, REQUEST, "") as first, others.offered(FACTS.peer, REQUEST, "") as second:
        assert first is not None and second is not None and first.session != second.session
        with seeds.offered(FACTS.peer, REQUEST, "") as third:
            assert third is None
    with others.offered(FACTS.peer, REQUEST, FACTS.model) as again:
        assert again is not None and again.session == first.session, "nobody used it"
    for unfitting in (("0" * 64, REQUEST, ""), (FACTS.peer, asked(5, 3), ""), (FACTS.peer, REQUEST, "0" * 64)):
        with seeds.offered(*unfitting) as none:
            assert none is None


def test_a_seed_is_not_shown_and_not_read_where_everybody_can(tmp_path: Path) -> None:
    seeds = KeptSeeds(tmp_path, 1.0)
    seeds.keep(b"s" * 16, SEED, FACTS)
    with seeds.offered(FACTS.peer, REQUEST, "") as kept:
        assert kept is not None and SEED.hex() not in repr(kept)
    [path] = (tmp_path / "prepared").iterdir()
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="can be read or changed by everybody"):
        seeds.take(b"s" * 16, FACTS)


def test_heads_have_their_size() -> None:
    assert len(ABOUT.line()) == HEAD_BYTES and ABOUT.line().endswith(b"\n")
