"""Layers in NumPy, written from their definitions, for the forward passes that the networks are held against."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def parameters(model, height, width, channels=3, seed=0):
    """Random values for every parameter, head included."""
    image = jnp.zeros((1, height, width, channels))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))["params"]
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * generator.standard_normal(leaf.shape).astype(np.float32), shapes)


def patches(image, size, kernel, bias):
    """(patches, features): every square of `size` pixels, left to right and top to bottom, projected linearly."""
    rows, columns = image.shape[0] // size, image.shape[1] // size
    squares = [image[r * size : (r + 1) * size, c * size : (c + 1) * size] for r in range(rows) for c in range(columns)]
    return np.stack([np.tensordot(square, kernel, 3) for square in squares]) + bias


def norm(x, scale, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon) * scale + bias


def gelu(x, form):
    if form == "exact":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
