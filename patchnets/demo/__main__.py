"""Show a trained network on a page in the browser.

    python -m patchnets.demo MODEL [--port=7860] [--host=127.0.0.1] [--checkpoint=best]

MODEL is a work directory. Whoever opens the page drops an image on it and sees its most probable classes, the image as
the network gets it, and what the prediction rests on. The page is served to this machine only (--host=0.0.0.0: to every
one that reaches it), and loads nothing from elsewhere. It needs Gradio: pip install 'patchnets[demo]'.
"""

import argparse
import functools
import os
import sys

from patchnets import runtime
from patchnets.demo import OFFLINE
from patchnets.errors import UserError
from patchnets.runtime.cli import ArgumentParser, checkpoint, path, positive_int, run_cli

PROGRAM = "patchnets.demo"


def parse_args(arguments: list[str]) -> argparse.Namespace:
    """Return the options. Raise UserError for what is wrong with them."""
    parser = ArgumentParser(f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("model", metavar="MODEL", type=path, help="the work directory of a run")
    parser.add_argument(
        "--port", type=functools.partial(positive_int, limit=65_535), default=7860, help="default: 7860"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
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
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.demo import page
    from patchnets.inference.model import load

    model = load(options.model, options.checkpoint)
    page.warm_up(model)
    print(f"http://{options.host}:{options.port}  (Ctrl-C ends it)", flush=True)
    page.serve(page.build(model), options.host, options.port)
    return 0


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    return run_cli(argv, execute, PROGRAM)


if __name__ == "__main__":
    runtime.reexec_with_huge_pages()
    sys.exit(main(sys.argv))
