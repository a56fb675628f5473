"""How a Flax parameter is called, cut and laid out in the published PyTorch state dicts.

Submodules carry the published names, so the rules are few: digits are joined by underscores
(`mlp_0` is `mlp.0`), scanned pairs of blocks are stacked along a first axis, and layouts are
channels last.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Buffers: fixed by the architecture, present in state dicts and not in `params`.
BUFFERS = ("relative_position_index", "attn.position_bias", "spynet.mean", "spynet.std")
# Submodules (patterns) whose published counterpart is called otherwise.
RENAMED = {
    "reshape/norm": "reshape.1",
    "reshape/linear": "reshape.2",
    "attn_attn": "attn.attn",
    r"upsample/upsample_(\d+)": r"upsample/\g<2>",
}
# Submodules that exist here alone.
EXTRA = ("warping",)


class TorchName(NamedTuple):
    """Where one slice of a Flax parameter lives in a state dict.

    Attributes:
        name: Key of the state dict.
        layer: Index along the stacked axis, or None where the parameter is not stacked.
    """

    name: str
    layer: int | None


def is_buffer(name: str) -> bool:
    """Whether a state dict's key names a buffer, which carries no information."""
    return name.endswith(BUFFERS) or name in ("mean", "std")


def _dotted(component: str) -> str:
    """`stage8_0_1` -> `stage8.0.1`."""
    while (joined := re.sub(r"_(\d+)(?=$|\.)", r".\1", component)) != component:
        component = joined
    return component


def _leaf(component: str) -> str:
    return {"kernel": "weight", "scale": "weight"}.get(component, component)


def _join(components: tuple[str, ...]) -> str:
    text = "/".join(c for c in components if c not in EXTRA)
    for ours, theirs in RENAMED.items():
        text = re.sub(rf"(^|/){ours}(?=/)", rf"\g<1>{theirs}", text)
    *modules, leaf = text.split("/")
    return ".".join([*map(_dotted, modules), _leaf(leaf)])


def torch_names(path: tuple[str, ...], shape: tuple[int, ...], pairs: int) -> Iterator[TorchName]:
    """Names the state dict entries that make up one parameter.

    Args:
        path: Components of the parameter's path.
        shape: Its shape.
        pairs: Scanned pairs in the group of blocks around it, 0 where there is none.
    """
    if "pairs" in path:
        at = path.index("pairs")
        second = path[at + 1] == "shifted"
        for pair in range(shape[0]):
            block = f"blocks_{2 * pair + second}"
            yield TorchName(_join(path[:at] + (block,) + path[at + 2 :]), pair)
    elif "last" in path:
        at = path.index("last")
        yield TorchName(_join(path[:at] + (f"blocks_{2 * pairs}",) + path[at + 1 :]), None)
    else:
        yield TorchName(_join(path), None)


def torch_axes(leaf: str, ndim: int) -> tuple[int, ...]:
    """Permutation from our layout to PyTorch's: input and output channels last, to first."""
    if leaf not in ("kernel", "weight", "in_proj_weight"):
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def to_numpy(value: object) -> np.ndarray:
    """A state dict's value, tensor or array, as float32 or integer NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return value.numpy()
    value = np.asarray(value)
    return value if value.dtype.kind in "iub" else value.astype(np.float32)
