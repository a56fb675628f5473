"""GELU and its derivative in Triton kernels.

With the normal distribution's cumulative function P and density, gelu(a) = a P(a) and its
derivative is P(a) + a density(a). They are written as assembly for two reasons: neither Triton nor
what follows makes multiply-adds of products and sums, and one array at a time every step of the
formula would hold a tile in registers, where this finishes an element before it begins the next.
"""

import math
import struct

from jax.scipy.stats import norm
from jaxtyping import Array, Float

from vrtspike_jax.ops.pallas_assembly import LOG2_E, assembly

# Abramowitz and Stegun 7.1.26 for half of the complementary error function: with
# t = 1 / (1 + SHIFT |a|) it is exp(-a^2 / 2) times a polynomial of t without a constant term.
# |error| < 1e-7, far below bfloat16.
SERIES = tuple(0.5 * c for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))
SHIFT = 0.3275911 * math.sqrt(0.5)
EXPONENT = -0.5 * LOG2_E  # exp(-a^2 / 2) is 2 to the power of this times a^2.
DENSITY = 1 / math.sqrt(2 * math.pi)


def _literal(value: float) -> str:
    """A float32 constant as PTX writes it."""
    return "0f" + struct.pack(">f", value).hex().upper()


# P(-|a|) in p, for a in $1.
_TAIL = [
    "mul.f32 e, $1, $1;",
    f"mul.f32 e, e, {_literal(EXPONENT)};",
    "ex2.approx.ftz.f32 e, e;",
    "abs.f32 t, $1;",
    f"fma.rn.f32 t, t, {_literal(SHIFT)}, {_literal(1)};",
    "rcp.approx.ftz.f32 t, t;",
    f"mov.f32 p, {_literal(SERIES[0])};",
    *(f"fma.rn.f32 p, p, t, {_literal(c)};" for c in SERIES[1:]),
    "mul.f32 t, t, e;",
    "mul.f32 p, p, t;",
]


def cumulative(a: Float[Array, "..."], interpret: bool) -> Float[Array, "..."]:
    """P(a), in float32."""
    if interpret:
        return norm.cdf(a)
    rest = [
        f"sub.f32 t, {_literal(1)}, p;",
        f"setp.lt.f32 negative, $1, {_literal(0)};",
        "selp.f32 $0, p, t, negative;",
    ]
    return _assemble(_TAIL + rest, a)


def gelu(a: Float[Array, "..."], interpret: bool) -> Float[Array, "..."]:
    """a P(a), in float32: the larger of a and 0, less |a| times P(-|a|)."""
    if interpret:
        return a * norm.cdf(a)
    rest = [
        "abs.f32 t, $1;",
        "neg.f32 t, t;",
        f"max.f32 e, $1, {_literal(0)};",
        "fma.rn.f32 $0, t, p, e;",
    ]
    return _assemble(_TAIL + rest, a)


def slope(
    a: Float[Array, "..."], cumulative_a: Float[Array, "..."], interpret: bool
) -> Float[Array, "..."]:
    """GELU's derivative at a, in float32, given P(a)."""
    if interpret:
        return cumulative_a + a * norm.pdf(a)
    return _assemble(
        [
            # As in `cumulative`, so that the assembler computes it once.
            "mul.f32 e, $1, $1;",
            f"mul.f32 e, e, {_literal(EXPONENT)};",
            "ex2.approx.ftz.f32 e, e;",
            f"mul.f32 t, $1, {_literal(DENSITY)};",
            "fma.rn.f32 $0, t, e, $2;",
        ],
        a,
        cumulative_a,
    )


def _assemble(lines: list[str], *args: Array) -> Array:
    declarations = [".reg .f32 e, t, p;", ".reg .pred negative;"]
    return assembly("\n".join(["{", *declarations, *lines, "}"]), *args)
