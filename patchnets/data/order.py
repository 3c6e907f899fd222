"""The order in which an epoch visits its examples, the same for images on the devices and for those that are streamed.

It is the order of `jax.random.permutation` with a Threefry key (Salmon et al., SC 2011, "Parallel random numbers:
as easy as 1, 2, 3"), computed with NumPy: worker processes need no JAX, and no release of JAX can change it.
"""

import functools
import math

import numpy as np
from jaxtyping import Int32, UInt32

from patchnets.prng import RngStream

Key = tuple[np.uint32, np.uint32]
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of Threefry-2x32, in turn
PARITY = np.uint32(0x1BD11BDA)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_examples: int) -> Int32[np.ndarray, " examples"]:
    """Returns the positions of all examples in the order in which an epoch visits them; read-only.

    A pure function of its arguments: that of `jax.random.permutation(prng.key(seed, RngStream.ORDER, epoch), ...)`.
    """
    order = np.arange(num_examples, dtype=np.int32)
    key = _fold_in(_fold_in((np.uint32(0), np.uint32(seed)), RngStream.ORDER), epoch)
    # Sorting by 32 random bits leaves ties; as many rounds as make them unlikely.
    for _ in range(math.ceil(3 * math.log(max(1, num_examples)) / math.log(2**32 - 1))):
        first, second = _threefry(key, 2)
        key, bits_key = (first[0], second[0]), (first[1], second[1])
        high, low = _threefry(bits_key, num_examples)
        order = order[np.argsort(high ^ low, kind="stable")]
    order.flags.writeable = False
    return order


def _fold_in(key: Key, counter: int) -> Key:
    first, second = _threefry(key, 1, start=counter)
    return first[0], second[0]


def _threefry(
    key: Key, count: int, start: int = 0
) -> tuple[UInt32[np.ndarray, " count"], UInt32[np.ndarray, " count"]]:
    """Returns the two words that Threefry-2x32, in 20 rounds, makes of each counter from `start` on."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**32 is meant
        first = np.full(count, keys[0], np.uint32)
        second = np.arange(start, start + count, dtype=np.uint32) + keys[1]
        for group in range(5):
            for rotation in ROTATIONS[group % 2]:
                first += second
                second = (second << np.uint32(rotation)) | (second >> np.uint32(32 - rotation))
                second ^= first
            first += keys[(group + 1) % 3]
            second += keys[(group + 2) % 3] + np.uint32(group + 1)
    return first, second
