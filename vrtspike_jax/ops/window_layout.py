"""Cutting feature maps into attention windows: by moving data, and by address arithmetic."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Size3 = tuple[int, int, int]
# Swin and VRT add this to the logits of tokens that the cyclic shift brought together.
OTHER_REGION = -100.0


def partition(x: Float[Array, "b t h w c"], window: Size3) -> Float[Array, "m n c"]:
    """Cuts a feature map into windows (B * windows, tokens, C)."""
    b, t, h, w, c = x.shape
    wt, wh, ww = window
    x = x.reshape(b, t // wt, wt, h // wh, wh, w // ww, ww, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wt * wh * ww, c)


def merge(windows: Float[Array, "m n c"], window: Size3, size: Size3) -> Float[Array, "b t h w c"]:
    """Inverse of `partition` for a feature map of T, H, W = `size`."""
    (t, h, w), (wt, wh, ww) = size, window
    x = windows.reshape(-1, t // wt, h // wh, w // ww, wt, wh, ww, windows.shape[-1])
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, t, h, w, windows.shape[-1])


def axis_regions(size: Size3, window: Size3, shift: Size3) -> list[Int[np.ndarray, " length"]]:
    """Numbers the parts that a cyclic shift brings together, along each axis."""
    axes = []
    for length, w, s in zip(size, window, shift, strict=True):
        index = np.zeros(length, np.int32)
        if s:
            index[-w:-s], index[-s:] = 1, 2
        axes.append(index)
    return axes


def shift_regions(axes: Sequence[Any], window: Size3) -> Int[Any, "windows n"]:
    """Numbers the parts that a cyclic shift brings together, token by token of every window.

    Tokens with different numbers were not neighbours before the shift (VRT's `compute_mask`).

    Args:
        axes: Arrays from `axis_regions`, of NumPy or JAX.
        window: Window size.
    """
    t, h, w = axes
    region = 9 * t[:, None, None] + 3 * h[:, None] + w
    return partition(region[None, ..., None], window)[..., 0]


@dataclasses.dataclass(frozen=True)
class PackedWindows:
    """Windows stored one after another, as `partition` makes them.

    Attributes:
        windows: Number of windows.
        tokens: Tokens of a window.
    """

    windows: int
    tokens: int
    mutual = False

    def query_rows(self, window: Any, token: Any) -> Any:
        """Flat rows, in an array (rows, channels), of a window's queries."""
        return window * self.tokens + token

    key_rows = query_rows


@dataclasses.dataclass(frozen=True)
class FrameWindows:
    """Windows of a feature map (B, T, H, W, C) after a cyclic shift, read where they lie.

    Attributes:
        batch: B.
        size: T, H, W; multiples of `window`.
        window: Window size along T, H, W.
        shift: Cyclic shift along T, H, W (the map is rolled by minus this).
        mutual: Each half of a window's frames queries the other half, as a window of its own.
            The half that holds the keys receives the result.
    """

    batch: int
    size: Size3
    window: Size3
    shift: Size3
    mutual: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        t, h, w = self.window
        return t * h * w // (2 if self.mutual else 1)

    @property
    def windows(self) -> int:
        """Number of windows, over the whole batch."""
        t, h, w = self.size
        return self.batch * t * h * w // self.tokens

    def _coordinates(self, window: Any, token: Any) -> tuple[Any, list[Any]]:
        """Image, and coordinates in the rolled map."""
        counts = [s // w for s, w in zip(self.size, self.window, strict=True)]
        if self.mutual:
            token = token + lax.rem(window, 2) * self.tokens
            window = lax.div(window, 2)
        coordinates = []
        for count, extent in zip(counts[::-1], self.window[::-1], strict=True):
            position = lax.rem(token, extent)
            if count > 1:
                position = lax.rem(window, count) * extent + position
                window = lax.div(window, count)
            coordinates.insert(0, position)
            token = lax.div(token, extent)
        return window, coordinates

    def _rows(self, window: Any, token: Any) -> Any:
        image, coordinates = self._coordinates(window, token)
        row = image
        for position, size, shift in zip(coordinates, self.size, self.shift, strict=True):
            if shift:
                position = position + shift
                position = jnp.where(position >= size, position - size, position)
            row = row * size + position
        return row

    def key_rows(self, window: Any, token: Any) -> Any:
        """Flat rows, in an array (B * T * H * W, channels), of a window's keys and results."""
        return self._rows(window, token)

    def query_rows(self, window: Any, token: Any) -> Any:
        """Flat rows of a window's queries."""
        if self.mutual:
            window = window + 1 - 2 * lax.rem(window, 2)
        return self._rows(window, token)

    def regions(self, window: Any, token: Any) -> Any:
        """Numbers the parts of the map that the shift brings together (VRT's `compute_mask`)."""
        if self.mutual:  # Published behaviour: the first half's regions serve both.
            window = window - lax.rem(window, 2)
        _, coordinates = self._coordinates(window, token)
        region = jnp.zeros_like(token)
        axes = zip(coordinates, self.size, self.window, self.shift, strict=True)
        for position, size, extent, shift in axes:
            if shift:
                late = (position >= size - extent).astype(jnp.int32)
                last = (position >= size - shift).astype(jnp.int32)
                region = region * 3 + late + last
        return region
