"""The page: an image goes in; its classes, the image as the network gets it, and the explanation come out (Gradio)."""

import functools
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchnets.errors import RunError, first_line
from patchnets.inference import images as images_lib
from patchnets.inference import overlay
from patchnets.inference.model import Model, top_classes
from patchnets.runtime.format import printable

TOPK = 5
MAX_FILE_SIZE = "20mb"
# Every ten minutes, files are deleted that were dropped on the page or drawn for it more than an hour before.
DELETE_CACHE = (600, 3600)  # in seconds
FONTS = ("system-ui", "sans-serif")  # of the browser's machine
# The browser itself refuses whatever a release of Gradio would load from elsewhere: scripts, fonts, pictures.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
    )
)


class ContentSecurityPolicy:
    """ASGI middleware that adds POLICY to every response."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def classify(model: Model, path: str) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """Return {class: probability} of the most probable ones, the image as the network gets it, and its explanation.

    Raises:
      RunError: the file is no image.
    """
    decoded = images_lib.decode_one(path, model.spec)[None]
    logits = model.logits_of_decoded(decoded)
    (row,), (heat,) = model.to_probabilities(logits), model.explain_decoded(decoded, logits.argmax(axis=1))
    (image,) = model.displayed(decoded)
    classes = {printable(model.classes[i]): float(row[i]) for i in top_classes(logits[0], TOPK)}
    return classes, overlay.enlarge(image), overlay.blend(image, heat)


def respond(model: Model, path: str | None) -> tuple[Any, ...]:
    """Return what the page shows of a file: its classes and pictures, or one line that says why there are none."""
    if path is None:
        return None, None, None, gr.update(visible=False)
    try:
        return *classify(model, path), gr.update(visible=False)
    except RunError as error:
        reason = str(error).removeprefix(path).removesuffix("; repair or remove it").strip()
    except Exception as error:  # whoever looks at the page can do nothing with a traceback
        reason = f"cannot be classified ({type(error).__name__}: {first_line(error)})"
    return None, None, None, gr.update(value=f"This file {printable(reason)}.", visible=True)


def build(model: Model) -> gr.Blocks:
    """Return the page of a model."""
    spec = model.spec
    with gr.Blocks(title=f"patchnets: {spec.network}", analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        side = spec.image_size
        gr.Markdown(f"# {spec.network}\n{len(model.classes):,} classes, images of {side} x {side} pixels")
        with gr.Row():
            # The file itself, so that it is decoded as in training and not by Gradio.
            file = gr.File(label="Image", file_count="single", type="filepath", height=160)
            label = gr.Label(label="Most probable classes", num_top_classes=TOPK)
        message = gr.Textbox(show_label=False, container=False, interactive=False, visible=False)
        with gr.Row():
            plain, heat = _picture("As the network gets it"), _picture("What the prediction rests on")
        shown = [label, plain, heat, message]
        file.change(functools.partial(respond, model), file, shown, api_name="classify")
    return page


def _picture(title: str) -> gr.Image:
    """Return a picture below its title, which as a label would cover a part of it. It cannot be shared elsewhere."""
    with gr.Column():
        gr.Markdown(f"**{title}**")
        return gr.Image(label=title, show_label=False, interactive=False, format="png", buttons=["download"])


def warm_up(model: Model) -> None:
    """Compile what the page needs, so that nobody waits for it."""
    size, spec = model.spec.decoded_size, model.spec
    decoded = np.zeros((1, size, size, spec.channels), spec.rules.dtype)
    model.explain_decoded(decoded, model.logits_of_decoded(decoded).argmax(axis=1))
    model.displayed(decoded)


def serve(page: gr.Blocks, host: str, port: int | None, **options: Any) -> Any:
    """Serve a page at an address, until the process is interrupted unless `options` of `launch` say otherwise."""
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        theme=gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace")),
        footer_links=[],
        run_history=False,
        max_file_size=MAX_FILE_SIZE,
        app_kwargs={"middleware": [Middleware(ContentSecurityPolicy)]},
        **options,
    )
