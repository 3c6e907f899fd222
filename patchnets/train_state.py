"""What a training step takes and gives back, and what a checkpoint holds."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from patchnets import keys, sharding
from patchnets.metrics import TrainMetrics


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training. The data order and all randomness follow from `step` and the seed."""

    step: Int32[Array, ""]
    params: Any
    batch_stats: Any  # running statistics of BatchNorm; empty for networks without it
    opt_state: optax.OptState
    metrics: TrainMetrics  # sums since they were last written, so that a continued run writes the same figures


def create_train_state(
    model: nn.Module, optimizer: optax.GradientTransformation, *, image_size: int, channels: int, seed: int, mesh: Mesh
) -> TrainState:
    """The state at step 0, made on the devices of `mesh`."""

    def init(init_key: Array) -> TrainState:
        image = jnp.zeros((1, image_size, image_size, channels), jnp.float32)
        variables = model.init(init_key, image, train=False)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            metrics=TrainMetrics.empty(),
        )

    return jax.jit(init, out_shardings=sharding.replicated(mesh))(keys.key(seed, keys.Purpose.INIT))
