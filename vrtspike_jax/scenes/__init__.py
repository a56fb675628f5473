"""Moving scenes with exact ground truth: the data set that needs no download.

A scene is a background and a few objects, textured with photographs or generated patterns, each
moving on a smooth path of its own (shift, turn, zoom, tilt) while the camera shakes. It is drawn at
many sub-frames of each exposure; their average is the blurred frame, the middle one the sharp
frame, and their gray levels fire the spikes. Clips can also be cut from films of real motion.
Everything follows from a seed.
"""

from vrtspike_jax.scenes.description import Layer, Scene, sample_scene
from vrtspike_jax.scenes.films import check_media
from vrtspike_jax.scenes.options import SceneOptions, scene_options
from vrtspike_jax.scenes.raster import draw_exposures
from vrtspike_jax.scenes.render import expose, render_clip, spike_shape

__all__ = [
    "Layer",
    "Scene",
    "SceneOptions",
    "check_media",
    "draw_exposures",
    "expose",
    "render_clip",
    "sample_scene",
    "scene_options",
    "spike_shape",
]
