"""Multi-head attention inside windows, with a position bias and shift regions."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from vrtspike_jax.ops import carried_bias, dispatch
from vrtspike_jax.ops.partition import SUM, Split, find_kernels, split_batch
from vrtspike_jax.ops.window_layout import (
    OTHER_REGION,
    FrameWindows,
    PackedWindows,
    Size3,
    axis_regions,
    merge,
    partition,
    shift_regions,
)

# Names of what the backward pass needs from the forward one, for rematerialisation policies.
SAVED_NAMES = ("window_attention", "window_attention_lse")


def attention_reference(
    q: Float[Array, "m n heads d"],
    k: Float[Array, "m n heads d"],
    v: Float[Array, "m n heads d"],
    bias: Float[Array, "heads n n"] | None = None,
    regions: Int[Array, "windows n"] | None = None,
) -> Float[Array, "m n heads d"]:
    """`window_attention`, written plainly."""
    m, n, heads, _ = q.shape
    logits = jnp.einsum("mqhd,mkhd->mhqk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias.astype(jnp.float32)
    if regions is not None:
        logits = logits.reshape(-1, regions.shape[0], heads, n, n)
        logits += _region_bias(regions)[:, None]
        logits = logits.reshape(m, heads, n, n)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("mhqk,mkhd->mqhd", weights, v)


def _region_bias(regions: Int[Array, "windows n"]) -> Float[Array, "windows n n"]:
    return jnp.where(regions[:, :, None] != regions[:, None, :], OTHER_REGION, 0.0)


def _attention_cudnn(q: Array, k: Array, v: Array, bias: Array | None, regions: Any) -> Array:
    """cuDNN's attention; head dimensions are padded to a multiple of 8, as it demands."""
    m, dim = q.shape[0], q.shape[-1]
    full = None if bias is None else bias[None]
    if regions is not None:
        apart = jnp.tile(_region_bias(regions), (m // regions.shape[0], 1, 1))[:, None]
        full = apart if full is None else full + apart
        full = jnp.broadcast_to(full, (m, q.shape[2], *full.shape[2:]))
    padding = [(0, 0)] * 3 + [(0, -dim % 8)]
    q, k, v = (jnp.pad(a, padding) for a in (q, k, v))
    full = None if full is None else full.astype(q.dtype)
    out = jax.nn.dot_product_attention(q, k, v, full, scale=1.0, implementation="cudnn")
    return out[..., :dim]


def window_attention(
    q: Float[Array, "m n heads d"],
    k: Float[Array, "m n heads d"],
    v: Float[Array, "m n heads d"],
    bias: Float[Array, "heads n n"] | None = None,
    regions: Int[Array, "windows n"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "m n heads d"]:
    """Scaled dot-product attention of every window on its own.

    Args:
        q: Queries of M windows of N tokens, already scaled; M is a multiple of `windows`, which
            varies fastest.
        k: Keys.
        v: Values.
        bias: Added to the logits of every window, float32.
        regions: Region number of each token of each window of one image; tokens of different
            regions do not attend to each other. None means one region.
        implementation: "auto" is "pallas" on CUDA GPUs and "xla" elsewhere; "xla" keeps N x N
            logits, "pallas" and "cudnn" do not; "interpret" runs the kernels on the CPU, for
            tests.

    Returns:
        Attended values in v's dtype; softmax is float32.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("window_attention", implementation)
    m, n, heads, dim = q.shape
    regions = None if regions is None else jnp.asarray(regions)
    kernels = find_kernels("pallas_attention", implementation, q)
    if implementation == "cudnn" and q.dtype in (jnp.bfloat16, jnp.float16):
        return jax.lax.platform_dependent(
            q, k, v, bias, regions, cuda=_attention_cudnn, default=attention_reference
        )
    if implementation == "cudnn":
        dispatch.warn_once("window_attention: 'cudnn' takes 16-bit inputs only; running 'xla'")
    if kernels is None:
        return attention_reference(q, k, v, bias, regions)
    images = m if regions is None else m // regions.shape[0]
    split = split_batch("window_attention", images, q, k, v)
    plan = kernels.make_plan(
        PackedWindows(m // split.parts, n),
        heads,
        dim,
        biased=bias is not None,
        shifted=regions is not None,
        interpret=implementation == "interpret",
    )
    return _fused((plan,), split, attention_reference, (q, k, v), _float32(bias), regions, ())


def shifted_window_attention(
    qkv: Float[Array, "b t h w c3"],
    bias: Float[Array, "heads n n"],
    *,
    window: Size3,
    shift: Size3,
    mutual: Float[Array, "b t h w c3"] | None = None,
    carried: tuple[Float[Array, " c3"], ...] | None = None,
    scale: float = 1.0,
    kept_frames: int | None = None,
    implementation: str = "auto",
) -> Float[Array, "b t h w c_out"]:
    """Attention in the shifted windows of a feature map, which stays where it is.

    Equals rolling the map by minus `shift`, cutting it into windows, `window_attention` with the
    regions of the shift, and the way back; the kernels do all that by address arithmetic.

    Args:
        qkv: Queries, keys and values, each of heads * d channels; T, H, W are multiples of
            `window`.
        bias: Added to the logits of every window, float32.
        window: Window size along T, H, W.
        shift: Cyclic shift along T, H, W.
        mutual: Queries, keys and values for mutual attention between the two halves of a window's
            frames, without bias (VRT eq. 2), or None.
        carried: The bias that `qkv` contains and, with `mutual`, the one that that contains, where
            they are constants to what added them (see `carried_bias`); or None.
        scale: Factor of the queries.
        kept_frames: How many frames, from the first, the caller uses the results of; None means
            all. Those of later frames, which padded the map, say, are finite and otherwise
            anything. Gradients that come in for them must be zero, and may be taken as zero.
        implementation: As in `window_attention`.

    Returns:
        Self attention (C = heads * d channels); with `mutual`, mutual attention's C channels
        before it. What the queries of one half find in the other stands in the other's place.

    Raises:
        ValueError: if the windows do not tile the map, if it has not so many frames to keep, or for
            an unknown implementation.
    """
    dispatch.check("shifted_window_attention", implementation)
    size, heads = qkv.shape[1:4], bias.shape[0]
    if any(s % w for s, w in zip(size, window, strict=True)):
        raise ValueError(f"shifted_window_attention: windows {window} do not tile {size}")
    kept_frames = size[0] if kept_frames is None else kept_frames
    if not 1 <= kept_frames <= size[0]:
        raise ValueError(f"shifted_window_attention: {kept_frames} of {size[0]} frames to keep")
    reference = _ShiftedReference(window, shift, scale)
    kernels = find_kernels("pallas_attention", implementation, qkv)
    tokens = math.prod(window)
    # The kernels' mutual attention needs whole tiles in each half.
    if kernels is None or (mutual is not None and (window[0] % 2 or tokens % 32)):
        if carried is not None:
            qkv = carried_bias.carry(qkv, carried[0])
            mutual = mutual if mutual is None else carried_bias.carry(mutual, carried[1])
        return reference(qkv, mutual, bias, implementation=implementation)
    channels = qkv.shape[-1] // 3
    split = split_batch("shifted_window_attention", qkv.shape[0], qkv)
    batch = qkv.shape[0] // split.parts
    make = functools.partial(
        kernels.make_plan,
        heads=heads,
        dim=channels // heads,
        shifted=any(shift),
        columns=(0, channels, 2 * channels),
        scale=float(scale),
        sums=carried is not None,
        interpret=implementation == "interpret",
    )
    layout = FrameWindows(batch, size, window, shift, kept=kept_frames)
    if mutual is None:
        plans = (make(layout, biased=True),)
    else:
        half = dataclasses.replace(layout, mutual=True)
        plans = (make(layout, biased=True, out_column=channels), make(half))
    carried = () if carried is None else tuple(carried)
    return _fused(plans, split, reference, (qkv, mutual), _float32(bias), None, carried)


def _float32(bias: Array | None) -> Array | None:
    return None if bias is None else bias.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class _ShiftedReference:
    """`shifted_window_attention` by rolling and partitioning."""

    window: Size3
    shift: Size3
    scale: float

    def _project(self, x: Array, heads: int) -> list[Array]:
        windows = partition(jnp.roll(x, [-s for s in self.shift], axis=(1, 2, 3)), self.window)
        m, n, c3 = windows.shape
        windows = windows.reshape(m, n, 3, heads, c3 // (3 * heads))
        q, k, v = (windows[:, :, i] for i in range(3))
        return [q * jnp.asarray(self.scale, q.dtype), k, v]

    def _finish(self, out: Array, size: Size3) -> Array:
        out = merge(out.reshape(out.shape[0], out.shape[1], -1), self.window, size)
        return jnp.roll(out, self.shift, axis=(1, 2, 3))

    def __call__(
        self,
        qkv: Array,
        mutual: Array | None,
        bias: Array,
        regions: None = None,
        implementation: str = "xla",
    ) -> Array:
        size, heads = qkv.shape[1:4], bias.shape[0]
        if any(self.shift):
            # Behind a barrier, or the compiler expands the mask to a (windows, N, N) constant.
            axes = jax.lax.optimization_barrier(axis_regions(size, self.window, self.shift))
            regions = shift_regions(axes, self.window)
        attend = attention_reference
        if implementation == "cudnn":
            attend = functools.partial(window_attention, implementation=implementation)
        out = attend(*self._project(qkv, heads), bias, regions)
        if mutual is None:
            return self._finish(out, size)
        m, n = out.shape[:2]
        q, k, v = (a.reshape((m, 2, n // 2) + a.shape[2:]) for a in self._project(mutual, heads))
        # Each half's place receives what the other half's queries find in it.
        pairs = [a.reshape((2 * m, n // 2) + a.shape[3:]) for a in (q[:, ::-1], k, v)]
        if regions is not None:
            regions = jnp.repeat(regions[:, : n // 2], 2, axis=0)
        aligned = attend(*pairs, None, regions).reshape(out.shape)
        return jnp.concatenate([self._finish(aligned, size), self._finish(out, size)], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(
    plans: tuple,
    split: Split,
    reference: Callable,
    arrays: tuple,
    bias: Array | None,
    regions: Array | None,
    carried: tuple,
) -> Array:
    """Attention by kernels on CUDA and by `reference` elsewhere; the choice falls at lowering.

    The derivative is defined here, around the choice, so that the arrays which it keeps are the
    same on all platforms. Elsewhere than on CUDA it recomputes the logits.
    """
    return _fused_forward(plans, split, reference, arrays, bias, regions, carried)[0]


def _fused_forward(
    plans: tuple,
    split: Split,
    reference: Callable,
    arrays: tuple,
    bias: Array | None,
    regions: Array | None,
    carried: tuple,
) -> tuple[Array, tuple]:
    out, lse = _run_forward(plans, split, reference, arrays, bias, regions)
    out = checkpoint_name(out, SAVED_NAMES[0])
    lse = checkpoint_name(lse, SAVED_NAMES[1])
    return out, ((arrays, bias, regions, out, lse), carried)


def _fused_backward(
    plans: tuple, split: Split, reference: Callable, saved: tuple, dout: Array
) -> tuple:
    saved, carried = saved
    gradients, dbias, sums = _run_backward(plans, split, reference, *saved, dout)
    dcarried = tuple(total.astype(c.dtype) for total, c in zip(sums, carried, strict=True))
    return gradients, dbias, None, dcarried


_fused.defvjp(_fused_forward, _fused_backward)


# Jitted, so that blocks of the same shapes are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_forward(plans: tuple, split: Split, reference: Callable, *args: Any) -> tuple[Array, list]:
    def otherwise(arrays: tuple, bias: Array | None, regions: Array | None) -> tuple:
        shapes = [(p.heads, p.layout.windows * p.layout.tokens) for p in plans]
        return reference(*arrays, bias, regions), [jnp.zeros(s, jnp.float32) for s in shapes]

    kernels = dispatch.kernels("pallas_attention")
    cuda = functools.partial(kernels.run_forward, plans)
    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plans[0].interpret)
    return split.over(run, (0, None, None), (0, 1))(*args)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_backward(
    plans: tuple, split: Split, reference: Callable, *args: Any
) -> tuple[Any, Array | None, tuple]:
    """Gradients of the arrays and of the bias, and the former's sums if the plans say so."""

    def otherwise(arrays: tuple, bias: Array | None, regions: Array | None, *rest: Any) -> tuple:
        _, pull = jax.vjp(lambda a, b: reference(*a, b, regions), arrays, bias)
        gradients, dbias = pull(rest[-1])
        summed = gradients[: len(plans)] if plans[0].sums else ()
        return gradients, dbias, tuple(carried_bias.row_sum(g) for g in summed)

    kernels = dispatch.kernels("pallas_attention")
    cuda = functools.partial(kernels.run_backward, plans)
    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plans[0].interpret)
    return split.over(run, (0, None, None, 0, 1, 0), (0, SUM, SUM))(*args)
