"""Data sets, and the pipeline that turns them into batches.

A clip is a dict of NumPy arrays:

- `blur`, `sharp`: uint8 (T, H, W, 3), RGB.
- `spikes`: uint8, raw 0 or 1, (T, S, Hs, Ws): the S spike steps of each frame's exposure.

A batch, as training takes it, holds `blur`, `sharp` (B, T, H, W, 3), `spikes` as counts in K time
bins (B, T, Hs, Ws, K), uint8, or float32 where S is not that of the model (`config.voxel.steps`) or
differs from clip to clip, and `index` int64 (B,), which clip of the source each row is.
`vrtspike_jax.data.batch.model_inputs` turns it into float32 network input on the device.

Nothing in this folder but `batch` imports JAX, so that worker processes stay small,
and nothing imports TensorFlow. `vrtspike_jax.data.config` documents every setting.
"""
