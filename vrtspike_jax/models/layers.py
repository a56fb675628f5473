"""Layers that several parts of the model share, with PyTorch's defaults where it matters."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vrtspike_jax.ops import conv, gelu_gate, layer_norm
from vrtspike_jax.ops.normed_projection import project
from vrtspike_jax.ops.partition import as_rows

# torch.nn.Linear and Conv draw weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
# Jitted, because Flax traces it for each parameter of each call, to compare shapes.
torch_uniform = jax.jit(
    nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), static_argnums=(1, 2)
)

Dense = functools.partial(nn.Dense, kernel_init=torch_uniform)
Conv = functools.partial(nn.Conv, kernel_init=torch_uniform)
gelu = functools.partial(jax.nn.gelu, approximate=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def named_leaky_relu(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """LeakyReLU of slope 0.1 whose result has a name, for rematerialisation policies.

    Its derivative needs the result's sign alone, so that who keeps that can forget the input.
    """
    return jnp.where(x >= 0, x, 0.1 * x)


def _leaky_relu_forward(x: Array, name: str) -> tuple[Array, Array]:
    y = checkpoint_name(named_leaky_relu(x, name), name)
    return y, y


def _leaky_relu_backward(name: str, y: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(y >= 0, gradient, 0.1 * gradient),)


named_leaky_relu.defvjp(_leaky_relu_forward, _leaky_relu_backward)


def add_product(x: Float[Array, "b ... c"], y: Float[Array, "..."]) -> Float[Array, "b ... c"]:
    """x + y, where y, a map or its rows, is a product of rows and x is needed afterwards too.

    cuBLAS adds x then. Were it to add a map, it would do so in place, and the compiler copy x.
    """
    return (as_rows(x) + as_rows(y)).reshape(x.shape)


class FrameConv(nn.Module):
    """PyTorch's Conv3d with kernel (1, 3, 3): one 2D convolution shared by all frames.

    Attributes:
        features: Output channels.
        dtype: Compute dtype.
        kernel_init: How weights are drawn.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = torch_uniform

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w features"]:
        kernel = self.param("kernel", self.kernel_init, (1, 3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        frames = x.reshape((-1,) + x.shape[2:]).astype(self.dtype)
        y = conv(frames, kernel[0].astype(self.dtype), "xla")
        return (y + bias.astype(self.dtype)).reshape(x.shape[:-1] + (self.features,))


class DenseParameters(nn.Module):
    """The parameters of a Dense layer, for operations that fuse it.

    Attributes:
        features: Output channels.
        use_bias: Whether there is a bias.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Float[Array, "c features"], Array | None]:
        kernel = self.param("kernel", torch_uniform, (inputs, self.features))
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class GatedMlp(nn.Module):
    """GEGLU feed-forward layer, VRT's `Mlp_GEGLU`: fc2(gelu(fc11(x)) * fc12(x)).

    Attributes:
        hidden: Width of the gated layer.
        features: Output channels.
        kernels: Implementation of `gelu_gate`.
        dtype: Compute dtype.
    """

    hidden: int
    features: int
    kernels: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... features"]:
        # Both parts by one product, which reads x once; so is what comes back.
        parts = [DenseParameters(self.hidden, name=name)(x.shape[-1]) for name in ("fc11", "fc12")]
        weight, bias = (jnp.concatenate(both, axis=-1) for both in zip(*parts, strict=True))
        packed = x.astype(self.dtype) @ weight.astype(self.dtype)
        hidden = gelu_gate(packed, bias, self.kernels)
        return Dense(self.features, dtype=self.dtype, name="fc2")(hidden)


class LayerNorm(nn.Module):
    """LayerNorm with PyTorch's epsilon, and statistics in float32 whatever the compute dtype.

    It keeps its input for the backward pass and nothing else; `nn.LayerNorm` keeps several
    float32 copies.

    Attributes:
        dtype: Compute dtype.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.dtype, implementation="xla")


class LayerNormParameters(nn.Module):
    """The parameters of a LayerNorm, for operations that fuse it."""

    @nn.compact
    def __call__(self, features: int) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        scale = self.param("scale", nn.initializers.ones, (features,))
        return scale, self.param("bias", nn.initializers.zeros, (features,))


class ConvParameters(nn.Module):
    """The parameters of a Conv layer, for operations that fuse it.

    Attributes:
        features: Output channels.
        kernel_size: Height and width of the kernel.
    """

    features: int
    kernel_size: tuple[int, int]

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Float[Array, "kh kw c features"], Array]:
        kernel = self.param("kernel", torch_uniform, (*self.kernel_size, inputs, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Projection(nn.Module):
    """Dense layer whose bias gets no gradient here, but from what carries it (`carried_bias`).

    Attributes:
        inputs: Input channels.
        features: Output channels.
        use_bias: Whether there is a bias.
        dtype: Compute dtype.
    """

    inputs: int
    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.kernel = self.param("kernel", torch_uniform, (self.inputs, self.features))
        self.bias = None
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(
        self, x: Float[Array, "b ... inputs"], scale: Float[Array, " b"] | None = None
    ) -> Float[Array, "b ... features"]:
        """Projects features, and multiplies each sample by its `scale`, drawn and not learned."""
        kernel, bias = self.kernel, self.bias
        if scale is not None and len(scale) == 1:
            # The compiler can then leave it to cuBLAS to add the bias, and what is added to this.
            kernel, bias, scale = kernel * scale, None if bias is None else bias * scale, None
        y = project(x, kernel, bias, self.dtype)
        if scale is not None:
            y *= scale.reshape(-1, *[1] * (x.ndim - 1)).astype(self.dtype)
        return y


class GatedMlpParameters(nn.Module):
    """The parameters of a `GatedMlp` whose output has the input's channels.

    Attributes:
        hidden: Width of the gated layer.
    """

    hidden: int

    @nn.compact
    def __call__(self, features: int) -> tuple[Array, ...]:
        """Weight and bias of the gate, of the value and of the output."""
        widths = (("fc11", features), ("fc12", features), ("fc2", self.hidden))
        outputs = (self.hidden, self.hidden, features)
        layers = [
            DenseParameters(n, name=name)(inputs)
            for (name, inputs), n in zip(widths, outputs, strict=True)
        ]
        return tuple(array for layer in layers for array in layer)
