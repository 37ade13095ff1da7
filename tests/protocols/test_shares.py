"""A Secret does what costs no message, with or without a session, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mpcache.protocols.crypten.importing import import_crypten
from mpcache.protocols.crypten.session import CryptenSession, active
from mpcache.protocols.crypten.shares import ArithmeticSharedTensor, from_crypten, to_mpc_tensor
from mpcache.protocols.local import run_parties
from mpcache.protocols.ring import decode, encode
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret, cat
from tests.protocols.sharing import shares_of

crypten = import_crypten()
X = torch.linspace(-8, 8, 24).reshape(2, 3, 4)
Y = torch.linspace(3, -2, 24).reshape(2, 3, 4)
BOOL = torch.tensor([True, False, True, True])

LOCAL: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "neg": lambda x, y: -x,
    "add a number": lambda x, y: x + 1.5,
    "add a whole number": lambda x, y: 3 + x - 2,
    "sub from a number": lambda x, y: 1.5 - x,
    "add a public tensor": lambda x, y: x + torch.tensor([1.0, -2.5, 0.0, 7.0]),
    "add to a public tensor": lambda x, y: torch.ones(5, 1, 3, 1) + x[0],
    "sub a public tensor": lambda x, y: x - torch.ones(4),
    "sub from a public tensor": lambda x, y: torch.ones(4) - x,
    "sum": lambda x, y: x.sum(),
    "sum over a dimension": lambda x, y: x.sum(1, keepdim=True),
    "index": lambda x, y: x[1:, 0],
    "ellipsis and new axis": lambda x, y: x[..., None, :2],
    "index by a mask": lambda x, y: x[:, :, BOOL],
    "index by positions": lambda x, y: x[:, torch.tensor([2, 0])],
    "reshape": lambda x, y: x.reshape(6, 4),
    "reshape by a tuple": lambda x, y: x.reshape((4, -1)),
    "view": lambda x, y: x.view(6, 4),
    "transpose": lambda x, y: x.transpose(0, -1),
    "t": lambda x, y: x[0].t(),
    "permute": lambda x, y: x.permute(2, 0, 1),
    "expand": lambda x, y: x[:, :1].expand(2, 5, 4),
    "repeat": lambda x, y: x.repeat(2, 1, 1),
    "flatten": lambda x, y: x.flatten(),
    "unsqueeze and squeeze": lambda x, y: x.unsqueeze(1).squeeze(1),
    "split": lambda x, y: x.split(3, 2)[1],
    "unbind": lambda x, y: x.unbind(1)[2],
    "index_select": lambda x, y: x.index_select(2, torch.tensor([3, 1])),
    "cumsum": lambda x, y: x.cumsum(-1),
    "cat": lambda x, y: (cat if isinstance(x, Secret) else torch.cat)([x, y], -1),
    "stack": lambda x, y: (Secret if isinstance(x, Secret) else torch).stack([x, y], 1),
}


@pytest.mark.parametrize("name", LOCAL)
def test_local_operations_equal_torch_without_a_session(name: str) -> None:
    shares = [shares_of(encode(t)) for t in (X, Y)]
    results = [LOCAL[name](*[Secret(pair[party], party) for pair in shares]) for party in (0, 1)]
    assert all(type(r) is Secret for r in results)
    assert results[0].shape == results[1].shape
    total = decode(results[0].share + results[1].share).float()
    expected = LOCAL[name](X, Y)
    assert total.shape == expected.shape
    assert (total - expected).abs().max() < 1e-3
    assert [r.party for r in results] == [0, 1]


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("name", [n for n in LOCAL if not n.startswith("index by") and n != "index_select"])
def test_local_operations_work_on_shapes_alone(name: str, party: int) -> None:
    meta = torch.empty(X.shape, dtype=torch.int64, device="meta")
    result = LOCAL[name](Secret(meta, party), Secret(meta, party))
    assert result.share.device.type == "meta"
    assert result.shape == LOCAL[name](X, Y).shape


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "x * y": (lambda x, y: x * y, "backend.multiply"),
    "x * 2": (lambda x, y: x * 2, "backend.multiply"),
    "2.0 * x": (lambda x, y: 2.0 * x, "backend.multiply"),
    "tensor * x": (lambda x, y: torch.ones(4) * x, "backend.multiply"),
    "x @ y": (lambda x, y: x @ y, "backend.linear"),
    "x.matmul(y)": (lambda x, y: x.matmul(y), "backend.linear"),
    "x.mul(y)": (lambda x, y: x.mul(y), "backend.multiply"),
    "x.mul_(y)": (lambda x, y: x.mul_(y), "backend.multiply"),
    "x.square()": (lambda x, y: x.square(), "backend.multiply"),
    "x ** 2": (lambda x, y: x**2, "backend.multiply"),
    "x / 4": (lambda x, y: x / 4, "backend.rms_norm"),
    "x.div(y)": (lambda x, y: x.div(y), "backend.rms_norm"),
    "1 / x": (lambda x, y: 1 / x, "backend.rms_norm"),
    "x.mean(-1)": (lambda x, y: x.mean(-1), "backend.scale"),
    "x.var(-1)": (lambda x, y: x.var(-1), "backend.rms_norm"),
    "x.prod(-1)": (lambda x, y: x.prod(-1), "backend.multiply"),
    "x.where": (lambda x, y: x.where(BOOL, y), "backend.multiply"),
    "x.conv1d(y)": (lambda x, y: x.conv1d(y), "conv1d"),
    "x < y": (lambda x, y: x < y, "mpcache.protocols.comparison"),
    "x >= 0": (lambda x, y: x >= 0, "mpcache.protocols.comparison"),
    "x == y": (lambda x, y: x == y, "mpcache.protocols.comparison"),
    "if x": (lambda x, y: bool(x), "branch"),
    "x[0] = y": (lambda x, y: x.__setitem__(0, y), "immutable"),
    "x.encode_as_(y)": (lambda x, y: x.encode_as_(y), "encode_as_"),
    "x.copy_(y)": (lambda x, y: x.copy_(y), "immutable"),
    "x.add_(y)": (lambda x, y: x.add_(y), "immutable"),
    "x + 'a'": (lambda x, y: x + "a", "str"),
    "cat with a tensor": (lambda x, y: cat([x, X], 0), "Tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_a_protocol_is_refused_and_says_what_to_use(name: str) -> None:
    operation, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        operation(Secret(encode(X), 0), Secret(encode(Y), 0))


def is_refused(x: Secret, name: str) -> bool:
    try:
        getattr(x, name)
    except TypeError:
        return True
    return False


def test_everything_of_torch_and_crypten_is_either_known_to_be_local_or_refused() -> None:
    """No public method of either's class is reachable without having been thought about."""
    x = Secret(encode(X), 0)
    names = {n for kind in (torch.Tensor, ArithmeticSharedTensor, Secret) for n in dir(kind) if not n.startswith("_")}
    assert {n for n in names if not is_refused(x, n)} == set(
        "cat clone cumsum device dim expand flatten index_select numel party permute repeat reshape shape share split "
        "squeeze stack sum t transpose unbind unsqueeze view".split()
    )


