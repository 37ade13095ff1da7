"""SiLU and GELU: a table of polynomials in the middle, the identity above it and zero below."""

from __future__ import annotations

import torch

from protocols.comparison import less_than
from protocols.lookup import POWER_BITS, TABLES, look_up
from protocols.product import multiply
from protocols.ring import FRACTION_BITS, PRODUCT_BITS
from protocols.session import Session, together
from protocols.truncation import drop_low_bits, truncate

_COMPARED_FRACTION = 14
_COMPARED_WIDTH = 31
_VALUE_BITS = 18
_OUT_BITS = 40


async def activation(session: Session, x: torch.Tensor, table: str) -> torch.Tensor:
    """Shares of SiLU ('silu') or GELU ('gelu', 'gelu_tanh'), scale 2^16; x at scale 2^16, |x| < 2^15.

    Rounds: 6. Correction: 32 segments of 4 (GELU) or 6 (SiLU) coefficients of 5 bytes, and about 130 bytes.
    Absolute error below 1e-3 everywhere: x itself above the table's domain, 0 below it.
    """
    domain = TABLES[table]
    # a segment is found up to one, so the first and the last one are not used: there the index could wrap
    edge = int((-domain.start - domain.width) * 2**_COMPARED_FRACTION)
    bits = FRACTION_BITS + round(domain.segments * domain.width).bit_length() - 1
    compared = drop_low_bits(x, FRACTION_BITS - _COMPARED_FRACTION)
    outside, inside = await together(
        less_than(session, compared, _COMPARED_WIDTH, (-edge, edge)), _table_value(session, x, table, bits)
    )
    below, not_above = outside[..., 0], outside[..., 1]
    above = session.constant(torch.ones_like(not_above)) - not_above
    factors = torch.stack([not_above - below, above])
    products = await multiply(session, torch.stack([inside, x]), factors, PRODUCT_BITS)
    return await truncate(session, products.sum(0), 0)


async def _table_value(session: Session, x: torch.Tensor, table: str, bits: int) -> torch.Tensor:
    value = await look_up(session, x, table, bits, _VALUE_BITS, _OUT_BITS)
    return await truncate(session, value, POWER_BITS + _VALUE_BITS - FRACTION_BITS, _OUT_BITS)
