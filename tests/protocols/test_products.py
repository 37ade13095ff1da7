"""All ways to multiply ring elements give the same, and what is chosen depends on speed, shape and setting alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpcache.protocols import linear, products
from mpcache.protocols.beaver import multiply
from mpcache.protocols.correlation import weight_mask
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.linear import MaskedWeight
from mpcache.protocols.local import run_parties
from mpcache.protocols.plan import ShapeArithmetic
from mpcache.protocols.products import choice, limbs
from mpcache.protocols.products.choice import SETTING, WIDTHS, ShapeClass
from mpcache.protocols.products.kernels import KERNELS, heads_product
from mpcache.protocols.randomness import new_key
from mpcache.protocols.ring import signed, stored, wrap
from mpcache.protocols.session import Session
from tests.protocols.sharing import run_ring, shares_of

INNER = (1, 2, 3, 64, 65, 128, 129, limbs.LONGEST_INNER, limbs.LONGEST_INNER + 1, 2 * limbs.LONGEST_INNER + 3)
KINDS = ("random", "zero", "one", "minus one", "least", "largest", "alternating", "half limbs", "bits")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that was measured before, nothing left behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(SETTING, raising=False)
    choice._chosen.cache_clear()
    return tmp_path / "mpcache" / "products.json"


def numbers(kind: str, rows: int, inner: int, bits: int, seed: int) -> torch.Tensor:
    """(rows, inner): random in all 64 bits, or at an extreme of the width."""
    noise = torch.randint(-(2**63), 2**63 - 1, (rows, inner), generator=torch.Generator().manual_seed(seed))
    extremes = {
        "zero": 0,
        "one": 1,
        "minus one": -1,
        "least": 1 << (bits - 1),
        "largest": (1 << bits) - 1,
        "half limbs": sum(1 << at for at in range(7, bits, 8)),
    }
    if kind in extremes:
        return torch.full((rows, inner), wrap(extremes[kind]))
    if kind == "alternating":
        ends = torch.tensor([wrap(1 << (bits - 1)), wrap((1 << (bits - 1)) - 1)])
        return ends[torch.arange(rows * inner) % 2].reshape(rows, inner)
    return torch.ones_like(noise) << (noise % bits) if kind == "bits" else noise


def exact(x: torch.Tensor, y: torch.Tensor, bits: int) -> torch.Tensor:
    """x y^T in Python's integers, modulo 2^bits, signed."""
    columns = y.tolist()
    sums = [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in x.tolist()]
    return signed(torch.tensor([[wrap(total) for total in row] for row in sums], dtype=torch.int64), bits)


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, neither contiguous nor alone in their memory."""
    wide = torch.full((x.shape[1], 2 * x.shape[0] + 1), -7, dtype=x.dtype)
    wide[:, 1::2] = x.transpose(0, 1)
    return wide[:, 1::2].transpose(0, 1)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=25, deadline=None)
@given(
    inner=st.sampled_from(INNER),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    seed=st.integers(0, 1 << 30),
    laid_out=st.tuples(st.booleans(), st.booleans()),
)
@example(inner=limbs.LONGEST_INNER, shape=(1, 1), kinds=("least", "least"), seed=0, laid_out=(False, False))
@example(inner=limbs.LONGEST_INNER, shape=(2, 1), kinds=("largest", "largest"), seed=0, laid_out=(True, False))
@example(inner=limbs.LONGEST_INNER, shape=(1, 3), kinds=("alternating", "least"), seed=0, laid_out=(False, True))
def test_every_kernel_gives_what_exact_integers_give(
    name: str,
    bits: int,
    inner: int,
    shape: tuple[int, int],
    kinds: tuple[str, str],
    seed: int,
    laid_out: tuple[bool, bool],
) -> None:
    x, y = numbers(kinds[0], shape[0], inner, bits, seed), numbers(kinds[1], shape[1], inner, bits, seed + 1)
    given_x, given_y = (strided(v) if apart else v for v, apart in zip((x, stored(y, bits)), laid_out, strict=True))
    out = KERNELS[name](given_x, given_y, bits)
    assert out.dtype == torch.int64
    assert torch.equal(signed(out, bits), exact(x, y, bits))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("inner", [*INNER[:-2], 384, 768, 1024])
def test_no_sum_of_limbs_leaves_what_float64_holds(bits: int, inner: int) -> None:
    """At the worst: every limb at its largest size."""
    found = limbs.limbs_for(bits, inner)
    assert sum(limb.width for limb in found) == bits
    for limb in found:
        assert sum(limb.meets) == bits - limb.offset
        for width in limb.meets:
            assert inner * (1 << (limb.width - 1)) * (1 << (width - 1)) <= 1 << limbs.EXACT_BITS


@pytest.mark.parametrize("bits", WIDTHS)
def test_limbs_at_their_largest_size_are_multiplied_exactly(bits: int) -> None:
    """Each limb of both operands is minus its half, so that all sums are the largest that are."""
    inner = limbs.LONGEST_INNER
    for limb in limbs.limbs_for(bits, inner):
        worst = [sum(-1 << (sum(w[:i]) + w[i] - 1) for i in range(len(w))) for w in ((limb.width,), limb.meets)]
        x, y = (torch.full((2, inner), wrap(value)) for value in worst)
        assert torch.equal(signed(limbs.product(x << limb.offset, y, bits), bits), exact(x << limb.offset, y, bits))


def test_blocks_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = numbers("random", 11, 40, 64, 1), numbers("random", 3, 40, 64, 2)
    monkeypatch.setattr(limbs, "BLOCK_ELEMENTS", 160)
    monkeypatch.setattr(limbs, "LONGEST_INNER", 16)
    assert torch.equal(limbs.product(x, y, 64), x @ y.T)
    assert torch.equal(limbs.product(y, x, 64), y @ x.T)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(3, 1, 16, 5), (3, 4, 16, 5), (2, 7, 20, 1), (1, 2, 1, 2)])
def test_heads_are_multiplied_one_by_one(name: str, bits: int, shape: tuple[int, int, int, int]) -> None:
    heads, a, inner, b = shape
    x = numbers("random", heads * a, inner, bits, 1).reshape(heads, a, inner)
    y = numbers("random", heads * b, inner, bits, 2).reshape(heads, b, inner)
    for right in (y.transpose(1, 2), y.transpose(1, 2).contiguous()):
        out = heads_product(name, x, right, bits)
        assert torch.equal(signed(out, bits), torch.stack([exact(*head, bits) for head in zip(x, y, strict=True)]))


@pytest.mark.parametrize("name", ["auto", *KERNELS])
@pytest.mark.parametrize("rows", [0, 1, 4, 20])
def test_the_interface_gives_torchs_result_whatever_is_set(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, name)
    monkeypatch.setattr(choice, "SMALL", 1)
    x, w = numbers("random", 2 * rows, 70, 64, 3).reshape(2, rows, 70), numbers("random", 30, 70, 64, 4)
    out = products.times_rows(x, w, 48)
    assert out.shape == (2, rows, 30)
    assert torch.equal(signed(out, 48), signed(x @ w.T, 48))
    heads = w.reshape(2, 15, 70).transpose(1, 2)
    assert torch.equal(signed(products.matmul(x, heads, 56), 56), signed(x @ heads, 56))
    narrow = products.times_rows(x, stored(w, 32), 32)
    assert narrow.dtype == torch.int64
    assert torch.equal(signed(narrow, 32), signed(x @ w.T, 32))


def test_parties_that_choose_differently_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product of a session by another kernel than the one before: both parties' and the dealer's."""
    calls = []

    def in_turn(form: str, shape: tuple[int, ...], bits: int) -> str:
        calls.append(list(KERNELS)[len(calls) % len(KERNELS)])
        return calls[-1]

    monkeypatch.setattr(products, "kernel_for", in_turn)
    x, y = numbers("random", 6, 8, 64, 5).reshape(2, 3, 8), numbers("random", 10, 8, 64, 6).reshape(2, 5, 8)
    for _ in range(2):
        result = run_ring(multiply, x, y, width=48, operation="matmul_transposed")
        assert torch.equal(result, signed(x @ y.transpose(1, 2), 48))
    assert set(calls) == set(KERNELS)


