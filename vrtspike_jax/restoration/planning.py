"""How large tiles may be: the compiler's memory analysis against the device's free memory."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax

from vrtspike_jax import hardware
from vrtspike_jax.restoration.tiling import MINIMUM, Grid, plan_grid

# Share of the free memory that one call may take. The rest is for fragmentation and the next
# batch; on CPU also for everything else on the machine.
HEADROOM = 0.9
CPU_HEADROOM = 0.6
# Sides of the tile that is compiled to learn how much memory a pixel takes. Frames up to this size
# need no second compilation.
REFERENCE = 512


class TooLargeError(ValueError):
    """Even the smallest tile does not fit in memory."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A grid that fits, and the bytes that a call on it takes beside the parameters."""

    grid: Grid
    bytes_needed: int


def memory_limit(devices: Sequence[jax.Device]) -> float:
    """Bytes that one call may take on each of the devices."""
    free = min(hardware.free_memory(device) for device in devices)
    if devices[0].platform == "cpu":
        return CPU_HEADROOM * free / len(devices)  # they share the machine's memory
    return HEADROOM * free


def default_overlap(tile: int) -> int:
    """Overlap of tiles in pixels where none is asked for: 64, or half of a small tile."""
    return min(64, tile // 16 * 8)


def choose_grid(
    frame_size: tuple[int, int],
    spike_size: tuple[int, int],
    overlap: int | None,
    limit: float,
    measure: Callable[[Grid], float],
) -> Choice:
    """The grid that computes the fewest pixels and fits in memory; whole frames if they fit.

    Memory grows in proportion to a tile's pixels. One tile of about 512 x 512 is compiled to learn
    the factor, then the chosen grid to check it (the same one where that is the choice).

    Args:
      frame_size: height and width of the frames.
      spike_size: height and width of the spikes.
      overlap: pixels that neighbouring tiles share at least; None: `default_overlap`.
      limit: bytes that a call may take.
      measure: compiles for a grid and says how many bytes a call takes, or infinity where the
        compiler itself runs out of memory. Called twice or so.

    Raises:
      TooLargeError: not even tiles of 64 x 64 fit.
    """
    reference = plan_grid(frame_size, spike_size, REFERENCE, _overlap(overlap, REFERENCE))
    known = {_shape(reference): measure(reference)}
    rate = _rate(known[_shape(reference)], _shape(reference), limit)
    for _ in range(8):
        grid = _fewest_pixels(frame_size, spike_size, overlap, limit / rate)
        if grid is None:
            break
        shape = _shape(grid)
        if shape not in known:
            known[shape] = measure(grid)
        if known[shape] <= limit:
            return Choice(grid, known[shape])
        # Larger than proportional: expect as much of every other tile.
        rate = max(rate * 1.05, _rate(known[shape], shape, limit))
    raise TooLargeError(
        f"restoring a tile of {MINIMUM} x {MINIMUM} takes about "
        f"{rate * MINIMUM**2 / 2**20:.0f} MiB, but only {limit / 2**20:.0f} MiB may be used; "
        "use a shorter clip or free some memory"
    )


def _rate(needed: float, shape: tuple[int, int], limit: float) -> float:
    """Bytes a pixel. Of what cannot be compiled, twice the limit is as good a guess as any."""
    return (2 * limit if math.isinf(needed) else needed) / math.prod(shape)


def _fewest_pixels(
    frame_size: tuple[int, int], spike_size: tuple[int, int], overlap: int | None, most: float
) -> Grid | None:
    best, best_cost = None, math.inf
    for splits in itertools.product(range(1, 65), repeat=2):
        tile = tuple(
            _side(size, count, overlap) for size, count in zip(frame_size, splits, strict=True)
        )
        shared = _overlap(overlap, min(tile))
        if math.prod(tile) > most or shared >= min(tile):
            continue
        grid = plan_grid(frame_size, spike_size, tile, shared)
        area = math.prod(_shape(grid))
        # Of equal costs the larger tile, which sees more.
        cost = len(grid.tiles) * area - 1e-6 * area
        if area <= most and cost < best_cost:
            best, best_cost = grid, cost
    return best


def _side(size: int, count: int, overlap: int | None) -> int:
    """Side of `count` tiles that cover `size`; rounded so that no tile is left over."""
    shared = 64 if overlap is None else overlap
    side = max(MINIMUM, math.ceil((size + (count - 1) * shared) / count))
    return -(-side // 8) * 8


def _overlap(overlap: int | None, tile: int) -> int:
    return default_overlap(tile) if overlap is None else overlap


def _shape(grid: Grid) -> tuple[int, int]:
    return grid.rows.tile, grid.cols.tile
