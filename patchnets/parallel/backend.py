"""The backend being compiled for. Layers use it to choose the faster of two equivalent implementations."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


def backend() -> str:
    """Return "cpu", "gpu" or "tpu": the backend set by `target_backend`, or else JAX's default backend."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def target_backend(name: str) -> Iterator[None]:
    """Trace for backend `name` within the context. The machine need not have such devices."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)