def test_plus_equals_leaves_the_old_value_alone() -> None:
    x = y = Secret(encode(X), 0)
    y += Secret(encode(Y), 0)
    assert torch.equal(x.share, encode(X)) and torch.equal(y.share, encode(X) + encode(Y))


def test_a_secret_does_not_print_its_share() -> None:
    assert repr(Secret(encode(X), 1)) == "Secret(shape=(2, 3, 4), party=1)"


def test_crypten_computes_on_the_memory_of_a_secret() -> None:
    pairs = [shares_of(encode(t)) for t in (X, Y)]

    def program(session: Session) -> list[torch.Tensor]:
        secrets = [Secret(pair[session.party], session.party) for pair in pairs]
        before = [s.share.clone() for s in secrets]
        with active(CryptenSession(session)):
            x, y = (to_mpc_tensor(s.share)._tensor for s in secrets)
            assert isinstance(x, ArithmeticSharedTensor) and x.share.data_ptr() == secrets[0].share.data_ptr()
            bits = crypten.mpc.primitives.converters.convert(x, crypten.mpc.binary)
            back = crypten.mpc.primitives.converters.convert(bits, crypten.mpc.arithmetic)
            product = crypten.mpc.primitives.beaver.mul(x, y)  # untruncated: scale 2^32
            total = to_mpc_tensor((secrets[0] + secrets[1]).share)
            results = [
                x.get_plain_text(),
                x.reveal(),
                bits.get_plain_text(),
                back.get_plain_text(),
                decode(product.reveal(), 32),
                total.get_plain_text(),
                (to_mpc_tensor(secrets[0].share) + total).get_plain_text(),
                (to_mpc_tensor(secrets[0].share) * to_mpc_tensor(secrets[1].share)).get_plain_text(),
            ]
            assert crypten.mpc.primitives.ArithmeticSharedTensor.reveal_batch([x, y])[1].shape == Y.shape
        assert all(torch.equal(s.share, b) for s, b in zip(secrets, before, strict=True)), "changed in place"
        assert x.encoder.scale == y.encoder.scale == 2**16 and x.encoder is not y.encoder
        return results

    for got in run_parties(program):
        expected = [X, encode(X), X, X, X * Y, X + Y, X + X + Y, X * Y]
        for a, b in zip(got, expected, strict=True):
            assert (a - b).abs().max() < 1e-3


def test_a_sharing_of_crypten_is_taken_in_by_its_scale_alone() -> None:
    def program(session: Session) -> None:
        with active(CryptenSession(session)):
            x = Secret(encode(X), session.party)
            bit = crypten.cryptensor(X, src=0) < 0
            with pytest.raises(TypeError, match="ArithmeticSharedTensor"):
                x + bit._tensor
            assert (x + Secret(from_crypten(bit), session.party)).shape == X.shape

    run_parties(program)
