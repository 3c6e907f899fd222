"""The order in which an epoch visits its examples, the same for images on the devices and for those that are streamed.

Imports neither JAX nor a data source, so that worker processes and notebooks can use it alone.
"""

import functools

import numpy as np
from jaxtyping import Int32

from patchnets.prng import RngStream


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_examples: int) -> Int32[np.ndarray, " examples"]:
    """Returns the positions of all examples in the order in which an epoch visits them; read-only.

    A pure function of its arguments. For 1.3 million examples it takes 0.13 s, once an epoch, and 5 MB.
    """
    order = np.arange(num_examples, dtype=np.int32)
    generator = np.random.RandomState([RngStream.ORDER, seed, epoch])  # its stream is frozen by NumPy (NEP 19)
    generator.shuffle(order)
    order.flags.writeable = False
    return order
