"""Show a trained network on a page in the browser.

    python -m patchnets.demo MODEL [--port=7860] [--host=127.0.0.1] [--checkpoint=best]

MODEL is a work directory, an export for timm or npz, or weights that others trained (docs/weights.md). Whoever opens
the page drops an image on it and sees its most probable classes, the image as the network gets it, and what the
prediction rests on. The page is served to this machine only (--host=0.0.0.0: to every one that reaches it), and loads
nothing from elsewhere. It needs Gradio: pip install 'patchnets[demo]'.
"""

import argparse
import functools
import os
import socket
import sys

from patchnets import runtime
from patchnets.demo import OFFLINE
from patchnets.errors import UserError, first_line
from patchnets.runtime.cli import ArgumentParser, checkpoint, path, positive_int, run_cli
from patchnets.runtime.disconnect import open_closed_streams

PROGRAM = "patchnets.demo"


def parse_args(arguments: list[str]) -> argparse.Namespace:
    """Return the options. Raise UserError for what is wrong with them."""
    parser = ArgumentParser(f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("model", metavar="MODEL", type=path, help="a run, an export, or others' weights")
    parser.add_argument(
        "--port", type=functools.partial(positive_int, limit=65_535), default=7860, help="default: 7860"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--network", metavar="NAME", help="what others' weights are of, if they do not say it")
    parser.add_argument(
        "--checkpoint", type=checkpoint, default="best", help="best, latest or a step (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def execute(arguments: list[str]) -> int:
    """Serve the page until it is interrupted; return the exit status."""
    options = parse_args(arguments)
    os.environ.update(OFFLINE)
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the page needs Gradio ({error}); pip install 'patchnets[demo]'") from error
    del gradio
    check_address(options.host, options.port)
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.demo import page
    from patchnets.inference.load import load

    model = load(options.model, options.checkpoint, options.network)
    model.require_classes()
    page.warm_up(model)
    blocks = page.build(model)
    try:
        page.serve(blocks, options.host, options.port, prevent_thread_lock=True)
    except OSError as error:
        raise _refusal(options.host, options.port, error) from error
    print(f"http://{options.host}:{options.port}  (Ctrl-C ends it)", flush=True)
    blocks.block_thread()
    return 0


def check_address(host: str, port: int) -> None:
    """Listen at an address for a moment.

    Raises:
      UserError: the port is in use, or the address is none of this machine.
    """
    try:
        (family, *_), *_ = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        socket.create_server((host.strip("[]"), port), family=family).close()
    except OSError as error:
        raise _refusal(host, port, error) from error


def _refusal(host: str, port: int, error: OSError) -> UserError:
    reason = (error.strerror or first_line(error)).split(" (while ")[0]  # the address follows
    return UserError(f"cannot listen at {host}:{port} ({reason}); choose another --port or --host")


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    return run_cli(argv, execute, PROGRAM)


if __name__ == "__main__":
    open_closed_streams()
    runtime.reexec_with_huge_pages()
    sys.exit(main(sys.argv))
