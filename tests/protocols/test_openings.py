"""What a party sees is noise: every opened value, and every message, is uniform whatever is computed on.

See noise.py for how that is tested. Values lie within bounds, far beyond all of them, and on the circle of a comparison
such that no one is the largest: an owner's weights, or a prompt, may be chosen so.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from mpcache.protocols.activation import activation
from mpcache.protocols.backends.mpc import (
    LOGIT_FRACTION_BITS,
    LOGIT_WIDTH,
    SELECT_FRACTION_BITS,
    SELECT_WIDTH,
    MpcBackend,
    masked_weight,
)
from mpcache.protocols.beaver import extend, mask, multiply
from mpcache.protocols.causal import Causal
from mpcache.protocols.comparison import is_negative, less_than, negative_part
from mpcache.protocols.correlation import weight_mask
from mpcache.protocols.gate import gate
from mpcache.protocols.linear import MaskedWeight, linear
from mpcache.protocols.local import run_parties
from mpcache.protocols.maximum import (
    PAIR,
    PAIR_TABLE,
    RANK_TABLES,
    RANKS,
    WINS,
    Level,
    Payload,
    argmax,
    largest_of,
    maximum,
)
from mpcache.protocols.normalisation import rms_norm
from mpcache.protocols.randomness import new_key
from mpcache.protocols.rank import one_hot, ranks, striped_top_k, top_k
from mpcache.protocols.reciprocal import reciprocal, rsqrt
from mpcache.protocols.ring import FRACTION_BITS, RING_BITS, encode, reduce_bits
from mpcache.protocols.scaled import open_rows, scale_rows
from mpcache.protocols.session import Opening, Session
from mpcache.protocols.shares import Secret
from mpcache.protocols.shuffle import compact, shuffle
from mpcache.protocols.softmax import DIFFERENCE_BITS, softmax
from mpcache.protocols.stream import normed_linear, stream_norm
from mpcache.protocols.stripes import Stripes
from mpcache.protocols.threshold import keep_largest
from mpcache.protocols.truncation import truncate
from tests.protocols.noise import DEVIATIONS, FAR_OUT_CASES, Seen, assert_noise, cyclic, destinations, watch

ROWS = 2048
FEWER_ROWS = 512
"""Where many values are tried: a bit that stays the same in three of four rows would still show."""

Protocol = Callable[[Session, torch.Tensor], Awaitable[Any]]


def with_(protocol: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Protocol:
    return lambda session, x: protocol(session, x, *arguments, **options)


async def cached(session: Session, x: torch.Tensor) -> None:
    """Rows enter a cache one after another, and a query is masked."""
    held = await extend(session, None, x, 1)
    held = await extend(session, held, x, 1)
    await mask(session, x)


async def where_a_round_is_worth(session: Session, x: torch.Tensor, round_bytes: int, protocol: Protocol) -> None:
    """As one network or another has it: fewer rounds are taken for more bytes, or not."""
    before, session.round_bytes = session.round_bytes, round_bytes
    await protocol(session, x)
    session.round_bytes = before


DEAR = 10**9


async def divided_rows(session: Session, x: torch.Tensor) -> None:
    rows = await open_rows(session, x, 56, FRACTION_BITS)
    await scale_rows(session, rows, x[..., :1])


def normed_layer(session: Session, x: torch.Tensor) -> Awaitable[Any]:
    name = f"wide, {x.shape[1]}"
    b = weight_mask(KEY, name, (3, x.shape[1]), 56)
    weight = MaskedWeight(name, b + 5 if session.party == 0 else torch.full_like(b, 5), 56)
    return normed_linear(session, x, 1e-5, weight)


async def level_of(session: Session, x: torch.Tensor, method: str, choose: bool) -> None:
    """The largest of one block, alone or with a shared payload."""
    payload = Payload(x, 16) if choose else None
    await largest_of(session, Level(x.shape[-1], method), x, payload, 19)


def known_weight(session: Session, x: torch.Tensor) -> Awaitable[Any]:
    b = weight_mask(KEY, "w", (3, x.shape[1]), 48)
    return linear(session, x, MaskedWeight("w", b + 5 if session.party == 0 else torch.full_like(b, 5)))


def partly_seen(session: Session, x: torch.Tensor) -> Awaitable[Any]:
    return softmax(session, x, torch.tensor([True, True, False]).expand(x.shape))


async def kept_rows(session: Session, x: torch.Tensor) -> None:
    """Eviction: the rows are their own scores."""
    await compact(session, x[..., None], await keep_largest(session, x, 2, 20), 2)


KEY = new_key()
PROTOCOLS: dict[str, tuple[Protocol, int]] = {
    "truncation": (truncate, 2),
    "truncation, no shift": (with_(truncate, 0, 30), 2),
    "product": (lambda s, x: multiply(s, x, x), 2),
    "rows of a cache": (lambda s, x: cached(s, x[..., None]), 2),
    "linear": (known_weight, 4),
    "comparison, 19 bits": (with_(is_negative, 19), 2),
    "comparison, 20 bits": (with_(is_negative, 20), 2),
    "comparison, 55 bits": (with_(is_negative, 55), 1),
    "thresholds": (with_(less_than, 30, (-5, 0, 9)), 1),
    "thresholds, flat": (with_(less_than, 40, (-5, 9), flat=True), 1),
    "negative part with a payload": (lambda s, x: negative_part(s, x, 25, x, 16), 2),
    "ranks of 2": (with_(ranks, 19), 2),
    "ranks of 5": (with_(ranks, 19), 5),
    "top 2 of 5": (with_(top_k, 2, 19), 5),
    "top 1 of 4": (with_(top_k, 1, 22), 4),
    "top 3 of 7 in 2 stripes": (with_(striped_top_k, Stripes(7, 3, 2), 22), 7),
    "top 2 of 4 in pairs": (with_(striped_top_k, Stripes(4, 2, 2), 22), 4),
    **{
        f"largest of {columns} by {method}{', with a payload' * choose}": (with_(level_of, method, choose), columns)
        for columns, method in ((2, PAIR), (2, PAIR_TABLE), (5, RANKS), (5, RANK_TABLES), (4, WINS))
        for choose in (False, True)
    },
    "maximum": (with_(maximum, 19), 5),
    "arg max": (with_(argmax, 19), 5),
    "one-hot of 3": (with_(one_hot, 3), 1),
    "one-hot of 8": (with_(one_hot, 8), 1),
    "softmax": (softmax, 3),
    "softmax, half of it seen": (partly_seen, 3),
    "reciprocal": (reciprocal, 1),
    "inverse root": (rsqrt, 1),
    "RMSNorm": (with_(rms_norm, 1e-5), 3),
    "SiLU": (with_(activation, "silu"), 1),
    "GELU": (with_(activation, "gelu"), 1),
    "SiLU of a product": (with_(activation, "silu", shift=FRACTION_BITS), 1),
    "GELU of a product in the whole ring": (with_(activation, "gelu", bits=64, shift=32), 1),
    "SiLU of a product, fewer rounds": (with_(gate, "silu", 48, 16), 1),
    "GELU of a product in the whole ring, fewer rounds": (with_(gate, "gelu", 64, 32), 1),
    "norm of the stream": (with_(stream_norm, 1e-5), 3),
    "normed layer": (normed_layer, 3),
    "rows truncated and scaled": (divided_rows, 3),
    "softmax, fewer rounds": (with_(where_a_round_is_worth, DEAR, softmax), 3),
    "normed layer, fewer rounds": (with_(where_a_round_is_worth, DEAR, normed_layer), 2),
    "maximum, fewer rounds": (with_(where_a_round_is_worth, DEAR, with_(maximum, 19)), 5),
    "inverse root, fewer rounds": (with_(where_a_round_is_worth, DEAR, rsqrt), 1),
    "softmax, fewer bytes": (with_(where_a_round_is_worth, 0, softmax), 3),
    "norm of the stream, fewer bytes": (with_(where_a_round_is_worth, 0, with_(stream_norm, 1e-5)), 3),
    "threshold": (with_(keep_largest, 2, 4), 3),
    "shuffle": (lambda s, x: shuffle(s, x[..., None]), 3),
    "compaction": (kept_rows, 4),
}
CIRCLES = {f"a circle of 2^{bits}": bits for bits in (19, SELECT_WIDTH, DIFFERENCE_BITS, RING_BITS - 1)}
"""Of ranks, of selection, of a softmax's maximum, of all."""


