"""What a state dict is of, and the fields of the model it was made for, from names and shapes."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

VGG16 = "vgg16"
SPYNET = "spynet"
# Names of `vrtspike_jax.models.build.MODELS`.
VRT = "vrt"
VRT_SPIKE = "vrt_spike"

_TABLE = "attn.relative_position_bias_table"
_INDEX = "attn.relative_position_index"
# What is left of names and shapes once several values fit: the published ones first.
_LIKELY_RATIOS = (0.75, 2.0, 0.5, 1.0, 0.0, 1.5, 3.0, 4.0)

# Number of the group, in stages 1 to 7, that has mutual attention and always sees two frames.
_MUTUAL = "1"
# Pattern of what stands between a stage, or a group of stage 8, and its residual convolutions.
_CONVOLVED = r"(?:\.convolutions)?"

Shape = tuple[int, ...]


def kind_of(names: Mapping[str, Any]) -> str:
    """`VGG16`, `SPYNET`, `VRT` or `VRT_SPIKE`.

    Raises:
        ValueError: the names are of none of them.
    """
    if "features.0.weight" in names:
        return VGG16
    if "basic_module.0.basic_module.0.weight" in names:
        return SPYNET
    if "vrt.conv_first.weight" in names and "spike_encoder.in_proj.weight" in names:
        return VRT_SPIKE
    if "conv_first.weight" in names and "stage1.reshape.1.weight" in names:
        return VRT
    found = ", ".join(list(names)[:4]) or "nothing"
    raise ValueError(f"neither VRT, VRT with spikes, SpyNet nor VGG16: it holds {found} ...")


def model_fields(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `VRT` or `VRTWithSpike`, as `config.model` has them, that a state dict is of.

    Names and shapes do not show `qk_scale`, `drop_path_rate`, `tsa_heads`, `fuse_heads`, dropout
    rates and strides of the spike encoder: these are left out, so the defaults hold, which are
    the published values.

    Args:
        state: Arrays by name, as published; buffers help where the window is not square.

    Returns:
        `name`, and the fields; those of the backbone under `vrt`.

    Raises:
        ValueError: names are missing, or shapes contradict each other.
    """
    kind = kind_of(state)
    try:
        if kind == VRT:
            return {"name": VRT, "vrt": _vrt_fields(state)}
        if kind == VRT_SPIKE:
            backbone = {k.removeprefix("vrt."): v for k, v in state.items() if k[:4] == "vrt."}
            return {"name": VRT_SPIKE, "vrt": _vrt_fields(backbone)} | _spike_fields(state)
    except KeyError as error:
        raise ValueError(f"a state dict of {kind} without {error.args[0]}") from error
    raise ValueError(f"a state dict of {kind} has no settings")


