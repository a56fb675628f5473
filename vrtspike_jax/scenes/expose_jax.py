"""Cuts clips from a bank of reels and exposes both cameras to them, inside jit.

What `vrtspike_jax.scenes.films` does with OpenCV, one clip after the other, as matrix products over
a whole batch: shrinking is a product with the overlaps of old and new pixels, the shutter one with
the frames it lets in. The spike camera needs no steps. With a current of at most the threshold,
integrate-and-fire has fired floor((start + light so far) / threshold) spikes at any time, so that
the light at the edges of the bins is all that has to be known. A camera with fewer steps than bins
fires for as many stretches as it has steps, and one more product shares them among the bins.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Num, UInt8

from vrtspike_jax.spikes import GRAY_WEIGHTS
from vrtspike_jax.spikes.voxel import MAX_COUNT, bin_edges, is_shared, shares

_EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """Sizes of the clips: exposures T, height and width of frames and spikes, steps S, bins K.

    `choices` are what clips may have as steps of their exposures, up to S; (): all have S.
    """

    frames: int
    size: tuple[int, int]
    spike_size: tuple[int, int]
    steps: int
    bins: int
    choices: tuple[int, ...] = ()


class Pick(NamedTuple):
    """Which clips to cut, and how to expose them; every field has a leading axis of clips.

    Attributes:
      reel: number of the reel.
      first: its first frame.
      exposure: frames of an exposure, odd.
      corner: [.., 2] top and left edge, in pixels of the reel.
      shrink: pixels of the reel in a pixel of the frame.
      reverse, mirror_rows, mirror_cols, turn: as in `vrtspike_jax.data.augment.View`.
      colours: [.., 3, 4] matrix for (r, g, b, 1) in 0..255.
      gain, frame_noise, threshold, dark_current, spike_noise, threshold_spread: of the cameras, as
        in `vrtspike_jax.scenes.SceneOptions`.
      shutter: frames that the frame camera sees, odd; the middle ones.
      noise_seed: uint32, of the cameras' noise.
      steps: of each exposure; one of the shape's `choices`, if there are any.
    """

    reel: Int[Array, "..."]
    first: Int[Array, "..."]
    exposure: Int[Array, "..."]
    corner: Float[Array, "... 2"]
    shrink: Float[Array, "..."]
    reverse: Array
    mirror_rows: Array
    mirror_cols: Array
    turn: Array
    colours: Float[Array, "... 3 4"]
    shutter: Int[Array, "..."]
    gain: Float[Array, "..."]
    frame_noise: Float[Array, "..."]
    threshold: Float[Array, "..."]
    dark_current: Float[Array, "..."]
    spike_noise: Float[Array, "..."]
    threshold_spread: Float[Array, "..."]
    noise_seed: Array
    steps: Int[Array, "..."]


def expose_reels(
    pictures: UInt8[Array, "M N side side 3"], picks: Pick, shape: ClipShape
) -> dict[str, Num[Array, "..."]]:
    """Cuts and exposes a batch of clips.

    Args:
      pictures: of a `vrtspike_jax.scenes.bank.Bank`.
      picks: B clips; each must lie within its reel.
      shape: the clips' sizes. Frames are square if `turn` may be true.

    Returns:
      `blur`, `sharp` uint8 [B, T, H, W, 3] and `spikes`, counts [B, T, Hs, Ws, K], uint8, or
      float32 where clips may have fewer steps than bins; see `vrtspike_jax.spikes.trained_counts`.
    """
    return jax.vmap(lambda pick: _expose(pictures, pick, shape))(picks)


def _expose(pictures: Array, pick: Pick, shape: ClipShape) -> dict[str, Array]:
    film = _cut(pictures[pick.reel], pick, shape.size)
    *spike_keys, grain = jax.random.split(jax.random.key(pick.noise_seed, impl="rbg"), 4)
    length = shape.frames * pick.exposure

    def to_reel(places: Array) -> Array:
        """Frames of the reel; a clip that is played backwards counts from its end."""
        return pick.first + jnp.where(pick.reverse, length - 1 - places, places)

    frame = jnp.arange(film.shape[0])
    middle = to_reel(jnp.arange(shape.frames) * pick.exposure + pick.exposure // 2)
    seen = jnp.abs(frame - middle[:, None]) <= pick.shutter // 2
    blur = jnp.einsum("tn,nhwc->thwc", seen / pick.shutter, film) * pick.gain
    # A camera cuts off at white before it reads out, so noise comes last.
    blur = jnp.minimum(blur, 1) + pick.frame_noise * jax.random.normal(grain, blur.shape)

    rows, cols = (
        _overlaps(0.0, n / m, n, m) for n, m in zip(shape.size, shape.spike_size, strict=True)
    )
    gray = jnp.einsum("ih,nhwc,jw,c->nij", rows, film, cols, GRAY_WEIGHTS, precision=_EXACT)
    steps = shape.frames * shape.steps
    places = (jnp.arange(steps) + 0.5) * (pick.exposure / shape.steps) - 0.5
    places = to_reel(jnp.clip(places, 0, length - 1))
    between = jnp.maximum(0, 1 - jnp.abs(places[:, None] - frame))
    spikes = _fire(gray, between, pick, shape, spike_keys)
    sharp = film[middle] * pick.gain
    return {"blur": _to_uint8(blur), "sharp": _to_uint8(sharp), "spikes": spikes}


def _fire(
    gray: Float[Array, "N h w"],
    between: Float[Array, "M N"],
    pick: Pick,
    shape: ClipShape,
    keys: Sequence[Array],
) -> Num[Array, "T h w K"]:
    """Counts of a clip; `between` are the shares of its frames in each of T * S steps."""
    pattern, phase, walk = keys
    choices = np.array(shape.choices or [shape.steps])
    which = jnp.argmax(choices == pick.steps) if shape.choices else 0
    tables = [_stretches(shape, int(steps)) for steps in choices]
    edges, given = (np.stack(table) for table in zip(*tables, strict=True))
    # Each step of the clip's own gathers the mean light of so many of the S, and of parts of them.
    ratio = shape.steps / choices
    place = edges * ratio[:, None]
    before = np.minimum(place.astype(int), len(between) - 1)
    part = jnp.asarray(place - before, jnp.float32)[which, :, None]
    before, ratio, edges = (jnp.asarray(a)[which] for a in (before, ratio, edges))
    summed = jnp.concatenate([jnp.zeros((1, gray.shape[0])), jnp.cumsum(between, axis=0)])
    summed = (summed[before] + part * between[before]) / ratio
    light = jnp.einsum("en,nij->eij", summed, gray, precision=_EXACT)
    spread = 1 + pick.threshold_spread * jax.random.normal(pattern, gray.shape[1:])
    counts = count_spikes(
        light + pick.dark_current * edges[:, None, None],
        edges,
        pick.threshold * jnp.maximum(spread, 0.1),
        jax.random.uniform(phase, gray.shape[1:]),
        pick.spike_noise * jax.random.normal(walk, light[1:].shape),
    )
    counts = counts.reshape(shape.frames, shape.bins, *shape.spike_size)
    if not any(is_shared(steps, shape.bins, shape.steps) for steps in choices):
        return counts.transpose(0, 2, 3, 1)
    given = jnp.asarray(given)[which]
    return jnp.einsum("tghw,gk->thwk", counts.astype(jnp.float32), given, precision=_EXACT)


def count_spikes(
    light: Float[Array, "E h w"],
    edges: Int[Array, "E"] | Int[np.ndarray, "E"],
    threshold: Float[Array, "h w"],
    phase: Float[Array, "h w"],
    noise: Float[Array, "B h w"],
) -> UInt8[Array, "B h w"]:
    """Spikes between edges, of a camera that integrates and fires.

    Args:
      light: gathered up to each edge, in units of white times steps; on average at most the
        threshold a step.
      edges: steps before each edge, from 0; B + 1 of them.
      threshold: of each pixel.
      phase: what the accumulators hold at first, as a share of the threshold, 0..1.
      noise: on what a step gathers, drawn once for each bin: a sum of n draws has n times the
        variance of one.

    Returns:
      The spikes of each bin.
    """
    edges = jnp.asarray(edges)[:, None, None]
    light = light.at[1:].add(jnp.cumsum(noise * jnp.sqrt(jnp.diff(edges, axis=0)), axis=0))
    # Noise takes light away, but never a spike that has been fired.
    fired = jax.lax.cummax(jnp.floor(light / threshold + phase), axis=0)
    # No step fires twice; what is due then waits for the next steps.
    fired = edges + jax.lax.cummin(fired - edges, axis=0)
    return jnp.minimum(jnp.diff(fired, axis=0), MAX_COUNT).astype(jnp.uint8)


def _stretches(
    shape: ClipShape, steps: int
) -> tuple[Int[np.ndarray, "E"], Float32[np.ndarray, "K K"]]:
    """How a clip of exposures of `steps` steps is counted: in K stretches each, whatever `steps`.

    Returns:
      Steps before the edges of all stretches of the clip, T * K + 1; and what each stretch of an
      exposure (first axis) gives to each bin. Stretches are the bins or, where steps are shared
      among bins, the steps themselves, followed by empty ones.
    """
    firsts, given = bin_edges(steps, shape.bins)[:-1], np.eye(shape.bins, dtype=np.float32)
    if is_shared(steps, shape.bins, shape.steps):
        firsts, given = np.minimum(np.arange(shape.bins), steps), np.zeros_like(given)
        given[:steps] = shares(steps, shape.bins)
    starts = np.arange(shape.frames)[:, None] * steps
    return np.append((starts + firsts).ravel(), shape.frames * steps), given


def _cut(
    reel: UInt8[Array, "N h w 3"], pick: Pick, size: tuple[int, int]
) -> Float[Array, "N H W 3"]:
    """The part of a reel that a clip shows, all its frames, as the cameras would see it: 0..1."""
    rows, cols = (
        _overlaps(pick.corner[axis], pick.shrink, reel.shape[1 + axis], size[axis])
        for axis in (0, 1)
    )
    rows = jnp.where(pick.mirror_rows, rows[::-1], rows)
    cols = jnp.where(pick.mirror_cols, cols[::-1], cols)
    film = jnp.einsum("ih,nhwc->niwc", rows, reel.astype(jnp.float32))
    film = jnp.einsum("jw,niwc->nijc", cols, film)
    if size[0] == size[1]:
        # As `numpy.rot90`: transposed, then upside down.
        film = jnp.where(pick.turn, film.transpose(0, 2, 1, 3)[:, ::-1], film)
    film = jnp.einsum("nhwc,dc->nhwd", film, pick.colours[:, :3]) + pick.colours[:, 3]
    return jnp.round(jnp.clip(film, 0, 255)) / 255


def _overlaps(start: Array | float, step: Array | float, old: int, new: int) -> Float[Array, "n o"]:
    """Shares of old pixels in new ones: [start + i * step, start + (i + 1) * step)."""
    low = start + step * jnp.arange(new)[:, None]
    pixel = jnp.arange(old)
    overlap = jnp.minimum(low + step, pixel + 1) - jnp.maximum(low, pixel)
    return jnp.maximum(overlap, 0) / step


def _to_uint8(pictures: Float[Array, "..."]) -> UInt8[Array, "..."]:
    return jnp.round(jnp.clip(pictures, 0, 1) * 255).astype(jnp.uint8)
