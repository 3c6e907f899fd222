"""The order of the examples in an epoch, the same for on-device and streaming loaders.

Computed by NumPy, so that worker processes need no JAX backend. It equals
`jax.random.permutation(prng.key(seed, RngStream.ORDER, epoch), num_examples)` in JAX 0.10 and 0.11: the sort order of
random numbers from Threefry-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011,
https://doi.org/10.1145/2063384.2063405). Unlike JAX's, it will not change.
"""

import functools
import math

import numpy as np
from jaxtyping import Int32, UInt32

from patchnets.prng import RngStream

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA
BLOCK_SIZE = 2**15  # numbers at a time, to stay in a core's cache

Words = tuple[UInt32[np.ndarray, " n"], UInt32[np.ndarray, " n"]]


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_examples: int) -> Int32[np.ndarray, " examples"]:
    """Return the positions of all examples in the order of an epoch; read-only.

    A pure function of its arguments. It takes 0.2 s for 1.3 million examples, once per epoch.
    """
    key = _fold_in(_fold_in((0, seed), RngStream.ORDER), epoch)
    order = np.arange(num_examples, dtype=np.int32)
    # Enough rounds that ties among the random numbers do not bias the order.
    for _ in range(math.ceil(3 * math.log(num_examples) / math.log(2**32 - 1))):
        key, subkey = _fold_in(key, 0), _fold_in(key, 1)
        # Sort the positions by random numbers; ties keep their order.
        pairs = _random_bits(subkey, num_examples).astype(np.uint64) << np.uint64(32)
        pairs |= np.arange(num_examples, dtype=np.uint64)
        pairs.sort()
        order = order[(pairs & np.uint64(2**32 - 1)).astype(np.int64)]
    order.flags.writeable = False
    return order


def _random_bits(key: tuple[int, int], count: int) -> UInt32[np.ndarray, " count"]:
    """Compute `jax.random.bits(key, (count,))` for a count below 2**32."""
    bits = np.empty(count, np.uint32)
    for low in range(0, count, BLOCK_SIZE):
        counter = np.arange(low, min(low + BLOCK_SIZE, count), dtype=np.uint32)
        np.bitwise_xor(*_threefry2x32(key, (np.zeros_like(counter), counter)), out=bits[low : low + BLOCK_SIZE])
    return bits


def _fold_in(key: tuple[int, int], number: int) -> tuple[int, int]:
    """Compute `jax.random.fold_in(key, number)`; 0 and 1 give the two keys of `jax.random.split(key)`."""
    high, low = _threefry2x32(key, (np.zeros(1, np.uint32), np.full(1, number, np.uint32)))
    return int(high[0]), int(low[0])


def _threefry2x32(key: tuple[int, int], counter: Words) -> Words:
    """Compute Threefry-2x32 with 20 rounds, of many counters under one key."""
    schedule = [np.uint32(word) for word in (*key, key[0] ^ key[1] ^ PARITY)]
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    shifted = np.empty_like(y)
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            x += y
            np.right_shift(y, np.uint32(32 - bits), out=shifted)
            y <<= np.uint32(bits)
            y |= shifted
            y ^= x
        x += schedule[(group + 1) % 3]
        y += np.uint32((int(schedule[(group + 2) % 3]) + group + 1) % 2**32)
    return x, y