def _vrt_fields(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    shapes = {name: np.shape(value) for name, value in state.items()}
    groups = [f"stage{i}" for i in range(1, 8)]
    last = r"stage8\.(\d+)\.(?:linear|blocks\.0\.conv1)\.weight"
    groups += [f"stage8.{i}" for i in range(1, _count(shapes, last))]
    dims = tuple(_width(shapes, group) for group in groups)
    block = r"\.blocks\.(\d+)\.norm1\.weight"
    mutual = [_count(shapes, rf"{g}\.residual_group{_MUTUAL}{block}") for g in groups]
    alone = [_count(shapes, rf"{g}\.residual_group2?{block}") for g in groups]
    convolved = [_count(shapes, rf"{g}{_CONVOLVED}\.blocks\.(\d+)\.conv1\.weight") for g in groups]
    depths = tuple(map(sum, zip(mutual, alone, convolved, strict=True)))
    attending = [i for i in range(7) if not convolved[i]]
    blocks = sorted(_blocks(shapes))
    if not blocks:
        raise ValueError("a state dict of VRT without blocks: no settings follow from it")
    window, frames = _window(state, blocks)
    hidden, entering = zip(*(shapes[f"{b}.mlp.fc11.weight"] for b in blocks), strict=True)
    return {
        "upscale": _upscale(shapes),
        "out_chans": shapes["conv_last.weight"][0],
        "window_size": window,
        "depths": depths,
        "indep_reconsts": tuple(
            i
            for i, group in enumerate(groups)
            if group[:6] == "stage8" and frames.get(group, window[0]) < window[0]
        ),
        "embed_dims": dims,
        "num_heads": _heads(shapes, groups, blocks),
        "mul_attn_ratio": _ratio(
            [depths[i] for i in attending], [mutual[i] for i in attending], "mul_attn_ratio"
        ),
        "mlp_ratio": _ratio(entering, hidden, "mlp_ratio"),
        "qkv_bias": f"{blocks[0]}.attn.qkv_self.bias" in shapes,
        "conv_scales": sum(count > 0 for count in convolved[:4]),
    } | _alignment_fields(shapes, dims)


def _width(shapes: Mapping[str, Shape], group: str) -> int:
    """Channels of a stage, or of a group of stage 8."""
    layers = ("linear1", "linear", "convolutions.blocks.0.conv1", "blocks.0.conv1")
    names = [f"{group}.{layer}.weight" for layer in layers]
    return shapes[next((name for name in names if name in shapes), names[0])][0]


def _alignment_fields(shapes: Mapping[str, Shape], dims: Sequence[int]) -> dict[str, Any]:
    """What depends on whether, and from how many frames, features are aligned."""
    entering = shapes["conv_first.weight"][1]
    warping = [i for i in range(7) if f"stage{i + 1}.pa_deform.weight" in shapes]
    if not warping:
        frames = shapes["linear_fuse.weight"][1] // dims[0]
        return {"pa_frames": 0, "in_chans": entering, "img_size": (frames, 64, 64)}
    # The first convolution for the offsets takes P / 2 + 1 frames' features and P flow channels.
    stage, dim = f"stage{warping[0] + 1}.pa_deform.conv_offset", dims[warping[0]]
    channels = shapes[f"{stage}.0.weight"][1]
    sources = (channels - dim) // (dim + 2)
    return {
        "pa_frames": 2 * sources,
        "deformable_groups": shapes[f"{stage}.6.weight"][0] // 27,
        "in_chans": entering // 9,
        "nonblind_denoising": entering % 9 == 1,
        "optical_flow": "spynet" if any(name[:7] == "spynet." for name in shapes) else "none",
    }


def _spike_fields(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    shapes = {name: np.shape(value) for name, value in state.items()}
    first = shapes["spike_encoder.in_proj.weight"]
    downs = _count(shapes, r"spike_encoder\.downs\.(\d+)\.weight")
    channels = [first[0], *(shapes[f"spike_encoder.downs.{i}.weight"][0] for i in range(downs))]
    scales = range(downs + 1)
    concat = any(name.startswith("concat_fuse.") for name in shapes)
    fuse = f"{'concat' if concat else 'cross_attn'}_fuse.fuse_blocks"
    widths = {"fuse_mlp_ratio": [shapes[f"{fuse}.{i}.ffn.0.weight"][0] for i in scales]}
    attends = any(name.startswith("spike_temporal_sa.") for name in shapes)
    if attends:
        tsa = "spike_temporal_sa.blocks"
        widths["tsa_mlp_ratio"] = [shapes[f"{tsa}.{i}.mlp.0.weight"][0] for i in scales]
    # The encoder takes K bins as they are and then those that the aligner warps, K + 2 * reach.
    warped = shapes.get("spike_aligner.down0.weight", (0, 0))[1]
    bins = first[1] - warped
    return {
        "spike_bins": bins,
        "channels_per_scale": tuple(channels),
        "spike_blocks": _count(shapes, r"spike_encoder\.res0\.(\d+)\.conv1\.weight"),
        "spike_attention": attends,
        "spike_input": "spike_first.weight" in shapes,
        "spike_alignment": warped > 0,
        "alignment_reach": (warped - bins) // 2 if warped else 0,
        "fusion": "concat" if concat else "cross_attention",
        # Any start does: what was learned comes with the state dict.
        "time_slope": float(any(name.endswith(".time_slope") for name in shapes)),
    } | {name: _ratio(channels, hidden, name) for name, hidden in widths.items()}


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    """One more than the largest number that a pattern's group takes among the names."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return max((int(m[1]) + 1 for m in found if m), default=0)


def _blocks(shapes: Mapping[str, Shape]) -> list[str]:
    return [name.removesuffix(f".{_TABLE}") for name in shapes if name.endswith(_TABLE)]


def _heads(
    shapes: Mapping[str, Shape], groups: Sequence[str], blocks: Sequence[str]
) -> tuple[int, ...]:
    """Heads of each group; a group without blocks takes any number, here 1."""
    heads = {b.split(".residual_group")[0]: shapes[f"{b}.{_TABLE}"][1] for b in blocks}
    return tuple(heads.get(group, 1) for group in groups)


def _window(
    state: Mapping[str, np.ndarray], blocks: Sequence[str]
) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The window, and how many frames the bias tables of each group in stage 8 cover."""
    rows = {b: np.shape(state[f"{b}.{_TABLE}"])[0] for b in blocks}
    index = state.get(f"{blocks[0]}.{_INDEX}")
    height, width = _square_area(rows) if index is None else _area(index)
    spans = (2 * height - 1) * (2 * width - 1)
    frames, largest = {}, 0
    for block, count in rows.items():
        if count % spans or count // spans % 2 == 0:
            raise ValueError(
                f"{block}.{_TABLE} has {count} rows, which does not fit a window of {height} x "
                f"{width} pixels"
            )
        group, _, inner = block.partition(".residual_group")
        frames[group] = (count // spans + 1) // 2
        if inner[:1] != _MUTUAL:
            largest = max(largest, frames[group])
    return (largest or 2, height, width), frames


def _area(index: np.ndarray) -> tuple[int, int]:
    """Height and width of a window from its index buffer.

    From token 0 to token j the index falls by j along a row, by 2 * width - 1 from row to row, and
    by (2 * width - 1) * (2 * height - 1) from frame to frame.
    """
    falls = int(index[0, 0]) - np.asarray(index[0]).astype(np.int64)
    width = next((j for j, fall in enumerate(falls) if fall != j), len(falls))
    rows = falls[::width]
    height = next((i for i, fall in enumerate(rows) if fall != i * (2 * width - 1)), len(rows))
    return height, width


def _square_area(rows: Mapping[str, int]) -> tuple[int, int]:
    """Height and width, taken as equal, from the tables' sizes; the published 8 where it fits."""
    mutual = [count for block, count in rows.items() if f".residual_group{_MUTUAL}" in block]
    sides = [15, *range(1, 128, 2)]
    for side in sides:
        if mutual:
            fits = all(count == 3 * side**2 for count in mutual)
        else:
            fits = all(count % side**2 == 0 and count // side**2 % 2 for count in rows.values())
        if fits and (mutual or side == sides[0]):
            return (side + 1) // 2, (side + 1) // 2
    raise ValueError(
        "neither buffers nor tables of a square window tell the attention window's height and "
        "width: use a file with buffers (relative_position_index)"
    )


def _upscale(shapes: Mapping[str, Shape]) -> int:
    steps = [s for name, s in shapes.items() if re.fullmatch(r"upsample\.\d+\.weight", name)]
    return math.prod(math.isqrt(s[0] // s[1]) for s in steps)


def _ratio(sizes: Sequence[int], parts: Sequence[int], name: str) -> float:
    """A ratio r with int(size * r) == part for all; the likeliest where several fit."""
    exact = [part / size for size, part in zip(sizes, parts, strict=True) if size]
    for ratio in (*_LIKELY_RATIOS, *exact):
        if all(int(s * ratio) == p for s, p in zip(sizes, parts, strict=True)):
            return float(ratio)
    raise ValueError(f"no one {name} gives {tuple(parts)} of {tuple(sizes)}")