def runs(protocol: Protocol, x: torch.Tensor) -> Iterator[list[Seen]]:
    """What each party sees. Party 0 has all of x, party 1 zeros."""

    def program(session: Session) -> list[Seen]:
        seen = watch(session, len(x))
        session.run(protocol(session, session.constant(x)))
        return seen

    yield from run_parties(program, weight_key=KEY)


@pytest.mark.parametrize("value", [0, 5])
@pytest.mark.parametrize(("protocol", "columns"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_what_a_party_sees_is_uniform_whatever_the_values(protocol: Protocol, columns: int, value: int) -> None:
    received = 0
    for seen in runs(protocol, torch.full((ROWS, columns), value)):
        assert_noise(seen)
        received += len(seen)
    assert received


@pytest.mark.parametrize("value", FAR_OUT_CASES)
@pytest.mark.parametrize(("protocol", "columns"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_what_a_party_sees_is_uniform_beyond_all_bounds(protocol: Protocol, columns: int, value: int) -> None:
    for seen in runs(protocol, torch.full((FEWER_ROWS, columns), value)):
        assert_noise(seen)
        destinations(seen)


@pytest.mark.parametrize("bits", CIRCLES.values(), ids=CIRCLES)
@pytest.mark.parametrize(("protocol", "columns"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_what_a_party_sees_is_uniform_where_no_value_is_the_largest(
    protocol: Protocol, columns: int, bits: int
) -> None:
    for seen in runs(protocol, cyclic(columns, bits).expand(FEWER_ROWS, columns)):
        assert_noise(seen)
        destinations(seen)


@pytest.mark.parametrize("keep", [[1, 0, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]], ids=str)
def test_destinations_are_in_a_uniformly_random_order_however_many_are_kept(keep: list[int]) -> None:
    async def kept(session: Session, x: torch.Tensor) -> None:
        await compact(session, x[..., None], session.constant(torch.tensor(keep).expand(ROWS, 3)), 2)

    for seen in runs(kept, torch.full((ROWS, 3), 5)):
        assert_noise(seen)
        (orders,) = destinations(seen)
        assert orders.shape == (ROWS, 3)
        for lane in range(3):
            for place in range(3):  # uniform over the orders: a third of the rows each
                count = int((orders[:, lane] == place).sum())
                assert abs(count - ROWS / 3) < DEVIATIONS * (ROWS * 2 / 9) ** 0.5


def uses_of_a_cache(session: Session, values: torch.Tensor) -> list[Seen]:
    """What policies do, on a cache of four tokens: two runs of two are compared, picked and replaced. And products.

    values: (rows, 4) ring elements, for whatever has four tokens, two runs or one query.
    """
    rows = len(values)
    seen, backend = watch(session, rows), MpcBackend(session)

    def secret(*shape: int) -> Secret:
        x = values.reshape(rows, 4, 1)[:, : shape[0]].expand(rows, *shape)
        return Secret(session.constant(x), session.party)

    cached, queries = backend.enter(None, secret(2, 1), secret(4, 1), secret(4, 1))
    backend.append(backend.append(None, secret(2, 1), secret(2, 1)), secret(2, 1), secret(2, 1))
    backend.product(secret(2, 1), queries, "multiply")
    representatives = backend.mask(secret(2, 1))
    (scores,) = backend.similarity(queries, [representatives])
    backend.gather(backend.top_k(scores, 1), secret(2, 3))
    stage = backend.choose(scores, Stripes(2, 1), 2)
    backend.pick(stage, secret(2, 3))
    backend.attend_selected([queries], cached, 0, 4, [[stage]])
    for stripes in (Stripes(4, 3), Stripes(4, 3, 2)):  # exactly, and one of two and all of two
        stage = backend.choose(secret(4, 1)[..., 0], stripes, 1)
        cached, queries = backend.enter(None, secret(2, 1), secret(4, 1), secret(4, 1))
        backend.attend_selected([queries], cached, 0, 4, [[stage]])
    stages = [backend.choose(secret(n, 1)[..., 0], Stripes(n, n - 1), 1) for n in (4, 3)]  # three, and two of them
    cached, queries = backend.enter(None, secret(2, 1), secret(4, 1), secret(4, 1))
    backend.attend_selected([queries], cached, 0, 4, [stages])
    backend.multiply(secret(2, 1), secret(2, 1))
    cached, queries = backend.enter(None, secret(1, 1), secret(4, 1), secret(4, 1))
    backend.attend_observed(queries, cached, None, torch.tensor([0]))
    cached, queries = backend.enter(cached, secret(2, 1), secret(2, 1), secret(2, 1))  # one token, and a draft after it
    hidden = backend.known_to_client(torch.tensor([0.0, -8192.0, 0.0, 0.0, 0.0, 0.0]), (6,))
    backend.attend(queries, cached, Causal(2, 4, 1).mask(), hidden)
    tables = backend.secret_tables(torch.tensor([0.6, 0.8])[:, None, None].expand(2, 2, 2), (2, 2, 2))
    backend.rotate_masked(secret(2, 2), *tables)
    backend.extremes(secret(4, 1))
    place = backend.argmin(secret(4, 1)[..., 0], 100.0)
    for _ in range(2):
        representatives = backend.overwrite(representatives, place[..., :2], secret(1, 1))
    backend.retain(secret(4, 1)[..., 0], 2, 100.0, secret(4, 2))
    return seen


def assert_that_uses_of_a_cache_are_noise(values: torch.Tensor) -> None:
    for seen in run_parties(lambda session: uses_of_a_cache(session, values)):
        assert_noise(seen)
        assert [order.shape for order in destinations(seen)] == [(len(values), 4)]


def test_what_a_party_sees_of_a_cache_and_of_choices_in_it_is_noise() -> None:
    assert_that_uses_of_a_cache_are_noise(torch.full((FEWER_ROWS, 4), 1 << 16))


@pytest.mark.parametrize("value", FAR_OUT_CASES)
def test_what_a_party_sees_of_a_cache_is_noise_beyond_all_bounds(value: int) -> None:
    assert_that_uses_of_a_cache_are_noise(torch.full((FEWER_ROWS, 4), value))


@pytest.mark.parametrize("bits", CIRCLES.values(), ids=CIRCLES)
def test_what_a_party_sees_of_a_cache_is_noise_where_no_value_is_the_largest(bits: int) -> None:
    assert_that_uses_of_a_cache_are_noise(cyclic(4, bits).expand(FEWER_ROWS, 4))


CLUSTERS, CLUSTER = 3, 2
"""Of a stripe in a sparse prefill, and tokens of one."""


def reading_of(session: Session, means: torch.Tensor, stripes: int, heads: int, wide: bool) -> list[Seen]:
    """A block of a sparse prefill picks two clusters of each stripe, and attends to them and to a token on each side.

    means: (CLUSTERS,) ring elements, of the clusters of each stripe. Of stripes and heads, as many as there are rows
    show what is opened for each. wide: also the queries.
    """
    seen, backend = watch(session, max(stripes, heads)), MpcBackend(session)

    def secret(x: torch.Tensor) -> Secret:
        return Secret(session.constant(x[None, :, None].expand(heads, -1, 1)), session.party)

    clusters = means.repeat_interleave(stripes)
    tokens = torch.cat([means[:1], clusters.repeat_interleave(CLUSTER), means[:1]])
    queries = means[:2] if wide else torch.full((2,), 1 << FRACTION_BITS)
    cached, masked = backend.enter(None, secret(queries), secret(tokens), secret(tokens))
    choice = backend.choose_runs(masked, backend.mask(secret(clusters)), stripes, 2)
    found = backend.gather_runs(cached, 1, len(tokens) - 1, choice)
    assert found.tokens == 2 + stripes * 2 * CLUSTER
    if heads > 1:
        backend.attend(masked, found)
    return seen


def assert_that_a_sparse_prefill_is_noise(means: torch.Tensor, wide: bool = False) -> None:
    """By stripes, each with a choice of its own; and by heads, each with the picked keys and values."""
    for stripes, heads in ((FEWER_ROWS, 1), (2, FEWER_ROWS)):
        for seen in run_parties(partial(reading_of, means=means, stripes=stripes, heads=heads, wide=wide)):
            assert_noise(seen)
            assert not [s for s in seen if s.revealed]


def test_what_a_party_sees_of_a_sparse_prefill_is_noise() -> None:
    assert_that_a_sparse_prefill_is_noise(torch.tensor([3, 1, 2]) << FRACTION_BITS)


@pytest.mark.parametrize("value", FAR_OUT_CASES)
def test_what_a_party_sees_of_a_sparse_prefill_is_noise_beyond_all_bounds(value: int) -> None:
    """Clusters that are alike, of queries that are as far out as they are."""
    assert_that_a_sparse_prefill_is_noise(torch.full((CLUSTERS,), value), wide=True)


@pytest.mark.parametrize("bits", CIRCLES.values(), ids=CIRCLES)
def test_what_a_party_sees_of_a_sparse_prefill_is_noise_where_no_cluster_is_the_largest(bits: int) -> None:
    """Scores, which are means times one, on the circle that they are compared on, or on a wider one: the choice's rows
    may be empty, or hold several ones."""
    dropped = FRACTION_BITS - SELECT_FRACTION_BITS
    assert_that_a_sparse_prefill_is_noise(cyclic(CLUSTERS, min(bits + dropped, RING_BITS - 1)))


def recalling_of(session: Session, scores: torch.Tensor, stripes: int, heads: int) -> list[Seen]:
    """Of each stripe's clusters, whose scores (CLUSTERS,) and elements are given, one is recalled, for two layers.

    Of stripes and heads, as many as there are rows show what is opened for each.
    """
    seen, backend = watch(session, max(stripes, heads)), MpcBackend(session)

    def secret(x: torch.Tensor) -> Secret:
        return Secret(session.constant(x), session.party)

    choice = backend.choose_largest(secret(scores.repeat_interleave(stripes)[None]), stripes)
    rows = secret(scores.repeat_interleave(stripes * CLUSTER)[None, :, None].expand(heads, -1, 1))
    for _ in range(2):
        stored = backend.runs(backend.append(None, rows, rows), 0, rows.shape[1], stripes, CLUSTER)
        found = backend.recall(stored, choice, heads, CLUSTER)
        assert found.keys.shape == (heads, stripes * CLUSTER, 1)
    return seen


def assert_that_recalling_is_noise(scores: torch.Tensor) -> None:
    for stripes, heads in ((FEWER_ROWS, 1), (1, FEWER_ROWS)):
        for seen in run_parties(partial(recalling_of, scores=scores, stripes=stripes, heads=heads)):
            assert_noise([s for s in seen if s.shape[0] in (stripes, heads)] if heads > 1 else seen)
            assert not [s for s in seen if s.revealed]


def test_what_a_party_sees_of_recalled_clusters_is_noise() -> None:
    assert_that_recalling_is_noise(torch.tensor([3, 1, 2]) << FRACTION_BITS)


@pytest.mark.parametrize("value", FAR_OUT_CASES)
def test_what_a_party_sees_of_recalled_clusters_is_noise_beyond_all_bounds(value: int) -> None:
    assert_that_recalling_is_noise(torch.full((CLUSTERS,), value))


@pytest.mark.parametrize("bits", CIRCLES.values(), ids=CIRCLES)
def test_what_a_party_sees_of_recalled_clusters_is_noise_where_none_is_the_largest(bits: int) -> None:
    assert_that_recalling_is_noise(cyclic(CLUSTERS, min(bits + FRACTION_BITS - SELECT_FRACTION_BITS, RING_BITS - 1)))


@pytest.mark.parametrize("largest", [1.0, 60.0])
@pytest.mark.parametrize("scores", [[1, 0.5, 0, -0.01, -2, -2], [61.5, 62, 63, 64, 9000, -9000]], ids=str)
def test_eviction_of_scores_out_of_bounds_reveals_a_permutation(scores: list[float], largest: float) -> None:
    """Three scores in bounds and the others negative, or all beyond 60: as a policy's bound may be passed."""

    def program(session: Session) -> list[Seen]:
        seen = watch(session, FEWER_ROWS)
        x = Secret(session.constant(encode(torch.tensor(scores)).expand(FEWER_ROWS, 6)), session.party)
        MpcBackend(session).retain(x, 4, largest, x.reshape(FEWER_ROWS, 6, 1))
        return seen

    for seen in run_parties(program):
        assert_noise(seen)
        assert [order.shape for order in destinations(seen)] == [(FEWER_ROWS, 6)]


@pytest.mark.parametrize("vocabulary", [3, 300])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("places", [1, 3])
def test_the_client_alone_sees_tokens_of_the_vocabulary_where_no_logit_is_the_largest(
    vocabulary: int, temperature: float, places: int
) -> None:
    """Logits on the circle of 2^13 that their comparison has. Nothing else is seen as it is."""
    head = (cyclic(vocabulary, LOGIT_WIDTH) % 2**LOGIT_WIDTH / 2**LOGIT_FRACTION_BITS)[:, None]
    masked = masked_weight(KEY, "head", head)

    def program(session: Session) -> tuple[list[int] | None, list[Seen]]:
        owner, seen = session.party == 0, watch(session)
        backend = MpcBackend(session, KEY if owner else None, {"head": masked})
        x = Secret(session.constant(torch.full((places, 1), 1 << FRACTION_BITS)), session.party)
        weight = backend.weight("head", (vocabulary, 1), head if owner else None)
        return backend.next_tokens(x, weight, None, vocabulary, temperature), seen

    (at_owner, owner_saw), (tokens, client_saw) = run_parties(program, weight_key=KEY)
    assert at_owner is None and tokens is not None and all(0 <= token < vocabulary for token in tokens)
    assert not [s for s in owner_saw if s.revealed]
    assert [s.views[0].flatten().tolist() for s in client_saw if s.revealed] == [tokens]
    for seen in (owner_saw, client_saw):
        assert_noise(seen)


@pytest.mark.parametrize(
    "leak",
    [
        lambda s, x: s.open(x, 8),
        lambda s, x: s.transfer(x + 1, x.shape, 64, receiver=1),
        lambda s, x: s.open(x + s.constant(torch.arange(2048)[:, None] % 2), 8),
    ],
    ids=["no mask", "a share as it is", "a mask that is not uniform"],
)
def test_the_test_sees_leaks(leak: Callable[[Session, torch.Tensor], Opening]) -> None:
    async def protocol(session: Session, x: torch.Tensor) -> None:
        await leak(session, x)

    with pytest.raises(AssertionError):
        for seen in runs(protocol, torch.full((ROWS, 1), 5)):
            assert_noise(seen)


def test_the_test_sees_a_mask_that_is_used_twice() -> None:
    async def protocol(session: Session, x: torch.Tensor) -> None:
        held = await mask(session, x, 32)
        await session.open(x + 3 - held.mask, 32)

    with pytest.raises(AssertionError, match="share a mask"):
        for seen in runs(protocol, torch.full((ROWS, 1), 5)):
            assert_noise(seen)


PROTOCOLS_FOLDER = Path(__file__).parents[2] / "protocols"
BASELINE = {PROTOCOLS_FOLDER / "crypten" / "session.py", PROTOCOLS_FOLDER / "backends" / "crypten.py"}
"""What opens values for the baseline, which is compared, not trusted."""
Functions = set[tuple[str, str]]
"""(file, name)"""


def calls(names: tuple[str, ...], folder: Path, kind: type[ast.Attribute | ast.Name] = ast.Attribute) -> Functions:
    """(file, function) of all calls of methods, or functions, of these names, but for the baseline's."""
    found = set()
    for path in (path for path in folder.rglob("*.py") if path not in BASELINE):
        tree = ast.parse(path.read_text())
        for function in (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)):
            for call in (c for c in ast.walk(function) if isinstance(c, ast.Call)):
                name = getattr(call.func, "attr" if kind is ast.Attribute else "id", "")
                if isinstance(call.func, kind) and name in names:
                    found.add((path.name, function.name))
    return found


def test_every_function_that_opens_something_is_tried_here() -> None:
    """So that a protocol that is not listed above is missed."""
    tried: set[tuple[str, str]] = set()

    def noting(method: Callable[..., Opening]) -> Callable[..., Opening]:
        def noted(*arguments: Any, **options: Any) -> Opening:
            caller = sys._getframe(1).f_code
            tried.add((Path(caller.co_filename).name, caller.co_name))
            return method(*arguments, **options)

        return noted

    def program(session: Session) -> None:
        session.open, session.transfer = noting(session.open), noting(session.transfer)  # type: ignore[method-assign]
        for protocol, columns in PROTOCOLS.values():
            session.run(protocol(session, session.constant(torch.full((2, columns), 5))))
        uses_of_a_cache(session, torch.full((2, 4), 5))

    run_parties(program, weight_key=KEY)
    opening = calls(("open", "transfer"), PROTOCOLS_FOLDER)
    assert len(opening) >= 15 and opening - tried == set()


def test_every_function_that_masks_something_to_keep_it_is_tried_here() -> None:
    """These open by way of beaver.py, which is tried whoever calls it."""
    entered: Functions = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    def program(session: Session) -> None:
        sys.setprofile(note)
        try:
            for protocol, columns in PROTOCOLS.values():
                session.run(protocol(session, session.constant(torch.full((2, columns), 5))))
            uses_of_a_cache(session, torch.full((2, 4), 5))
            reading_of(session, torch.full((CLUSTERS,), 5), 2, 2, wide=False)
            recalling_of(session, torch.full((CLUSTERS,), 5), 2, 2)
        finally:
            sys.setprofile(None)

    run_parties(program, weight_key=KEY)
    masking = calls(("mask", "extend", "mask_choice", "multiply"), PROTOCOLS_FOLDER, ast.Name)
    assert len(masking) >= 15 and masking - entered == set()


def test_what_is_revealed_is_what_the_threat_model_says() -> None:
    folders = [PROTOCOLS_FOLDER.parent / name for name in ("protocols", "mpcache", "parties")]
    revealing = set().union(*(calls(("reveal",), folder) for folder in folders))
    assert revealing == {
        ("shuffle.py", "compact"),  # destinations
        ("mpc.py", "_next_tokens"),  # the next token, or those of a pass with drafts, to the client
        ("mpc.py", "announce"),  # whether it wants another, to the owner
    }


def test_values_in_a_message_are_cut_to_their_width() -> None:
    """Bits above the opened width, where shares carry, are not sent."""
    sent: list[bytes] = []

    def program(session: Session) -> None:
        original = session._channel.send
        session._channel.send = lambda payload: (sent.append(payload), original(payload))[1]  # type: ignore[method-assign]
        session.run(session.open(torch.full((64,), -1), 20))
        session.run(session.open(torch.full((64,), -1), 1, xor=True))

    run_parties(program)
    messages = [list(payload) for payload in sent]
    assert messages.count([0xFF, 0xFF, 0x0F] * 64) == 2 and messages.count([0xFF] * 8) == 2
    assert reduce_bits(torch.tensor(-1), 20) == 2**20 - 1
