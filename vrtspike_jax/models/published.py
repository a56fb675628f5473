"""VRT's published models: the settings behind each file of its model zoo."""

from typing import Any

from vrtspike_jax.models.vrt import VRT

_SUPER_RESOLUTION = {
    "upscale": 4,
    "depths": (8,) * 7 + (4,) * 6,
    "indep_reconsts": (11, 12),
    "embed_dims": (120,) * 7 + (180,) * 6,
    "num_heads": (6,) * 13,
}
_RESTORATION = {
    "upscale": 1,
    "img_size": (6, 192, 192),
    "window_size": (6, 8, 8),
    "depths": (8,) * 7 + (4,) * 4,
    "indep_reconsts": (9, 10),
    "embed_dims": (96,) * 7 + (120,) * 4,
    "num_heads": (6,) * 11,
    "pa_frames": 2,
    "deformable_groups": 16,
}
_REDS_6 = _SUPER_RESOLUTION | {
    "img_size": (6, 64, 64),
    "window_size": (6, 8, 8),
    "pa_frames": 2,
    "deformable_groups": 12,
}
_REDS_16 = _SUPER_RESOLUTION | {
    "img_size": (16, 64, 64),
    "window_size": (8, 8, 8),
    "pa_frames": 6,
    "deformable_groups": 24,
}
_VIMEO = _SUPER_RESOLUTION | {
    "img_size": (8, 64, 64),
    "window_size": (8, 8, 8),
    "pa_frames": 4,
    "deformable_groups": 16,
}
_INTERPOLATION = _RESTORATION | {
    "img_size": (4, 192, 192),
    "window_size": (4, 8, 8),
    "indep_reconsts": (),
    "pa_frames": 0,
}
# Name of the published file, without `.pth` -> fields of VRT (main_test_vrt.py).
TASKS: dict[str, dict[str, Any]] = {
    "001_VRT_videosr_bi_REDS_6frames": _REDS_6,
    "002_VRT_videosr_bi_REDS_16frames": _REDS_16,
    "003_VRT_videosr_bi_Vimeo_7frames": _VIMEO,
    "004_VRT_videosr_bd_Vimeo_7frames": _VIMEO,
    "005_VRT_videodeblurring_DVD": _RESTORATION,
    "006_VRT_videodeblurring_GoPro": _RESTORATION,
    "007_VRT_videodeblurring_REDS": _RESTORATION,
    "008_VRT_videodenoising_DAVIS": _RESTORATION | {"nonblind_denoising": True},
    "009_VRT_videofi_Vimeo_4frames": _INTERPOLATION,
}


def published(task: str, **fields: Any) -> VRT:
    """The model that a published file of weights was trained as.

    Args:
        task: Name of the file without `.pth`, such as "006_VRT_videodeblurring_GoPro".
        **fields: Fields of `VRT` to set besides or instead, such as `dtype` and `remat`.

    Returns:
        An unbound module; `vrtspike_jax.convert.from_torch` makes its parameters of the file.

    Raises:
        ValueError: there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"no published task {task!r}; known: {', '.join(TASKS)}")
    return VRT(**TASKS[task] | fields)