@pytest.mark.parametrize("bits", [32, 48])
@pytest.mark.parametrize("kernels", [("limbs", "torch"), ("torch", "vectors"), ("vectors", "limbs")])
def test_a_weight_may_meet_another_kernel_at_each_party(
    kernels: tuple[str, str], bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weight that a party multiplies by tells which one it is; the dealer's is the weight's mask."""
    key, shape = new_key(), (7, 5)
    x, w = numbers("random", 3, 5, 64, 7), stored(numbers("random", *shape, 64, 8), bits)
    b, shared = weight_mask(key, "w", shape, bits), shares_of(x)

    def times_rows(rows: torch.Tensor, matrix: torch.Tensor, width: int) -> torch.Tensor:
        owners = torch.equal(matrix, w)
        return KERNELS[kernels[0] if owners else kernels[1]](rows, matrix, width)

    def program(session: Session) -> torch.Tensor:
        weight = MaskedWeight("w", w if session.party == 0 else w - b, bits)
        return session.run(linear.linear(session, shared[session.party], weight))

    monkeypatch.setattr(linear, "times_rows", times_rows)
    first, second = run_parties(program, weight_key=key)
    assert torch.equal(signed(first + second, bits), signed(x @ w.to(torch.int64).T, bits))


# ---------------------------------------------------------------- the choice


def never(*args: object) -> None:
    raise AssertionError("nothing is to be measured here")


def test_a_plan_neither_measures_nor_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("measure", "setting", "speeds"):
        monkeypatch.setattr(choice, name, never)
    x, w = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in ((2, 64, 768), (3072, 768)))
    heads = torch.empty((2, 768, 512), dtype=torch.int64, device="meta")
    for rows in (x, x[:1, :1]):
        assert products.times_rows(rows, w, 48).shape == (*rows.shape[:2], 3072)
    assert products.matmul(x, heads, 48).shape == (2, 64, 512)
    with ShapeArithmetic():
        assert products.times_rows(x, w, 48).shape == (2, 64, 3072)
        assert products.matmul(x, heads, 48).shape == (2, 64, 512)


@pytest.mark.parametrize(
    "shape", [(1, 1, 4096, 4096), (12, 64, 2048, 1), (1, 8, 16, 16), (1, 0, 64, 64), (5000, 1, 2, 2)]
)
def test_vectors_and_small_products_need_no_measurement(
    shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "measure", never)
    expected = "vectors" if shape[2] > 1000 else "torch"
    assert choice.kernel_for("heads", shape, 48) == expected


@pytest.mark.parametrize(
    ("rows", "expected"), [(2, "few"), (7, "few"), (8, "some"), (31, "some"), (32, "many"), (1000, "many")]
)
def test_rows_are_classed_by_the_nearest_measured(rows: int, expected: str) -> None:
    assert choice.shape_class("heads", rows, 50) == ShapeClass("heads", expected, 56)


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({"torch": 1.0, "vectors": 0.5, "limbs": 2.0}, "limbs"),
        ({"torch": 1.0, "vectors": 1.2, "limbs": 0.1}, "torch"),  # too near to be told from noise
        ({"torch": 1.0, "vectors": 3.0}, "vectors"),
        ({"torch": 13.0, "limbs": 2.5}, "torch"),
    ],
)
def test_another_kernel_than_torch_must_be_clearly_faster(speeds: dict[str, float], expected: str) -> None:
    assert choice.fastest(speeds) == expected


def test_what_was_measured_is_kept_and_measured_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(what: ShapeClass) -> dict[str, float]:
        measured.append(what)
        return {"torch": 1.0, "limbs": 4.0}

    monkeypatch.setattr(choice, "measure", measure)
    shape = (1, 64, 768, 768)
    assert [choice.kernel_for("matrix", shape, bits) for bits in (48, 47, 33)] == ["limbs"] * 3
    assert measured == [ShapeClass("matrix", "many", 48)]
    choice._chosen.cache_clear()  # as in the next process
    assert choice.kernel_for("matrix", shape, 48) == "limbs"
    assert len(measured) == 1
    (kept,) = json.loads(own_cache.read_text())["machines"].values()
    assert kept == {"matrix, many rows, 48 bits": {"torch": 1.0, "limbs": 4.0}}
    assert [path.name for path in own_cache.parent.iterdir()] == [own_cache.name]
    choice.speeds(ShapeClass("matrix", "many", 48), anew=True)
    assert len(measured) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_another_machine_is_measured_on_its_own(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "measure", lambda what: {"torch": 1.0, "limbs": 4.0})
    what = ShapeClass("heads", "many", 48)
    choice.speeds(what, "this one")
    monkeypatch.setattr(choice, "measure", lambda what: {"torch": 5.0, "limbs": 4.0})
    assert choice.speeds(what, f"that one, {threads} threads") == {"torch": 5.0, "limbs": 4.0}
    assert choice.speeds(what, "this one") == {"torch": 1.0, "limbs": 4.0}
    assert choice._described(threads).endswith(f"{threads} threads")


BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe",
    "a list": b"[1]",
    "no version": b'{"machines": {}}',
    "another version": b'{"version": 0, "machines": {"m": {"matrix, many rows, 48 bits": {"torch": 1, "limbs": 9}}}}',
    "machines of another kind": b'{"version": 1, "machines": [3]}',
    "classes of another kind": b'{"version": 1, "machines": {"m": 3}}',
    "speeds of another kind": b'{"version": 1, "machines": {"m": {"matrix, many rows, 48 bits": "limbs"}}}',
    "an unknown kernel": b'{"version": 1, "machines": {"m": {"matrix, many rows, 48 bits": {"torch": 1, "evil": 9}}}}',
    "no torch": b'{"version": 1, "machines": {"m": {"matrix, many rows, 48 bits": {"limbs": 9}}}}',
    "no number": b'{"version": 1, "machines": {"m": {"matrix, many rows, 48 bits": {"torch": 1, "limbs": NaN}}}}',
    "true": b'{"version": 1, "machines": {"m": {"matrix, many rows, 48 bits": {"torch": 1, "limbs": true}}}}',
    "deep": b"[" * 50_000,
    "long": b" " * (1 << 16) + b'{"version": 1, "machines": {}}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_or_foreign_file_is_ignored_and_rewritten(
    content: bytes, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.parent.mkdir()
    own_cache.write_bytes(content)
    monkeypatch.setattr(choice, "measure", lambda what: {"torch": 2.0, "limbs": 1.0})
    what = ShapeClass("matrix", "many", 48)
    assert choice.speeds(what, "m") == {"torch": 2.0, "limbs": 1.0}
    assert json.loads(own_cache.read_text())["machines"]["m"][str(what)] == {"torch": 2.0, "limbs": 1.0}


def test_who_cannot_keep_a_measurement_still_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mpcache").write_text("a file where the folder should be")
    monkeypatch.setattr(choice, "measure", lambda what: {"torch": 1.0, "limbs": 4.0})
    assert choice.kernel_for("matrix", (1, 64, 768, 768), 48) == "limbs"


def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "fast")
    with pytest.raises(ConfigError, match="auto, torch, vectors, limbs"):
        products.matmul(torch.ones(1, 2, 2, dtype=torch.int64), torch.ones(1, 2, 2, dtype=torch.int64), 48)


@pytest.mark.parametrize("what", [ShapeClass("matrix", "few", 32), ShapeClass("heads", "many", 48)], ids=str)
def test_every_kernel_is_measured(what: ShapeClass) -> None:
    measured = choice.measure(what)
    assert measured.keys() == KERNELS.keys()
    assert all(speed > 0 for speed in measured.values())


def test_a_kernel_that_is_wrong_here_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Callable[..., torch.Tensor] = lambda x, y, bits: torch.zeros((x.shape[0], y.shape[0]), dtype=torch.int64)  # noqa: E731
    monkeypatch.setitem(KERNELS, "limbs", wrong)
    assert choice.measure(ShapeClass("matrix", "few", 48)).keys() == {"torch", "vectors"}
