"""For which kind of device a program is compiled: that on which the choice of the faster of two equal forms rests."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def backend() -> str:
    """cpu, gpu or tpu: that of JAX's devices, unless a program is compiled for others (`target_backend`)."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def target_backend(name: str) -> Iterator[None]:
    """What is traced inside is for devices of this kind, which need not be there."""
    before = _target.set(name)
    try:
        yield
    finally:
        _target.reset(before)
