"""Cutting feature maps into attention windows: by moving data, and by address arithmetic."""

import dataclasses
import math
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
class Place:
    """Where some tokens of a window lie.

    Attributes:
        key_rows: Flat rows, in an array (rows, channels), of the tokens' keys and results.
        query_rows: Those of their queries.
    """

    key_rows: Any
    query_rows: Any


@dataclasses.dataclass(frozen=True)
class PackedWindows:
    """Windows stored one after another, as `partition` makes them.

    Attributes:
        windows: Number of windows.
        tokens: Tokens of a window.
    """

    windows: int
    tokens: int

    def place(self, window: Any, token: Any) -> Place:
        """Where tokens of windows lie."""
        rows = lax.add(lax.mul(window, self.tokens), token)
        return Place(rows, rows)


@dataclasses.dataclass(frozen=True)
class FrameWindows:
    """Windows of a feature map (B, T, H, W, C) after a cyclic shift, read where they lie.

    Its arithmetic is traced for each tile of each kernel, so that it is frugal: in `lax`, whose
    operations are traced twice as fast as those of `jax.numpy`, and none without effect.

    Attributes:
        batch: B.
        size: T, H, W; multiples of `window`.
        window: Window size along T, H, W.
        shift: Cyclic shift along T, H, W (the map is rolled by minus this).
        mutual: Each half of a window's frames queries the other half, as a window of its own.
            The half that holds the keys receives the result.
        kept: Frames whose results are used, the first ones of the map (which the shift moves);
            None means all.
    """

    batch: int
    size: Size3
    window: Size3
    shift: Size3
    mutual: bool = False
    kept: int | None = None

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return self.window[0] // (2 if self.mutual else 1)

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.frames * math.prod(self.window[1:])

    @property
    def windows(self) -> int:
        """Number of windows, over the whole batch."""
        t, h, w = self.size
        return self.batch * t * h * w // self.tokens

    @property
    def neighbours(self) -> int:
        """Windows, one after another, that hold the same frames."""
        (_, h, w), (_, height, width) = self.size, self.window
        return 1 if self.mutual else h // height * (w // width)

    @property
    def drops(self) -> bool:
        """Whether `dropped` finds frames: some are not kept, and the shift leaves them together."""
        kept = self.size[0] if self.kept is None else self.kept
        return self.shift[0] <= kept < self.size[0]

    @property
    def drops_amid(self) -> bool:
        """Whether a window has kept frames both before dropped ones and after them."""
        first, end = (divmod(f - self.shift[0], self.frames) for f in (self.kept, self.size[0]))
        return first[0] == end[0] and first[1] > 0

    def dropped(self, window: Any) -> tuple[Any, Any]:
        """The first of a window's frames that receive results which are not kept, and the end."""
        late = 0
        if self.mutual:
            window, late = lax.div(window, 2), lax.mul(lax.rem(window, 2), self.frames)
        across = math.prod(self.size[1:]) // math.prod(self.window[1:])
        number = lax.rem(lax.div(window, across), self.size[0] // self.window[0])
        start = lax.add(lax.mul(number, self.window[0]), late)
        ends = (lax.sub(f - self.shift[0], start) for f in (self.kept, self.size[0]))
        first, end = (lax.max(lax.min(e, self.frames), 0) for e in ends)
        return first, end

    def place(self, window: Any, token: Any) -> Place:
        """Where tokens of windows lie; token numbers past a window's last give nonsense."""
        if not self.mutual:
            image, coordinates = self._coordinates(window, token)
            rows = self._rows(image, coordinates)
            return Place(rows, rows)
        late = lax.rem(window, 2)
        image, (t, h, w) = self._coordinates(lax.div(window, 2), token)
        keys, queries = (
            self._rows(image, (lax.add(t, lax.mul(half, self.frames)), h, w))
            for half in (late, lax.sub(1, late))
        )
        return Place(keys, queries)

    def region(self, window: Any, token: Any) -> Any:
        """Numbers of the parts of the map that the shift brings together (VRT's `compute_mask`)."""
        # Published behaviour: the first half's regions serve both.
        window = lax.div(window, 2) if self.mutual else window
        region = None
        axes = zip(
            self._coordinates(window, token)[1], self.size, self.window, self.shift, strict=True
        )
        for position, size, extent, shift in axes:
            if shift:
                late, last = (
                    lax.convert_element_type(lax.ge(position, size - reach), jnp.int32)
                    for reach in (extent, shift)
                )
                number = lax.add(late, last)
                region = number if region is None else lax.add(lax.mul(region, 3), number)
        return region

    def has_regions(self, window: Any) -> Any:
        """Whether a window holds more than one region: it is the last one along a shifted axis."""
        window = lax.div(window, 2) if self.mutual else window
        result = False
        for size, extent, shift in list(zip(self.size, self.window, self.shift, strict=True))[::-1]:
            count = size // extent
            if shift:
                result = lax.eq(lax.rem(window, count), count - 1) | result
            window = lax.div(window, count)
        return result

    def _coordinates(self, window: Any, token: Any) -> tuple[Any, tuple[Any, Any, Any]]:
        """Image, and coordinates in the rolled map."""
        counts = [s // w for s, w in zip(self.size, self.window, strict=True)]
        starts = []
        for count, extent in zip(counts[::-1], self.window[::-1], strict=True):
            starts.insert(0, lax.mul(lax.rem(window, count), extent) if count > 1 else None)
            window = lax.div(window, count) if count > 1 else window
        _, height, width = self.window
        column, token = lax.rem(token, width), lax.div(token, width)
        positions = lax.div(token, height), lax.rem(token, height), column
        return window, tuple(
            position if start is None else lax.add(start, position)
            for start, position in zip(starts, positions, strict=True)
        )

    def _rows(self, image: Any, coordinates: Sequence[Any]) -> Any:
        row = image
        for position, size, shift in zip(coordinates, self.size, self.shift, strict=True):
            if shift:
                position = lax.add(position, shift)
                inside = lax.lt(position, size)
                position = lax.select(inside, position, lax.sub(position, size))
            row = lax.add(lax.mul(row, size), position)
        return row
