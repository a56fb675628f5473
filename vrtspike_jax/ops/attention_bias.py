"""The position bias of window attention, in the order in which tensor cores leave products."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

# Rows that tensor cores give to a warp, and columns that make one piece of a tile.
PIECE = 16


@dataclasses.dataclass(frozen=True)
class BiasTiles:
    """Tiles of the bias, each in the order in which a program's threads hold its logits.

    Of a product, a thread has pairs of neighbours in a row, 8 rows and 8 columns apart. Tiles in
    that order go from memory to registers, eight numbers at a time, and not through shared memory.

    Attributes:
        rows: Of a tile, a multiple of `PIECE`.
        columns: Likewise.
        warps: Of the program; each has `PIECE` rows, or shares them where there are too few.
    """

    rows: int
    columns: int
    warps: int

    @property
    def _pieces(self) -> tuple[int, int, int]:
        """Rounds of the warps down the rows, warps with rows of their own, pieces of columns."""
        apart = min(self.warps, self.rows // PIECE)
        return self.rows // (PIECE * apart), apart, self.columns // PIECE

    def pack(self, bias: Float[Array, "heads n m"]) -> Float[Array, "heads rows columns numbers"]:
        """All tiles of a bias: of each, so many numbers; zero past the ends of the bias."""
        rows, columns = pl.cdiv(bias.shape[1], self.rows), pl.cdiv(bias.shape[2], self.columns)
        missing = rows * self.rows - bias.shape[1], columns * self.columns - bias.shape[2]
        bias = jnp.pad(bias, ((0, 0), *((0, m) for m in missing)))
        rounds, warps, pieces = self._pieces
        bias = bias.reshape(-1, rows, rounds, warps, 2, 8, columns, pieces, 2, 4, 2)
        bias = bias.transpose(0, 1, 6, 2, 7, 3, 5, 9, 8, 4, 10)
        return bias.reshape(-1, rows, columns, self.rows * self.columns)

    def load(
        self, ref: Any, head: Array, row: Array, column: Array
    ) -> Float[Array, "rows columns"] | None:
        """The tile in this row and column of tiles, of what `pack` made; None without a bias."""
        if ref is None:
            return None
        numbers = lax.iota(jnp.int32, self.rows * self.columns)
        rounds, warps, pieces = self._pieces
        tile = plgpu.load(ref.at[head, row, column, numbers])
        tile = tile.reshape(rounds, pieces, warps, 8, 4, 2, 2, 2)
        return tile.transpose(0, 2, 6, 3, 1, 5, 4, 7).reshape(self.rows, self.columns)
