import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from lowering import lowered

from vrtspike_jax.ops import (
    attention_tiles,
    dispatch,
    pallas_attention,
    shifted_window_attention,
    window_attention,
)
from vrtspike_jax.ops.window_layout import (
    FrameWindows,
    axis_regions,
    partition,
    shift_regions,
)


def _normal(seed, *shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def _value_and_gradients(call, arguments):
    @jax.jit
    def run(arguments):
        out, pull = jax.vjp(call, *arguments)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return out, pull(weights.astype(out.dtype))

    return jax.tree.leaves(run(tuple(arguments)))


def _assert_equal(actual, wanted, tolerance):
    assert len(actual) == len(wanted)
    for a, b in zip(actual, wanted, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    "tokens, heads, dim, biased, shifted, dtype, whole",
    [
        (24, 2, 10, False, True, jnp.float32, True),  # a ragged tile, padded channels
        (80, 1, 20, True, False, jnp.float32, True),  # two tiles
        (80, 1, 20, True, False, jnp.float32, False),
        (96, 1, 16, True, True, jnp.float32, True),  # a ragged tile
        (24, 2, 10, False, True, jnp.float32, False),
        (64, 1, 16, True, False, jnp.bfloat16, True),
    ],
)
def test_kernels_equal_the_reference_forward_and_backward(
    tokens, heads, dim, biased, shifted, dtype, whole, monkeypatch
):
    monkeypatch.setattr(attention_tiles, "WHOLE_ELEMENTS", 96 * 32 if whole else 0)
    arguments = _normal(0, *[(2, tokens, heads, dim)] * 3, dtype=dtype)
    arguments += _normal(1, (heads, tokens, tokens)) if biased else []
    regions = np.arange(2 * tokens).reshape(2, tokens) // 7 % 3 if shifted else None

    def call(implementation):
        def attend(q, k, v, bias=None):
            return window_attention(q, k, v, bias, regions, implementation=implementation)

        return _value_and_gradients(attend, arguments)

    _assert_equal(call("interpret"), call("xla"), 1e-5 if dtype == jnp.float32 else 1e-2)


@pytest.mark.parametrize("compare_all", [False, True])
def test_windows_with_one_region_and_with_several(compare_all, monkeypatch):
    make_plan = functools.partial(pallas_attention.make_plan, compare_all=compare_all)
    monkeypatch.setattr(pallas_attention, "make_plan", make_plan)
    # Of 3 x 3 windows, the last of each row and column hold several regions.
    [qkv], [bias] = _normal(9, (1, 1, 12, 12, 48)), _normal(10, (1, 16, 16))

    def call(implementation):
        attend = functools.partial(
            shifted_window_attention,
            window=(1, 4, 4),
            shift=(0, 2, 2),
            scale=0.3,
            implementation=implementation,
        )
        return _value_and_gradients(attend, [qkv, bias])

    _assert_equal(call("interpret"), call("xla"), 1e-5)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("queries, keys", [(32, 16), (16, 64)])
def test_tiles_of_queries_and_of_keys_differ_in_size(queries, keys, whole, monkeypatch):
    launch = pallas_attention.Launch(2, 4, 2, queries=queries, keys=keys)
    kernels = ["forward", "bias", *(["whole"] if whole else ["queries", "keys"])]
    fields = {"whole": None} | dict.fromkeys(kernels, launch)
    make_plan = functools.partial(pallas_attention.make_plan, **fields)
    monkeypatch.setattr(pallas_attention, "make_plan", make_plan)
    # Of 80 tokens, the last tile of 32 or of 64 lacks some.
    qkv, bias, carried = _normal(3, (1, 2, 16, 10, 3 * 16), (1, 80, 80), (3 * 16,))

    def call(implementation):
        def attend(qkv, bias, carried):
            return shifted_window_attention(
                qkv,
                bias,
                window=(1, 8, 10),
                shift=(0, 4, 0),
                carried=(carried,),
                scale=0.25,
                implementation=implementation,
            )

        return _value_and_gradients(attend, [qkv, bias, carried])

    _assert_equal(call("interpret"), call("xla"), 1e-5)


def test_tokens_that_fill_a_tile_but_do_not_exist_leave_gradients_finite():
    # Their logits are zero, which towers above those of the tokens.
    arguments = _normal(7, *[(1, 40, 1, 16)] * 3) + [jnp.full((1, 40, 40), -200.0)]

    def call(implementation):
        attend = functools.partial(window_attention, implementation=implementation)
        return _value_and_gradients(attend, arguments)

    _assert_equal(call("interpret"), call("xla"), 1e-4)


@pytest.mark.parametrize("mutual, whole", [(False, True), (True, True), (True, False)])
def test_kernels_read_shifted_windows_where_they_lie(mutual, whole, monkeypatch):
    monkeypatch.setattr(attention_tiles, "WHOLE_ELEMENTS", 32 * 16 if whole else 0)
    size, window, shift = (2, 8, 8), (2, 4, 4), (0, 2, 2)
    qkv, other = _normal(2, *[(1, *size, 48)] * 2)
    [bias] = _normal(3, (1, 32, 32))

    def call(implementation):
        def attend(qkv, bias, other):
            return shifted_window_attention(
                qkv,
                bias,
                window=window,
                shift=shift,
                mutual=other if mutual else None,
                scale=0.3,
                implementation=implementation,
            )

        arguments = [qkv, bias, other] if mutual else [qkv, bias]
        return _value_and_gradients(lambda q, b, o=None: attend(q, b, o), arguments)

    wanted = call("xla")
    _assert_equal(call("interpret"), wanted, 1e-5)
    _assert_equal(call("auto"), wanted, 1e-6)


@pytest.mark.parametrize(
    "frames, shift, mutual, programs, launches",
    [
        (5, (0, 0, 0), False, 12, {}),  # programs for the bias of two windows of the same frames
        (5, (1, 4, 4), False, 4, {}),  # of six windows of different frames
        (5, (0, 0, 0), True, 12, {}),
        (5, (1, 4, 4), True, 12, {}),
        (3, (1, 4, 4), True, 8, {"forward": (2, 64, 32), "whole": (1, 32, 64)}),  # halves together
        (3, (1, 4, 4), False, 8, {"whole": None}),
        (3, (1, 4, 4), False, 8, {"forward": (1, 16, 64), "whole": (1, 16, 64)}),  # parts of frames
        (3, (1, 4, 4), False, 8, {"forward": (1, 128, 64), "whole": (1, 128, 64)}),  # two frames
        (7, (2, 0, 0), False, 8, {"forward": (1, 16, 64), "whole": (1, 16, 64)}),  # amid a window
    ],
)
def test_frames_that_nobody_reads_change_nothing_and_get_no_gradient(
    frames, shift, mutual, programs, launches, monkeypatch
):
    fields = {k: v and pallas_attention.Launch(v[0], 4, 2, *v[1:]) for k, v in launches.items()}
    make_plan = functools.partial(pallas_attention.make_plan, **fields)
    monkeypatch.setattr(pallas_attention, "make_plan", make_plan)
    monkeypatch.setattr(pallas_attention, "BIAS_PROGRAMS", programs)
    window = (4, 4, 4) if frames == 7 else (2, 8, 8)
    tokens = int(np.prod(window))
    maps = _normal(14, *[(1, frames + 1, 8, 16, 48)] * (2 if mutual else 1))
    [bias], carried = _normal(15, (1, tokens, tokens)), _normal(16, *[(48,)] * len(maps))
    [weights] = _normal(17, (1, frames, 8, 16, 32 if mutual else 16))

    @functools.partial(jax.jit, static_argnums=0)
    def call(implementation):
        def attend(bias, carried, *maps):
            out = shifted_window_attention(
                maps[0],
                bias,
                window=window,
                shift=shift,
                mutual=maps[1] if mutual else None,
                carried=carried,
                scale=0.3,
                kept_frames=frames,
                implementation=implementation,
            )
            return out[:, :frames], out[:, frames:]

        out, pull, padded = jax.vjp(attend, bias, tuple(carried), *maps, has_aux=True)
        return jax.tree.leaves((out, pull(weights))), padded

    (wanted, _), (found, padded) = call("xla"), call("interpret")
    _assert_equal(found, wanted, 1e-5)
    assert np.isfinite(padded).all()
    # Nobody uses what the last frame's queries find.
    assert mutual or not found[-1][:, frames, ..., :16].any()


@pytest.mark.parametrize("mutual", [False, True])
def test_gradients_of_results_that_nobody_reads_are_not_read(mutual):
    size, window = (2, 8, 8), (2, 8, 8)
    maps = _normal(18, *[(1, *size, 48)] * 2)
    [bias] = _normal(19, (1, 128, 128))

    def attend(bias, *maps):
        return shifted_window_attention(
            maps[0],
            bias,
            window=window,
            shift=(0, 0, 0),
            mutual=maps[1] if mutual else None,
            kept_frames=1,
            implementation="interpret",
        )

    @jax.jit
    def gradients(lost):
        out, pull = jax.vjp(attend, bias, *maps)
        return pull(jnp.concatenate([out[:, :1], jnp.full_like(out[:, 1:], lost)], axis=1))

    _assert_equal(*(jax.tree.leaves(gradients(lost)[: 2 + mutual]) for lost in (7.0, 0.0)), 1e-6)


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize(
    "size, window, shift, kept",
    [
        ((6, 8, 4), (2, 4, 4), (1, 2, 0), 5),
        ((4, 8, 8), (2, 4, 4), (0, 0, 0), 3),
        ((8, 4, 4), (4, 4, 4), (2, 0, 0), 5),  # dropped frames in two windows
        ((8, 4, 4), (4, 4, 4), (2, 0, 0), 7),  # one amid a window
    ],
)
def test_dropped_frames_of_a_window_are_those_past_the_kept_ones(size, window, shift, kept, mutual):
    layout = FrameWindows(2, size, window, shift, mutual=mutual, kept=kept)
    assert layout.drops
    rows = layout.place(*jnp.indices((layout.windows, layout.tokens))).key_rows
    dropped = np.asarray(rows) // (size[1] * size[2]) % size[0] >= kept
    first, end = (np.asarray(a)[:, None] for a in layout.dropped(jnp.arange(layout.windows)))
    some = (first < end).any(axis=1)
    amid = ((first > 0) & (end < layout.frames))[some]
    assert amid.any() == layout.drops_amid
    frame = np.arange(layout.tokens) // (window[1] * window[2])
    np.testing.assert_array_equal((first <= frame) & (frame < end), dropped)
    same = dropped.reshape(-1, layout.neighbours, layout.tokens)
    np.testing.assert_array_equal(same, np.broadcast_to(same[:, :1], same.shape))


@pytest.mark.parametrize("kept, shift", [(None, 0), (4, 2), (1, 2)])
def test_no_frames_are_dropped_where_all_are_kept_or_the_shift_parts_them(kept, shift):
    assert not FrameWindows(1, (4, 8, 8), (4, 8, 8), (shift, 0, 0), kept=kept).drops


@pytest.mark.parametrize("mutual, whole", [(False, True), (True, True), (False, False)])
def test_biases_that_attention_carries_get_the_gradients_of_those_that_are_added(
    mutual, whole, monkeypatch
):
    # 10 channels a head, which a tile pads, and 40 tokens, of which the last tile lacks some.
    monkeypatch.setattr(attention_tiles, "WHOLE_ELEMENTS", 64 * 16 if whole else 0)
    window = (2, 4, 4) if mutual else (1, 5, 8)
    maps = _normal(11, *[(2, 2, 10, 16, 60) if not mutual else (1, 2, 8, 8, 60)] * 2)
    biases = _normal(12, (60,), (60,))
    tokens = int(np.prod(window))
    [table] = _normal(13, (2, tokens, tokens))

    def call(carries, implementation):
        def attend(*biases):
            qkv, other = (x + b for x, b in zip(maps, biases, strict=True))
            carried = None
            if carries:
                qkv, other, carried = *(jax.lax.stop_gradient(a) for a in (qkv, other)), biases
            return shifted_window_attention(
                qkv,
                table,
                window=window,
                shift=(0, 2, 2),
                mutual=other if mutual else None,
                carried=carried if mutual or carried is None else carried[:1],
                scale=0.3,
                implementation=implementation,
            )

        return _value_and_gradients(attend, biases)

    wanted = call(False, "xla")
    for implementation in ("xla", "interpret"):
        found = call(True, implementation)
        _assert_equal(found[: 3 if mutual else 2], wanted[: 3 if mutual else 2], 1e-5)


@pytest.mark.parametrize(
    "size, window, shift",
    [((4, 16, 8), (2, 8, 8), (1, 4, 0)), ((3, 12, 8), (3, 4, 4), (0, 2, 2))],
)
def test_address_arithmetic_equals_rolling_and_partitioning(size, window, shift):
    rows = jnp.arange(2 * np.prod(size)).reshape(2, *size, 1)
    rolled = jnp.roll(rows, [-s for s in shift], axis=(1, 2, 3))
    wanted = partition(rolled, window)[..., 0]
    layout = FrameWindows(2, size, window, shift)
    assert wanted.shape == (layout.windows, layout.tokens)
    place = layout.place(*jnp.indices((layout.windows, layout.tokens)))
    np.testing.assert_array_equal(place.key_rows, wanted)
    numbers = np.tile(shift_regions(axis_regions(size, window, shift), window), (2, 1))
    indices = jnp.indices((layout.windows, layout.tokens))
    regions = np.asarray(layout.region(*indices))
    several = np.asarray(layout.has_regions(jnp.arange(layout.windows)))
    np.testing.assert_array_equal(several, [len(set(row)) > 1 for row in numbers])
    assert several.any() and not several.all()
    same = regions[:, :, None] == regions[:, None, :]
    np.testing.assert_array_equal(same, numbers[:, :, None] == numbers[:, None, :])


def test_mutual_halves_query_each_other_and_share_the_first_ones_regions():
    layout = FrameWindows(1, (4, 8, 8), (2, 4, 4), (1, 2, 2))
    half = FrameWindows(1, (4, 8, 8), (2, 4, 4), (1, 2, 2), mutual=True)
    halves = layout.place(*jnp.indices((layout.windows, 32))).key_rows.reshape(-1, 2, 16)
    place = half.place(*jnp.indices((half.windows, 16)))
    np.testing.assert_array_equal(place.key_rows, halves.reshape(-1, 16))
    np.testing.assert_array_equal(place.query_rows, halves[:, ::-1].reshape(-1, 16))
    regions = np.asarray(half.region(*jnp.indices((half.windows, 16)))).reshape(-1, 2, 16)
    np.testing.assert_array_equal(regions[:, 0], regions[:, 1])


@pytest.mark.parametrize(
    "window, kept", [((2, 4, 8), 2), ((2, 8, 8), 2), ((2, 8, 8), 1), ((5, 8, 8), 5), ((6, 8, 8), 5)]
)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_kernels_are_lowered_for_cuda_and_left_out_for_tpus(platform, window, kept):
    mutual = window[0] == 2
    qkv = jax.ShapeDtypeStruct((1, window[0], 8, 8, 48), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((1, *[int(np.prod(window))] * 2), jnp.float32)

    def loss(qkv, bias, other, carried):
        out = shifted_window_attention(
            qkv,
            bias,
            window=window,
            shift=(0, 4, 4),
            mutual=other if mutual else None,
            carried=(carried, carried) if mutual else (carried,),
            kept_frames=kept,
            implementation="pallas",
        )
        return out.astype(jnp.float32).sum(), out

    run = jax.grad(loss, argnums=(0, 1, 2, 3) if mutual else (0, 1, 3), has_aux=True)
    carried = jax.ShapeDtypeStruct((48,), jnp.float32)
    _, found = lowered(run, platform, qkv, bias, qkv, carried)
    # Forward, window and bias, and the former two again; of 384 tokens, queries and keys apart.
    wanted = 5 if mutual else 4 if window[0] == 6 else 3
    assert found == (wanted if platform == "cuda" else 0)


def test_auto_exports_for_tpus_without_gpu_kernels():
    qkv, bias = jax.ShapeDtypeStruct((1, 2, 8, 8, 48), jnp.bfloat16), jnp.zeros((1, 64, 64))

    def loss(qkv, bias):
        out = shifted_window_attention(qkv, bias, window=(2, 4, 8), shift=(0, 2, 0))
        return out.astype(jnp.float32).sum()

    module = export.export(jax.jit(jax.grad(loss, argnums=(0, 1))), platforms=["tpu"])(qkv, bias)
    assert "triton" not in module.mlir_module()


@pytest.mark.parametrize("implementation", ["pallas", "cudnn"])
def test_platforms_that_lack_an_implementation_warn_once(implementation, caplog):
    dispatch.warn_once.cache_clear()
    q, k, v = _normal(4, *[(1, 16, 1, 16)] * 3, dtype=jnp.bfloat16)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = window_attention(q, k, v, implementation=implementation)
    assert len(caplog.records) == 1 and implementation in caplog.text
    np.testing.assert_array_equal(out, window_attention(q, k, v, implementation="xla"))


def test_a_jax_without_triton_warns_once_and_runs_the_reference(monkeypatch, caplog):
    def missing(name):
        raise ImportError(f"no module {name}")

    dispatch.warn_once.cache_clear()
    dispatch.kernels.cache_clear()
    monkeypatch.setattr(dispatch.importlib, "import_module", missing)
    q, k, v = _normal(5, *[(1, 16, 1, 16)] * 3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = window_attention(q, k, v, implementation="interpret")
    dispatch.kernels.cache_clear()
    assert len(caplog.records) == 1
    np.testing.assert_array_equal(out, window_attention(q, k, v, implementation="xla"))


def test_unknown_implementations_and_windows_that_do_not_tile_are_refused():
    q, k, v = _normal(6, *[(1, 16, 1, 16)] * 3)
    with pytest.raises(ValueError, match="'fast'"):
        window_attention(q, k, v, implementation="fast")
    with pytest.raises(ValueError, match="5 of 4 frames"):
        shifted_window_attention(
            jnp.zeros((1, 4, 8, 8, 48)),
            jnp.zeros((1, 32, 32)),
            window=(2, 4, 4),
            shift=(0, 0, 0),
            kept_frames=5,
        )
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        shifted_window_attention(
            jnp.zeros((1, 3, 8, 8, 48)), jnp.zeros((1, 32, 32)), window=(2, 4, 4), shift=(0, 0, 0)
        )
