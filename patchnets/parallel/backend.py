"""The backend being compiled for. Layers use it to choose the faster of two equivalent implementations."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from patchnets.errors import UserError, first_line

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


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


def check_jax_settings() -> None:
    """Raise UserError, in one line, for settings of JAX with which nothing here can run. Looks for the devices."""
    if jax.config.values["jax_enable_x64"]:
        raise UserError("JAX_ENABLE_X64 is set, but training state is counted in 32 bits; unset it")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.values["jax_platforms"]
        if not platforms:
            raise
        reason = first_line(error, 160) if str(error) else "it is not there"
        raise UserError(
            f"JAX_PLATFORMS={platforms}: JAX cannot use that ({reason}); unset it, or install JAX for it "
            "(jax[cuda13], jax[tpu])"
        ) from error
