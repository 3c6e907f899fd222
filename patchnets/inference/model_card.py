"""README.md of an exported folder: a model card."""

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from patchnets import __version__
from patchnets.inference import metadata
from patchnets.inference.programs import PLATFORMS, input_shape
from patchnets.run.model_spec import ModelSpec
from patchnets.weights import folders
from patchnets.weights.timm import TimmNetwork

JAX_EXPORT_DAYS = 180  # JAX promises to load what its last six months exported
BEST_FIGURES = {
    "test_accuracy": "test accuracy",
    "test_top5_accuracy": "test top-5 accuracy",
    "test_loss": "test loss",
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
}  # of the best checkpoint
FIGURES = {
    **BEST_FIGURES,
    "epochs": "epochs",
    "best_step": "step of the best checkpoint",
    "params": "parameters",
}


def read_summary(source: str) -> dict[str, Any]:
    """Return the figures of a run from its summary.json; none if it has not ended, or `source` is no run."""
    if not source:
        return {}
    try:
        summary = json.loads((pathlib.Path(source).expanduser() / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


def write_readme(
    spec: ModelSpec,
    to: str,
    summary: Mapping[str, Any],
    check: str,
    *,
    step: int | None = None,
    network: TimmNetwork | None = None,
    inputs: str = "float",
    outputs: str = "logits",
    notes: str = "",
) -> str:
    """Return the README.md of an exported folder: a model card.

    Args:
      to: timm, npz, onnx or stablehlo.
      summary: of the run.
      check: the result of the comparison, or that there was none.
      step: of the checkpoint.
      network: of timm.
      inputs, outputs: of onnx and stablehlo.
      notes: anything else about this export.
    """
    front = [
        "library_name: timm",
        "tags: [image-classification, timm, patchnets]",
        "pipeline_tag: image-classification",
    ]
    head = ["---", *front, "---", ""] if to == "timm" else []
    use = {
        "timm": lambda: _use_timm(spec, network),
        "npz": lambda: _use_npz(),
        "onnx": lambda: _use_onnx(spec, inputs, outputs),
        "stablehlo": lambda: _use_jax_export(spec, inputs, outputs),
    }[to]()
    kind = f"A classifier of {len(spec.classes)} classes" if spec.classes else "A network without a head"
    sections = [
        f"# {spec.network} for {spec.dataset.get('name', 'images')}",
        f"{kind}, {'trained and ' * bool(spec.versions)}exported by patchnets {__version__}.",
        *_figures(spec, summary, step),
        "## Use",
        use,
        "## Preprocessing",
        _preprocessing(spec),
        "## Check",
        check,
        *([notes] if notes else []),
    ]
    return "\n".join(head) + "\n\n".join(sections) + "\n"


def _figures(spec: ModelSpec, summary: Mapping[str, Any], step: int | None) -> list[str]:
    """Return the table of figures, and a sentence if those of the run's best checkpoint are not of these weights."""
    of_best = step is not None and step == summary.get("best_step")
    figures = {key: label for key, label in FIGURES.items() if isinstance(summary.get(key), int | float)}
    sentences = []
    if not of_best and figures.keys() & BEST_FIGURES.keys():
        figures = {key: label for key, label in figures.items() if key not in BEST_FIGURES}
        these = "an unknown step" if step is None else f"step {step:,}"
        sentences = [f"The run's figures are of step {_cell(summary.get('best_step'))}; these weights are of {these}."]
    rows = [("network", spec.network), ("fields", ", ".join(f"{k}={v}" for k, v in spec.fields.items()))]
    if splits := spec.dataset.get("splits"):
        rows.append(("data", ", ".join(f"{role} {split}" for role, split in splits.items() if split)))
    rows += [("checkpoint", f"step {step:,}")] if step is not None else []
    rows += [(label, summary[key]) for key, label in figures.items()]
    versions = ", ".join(f"{name} {version}" for name, version in spec.versions.items())
    rows += [("trained with", versions)] if versions else []
    return ["\n".join(["| | |", "|-|-|", *(f"| {name} | {_cell(value)} |" for name, value in rows)]), *sentences]


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _use_timm(spec: ModelSpec, network: TimmNetwork | None) -> str:
    assert network is not None
    if network.entry_point:
        built = [
            "In this folder, with timm 1.0 or newer:",
            _python("import timm", "", 'network = timm.create_model("local-dir:.", pretrained=True).eval()'),
        ]
    else:
        built = [
            "timm has the class of this network and no name for its size, so that `create_model` cannot build it. In "
            "this folder, with timm 1.0 or newer:",
            _python(
                "import timm",
                "import torch",
                "from safetensors.torch import load_file",
                "",
                f"network = {network.constructor}",
                'network.load_state_dict(load_file("model.safetensors"))',
                "network.eval()",
            ),
        ]
    probabilities = "sigmoid()" if spec.loss == "sigmoid" else "softmax(-1)"
    lines = [
        "import json",
        "",
        *(["import numpy as np"] if spec.value_ranges is not None else []),
        "import timm",
        "import torch",
        f"from PIL import Image{', ImageOps' if spec.exif_orientation else ''}",
        "",
        'with open("config.json") as file:',
        "    config = json.load(file)",
        'settings = timm.data.resolve_data_config(pretrained_cfg=config["pretrained_cfg"])',
        "transform = timm.data.create_transform(**settings)",
        *_open_image(spec),
        "with torch.inference_mode():",
        f"    probabilities = network(transform(image)[None]).{probabilities}",
        'labels = config["label_names"]',
    ]
    sections = [*built, "An image as its input, which needs torchvision, and class names:", _python(*lines)]
    if spec.channels not in (1, 3):
        sections = [*built, f"Its input is a tensor (batch, {spec.channels}, height, width), preprocessed as below."]
    if spec.decoded_size * spec.crop_pct < spec.image_size - 1:
        sections.append(
            f"In training images were shrunk to {spec.decoded_size} x {spec.decoded_size} pixels first and enlarged to "
            f"{spec.image_size} x {spec.image_size} then. timm resizes once, so that its inputs are sharper than those "
            "of training, and its probabilities others than patchnets'."
        )
    return "\n\n".join(sections)


def _open_image(spec: ModelSpec) -> list[str]:
    """Return the code that opens photo.jpg with Pillow, by the rules of training (`patchnets.data.decode`)."""
    lines = ['image = Image.open("photo.jpg")']
    if spec.exif_orientation:
        lines.append("image = ImageOps.exif_transpose(image)")
    ranges = spec.value_ranges if spec.channels == 1 else None
    if ranges is not None:
        low, high = ranges[0]
        lines += [
            "if image.mode.startswith(('I', 'F')):  # more than 8 bits",
            f"    values = (np.asarray(image, np.float64) - {low}) * {1 / (high - low)}",
            "    image = Image.fromarray(np.clip(values, 0, 1).astype(np.float32))  # which torchvision does not scale",
        ]
    if spec.background != "none":
        lines += [
            'if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:',
            '    image = image.convert("RGBA")',
            f'    image = Image.alpha_composite(Image.new("RGBA", image.size, "{spec.background}"), image)',
        ]
    convert = f'image = image.convert("{"RGB" if spec.channels == 3 else "L"}")'
    return [*lines, *(['if image.mode != "F":', f"    {convert}"] if ranges else [convert])]


def _use_npz() -> str:
    return "\n\n".join(
        [
            f"{folders.NPZ} has the names and shapes of the authors' own checkpoints. In this folder:",
            _python("import patchnets", "", 'model = patchnets.load(".")', 'print(model.predict("photo.jpg"))'),
            "Class names and preprocessing are in model.json.",
        ]
    )


def _use_onnx(spec: ModelSpec, inputs: str, outputs: str) -> str:
    return "\n\n".join(
        [
            _program_inputs(spec, inputs, outputs),
            _python(
                "import json",
                "",
                "import onnxruntime",
                "",
                f'session = onnxruntime.InferenceSession("{folders.ONNX}")',
                f'{outputs} = session.run(None, {{"images": images}})[0]',
                'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
            ),
        ]
    )


def _use_jax_export(spec: ModelSpec, inputs: str, outputs: str) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    until = today + datetime.timedelta(days=JAX_EXPORT_DAYS)
    return "\n\n".join(
        [
            _program_inputs(spec, inputs, outputs),
            _python(
                "import pathlib",
                "",
                "from jax import export",
                "",
                f'program = export.deserialize(bytearray(pathlib.Path("{folders.JAX_EXPORT}").read_bytes()))',
                f"{outputs} = program.call(images)",
            ),
            f"It runs on {', '.join(PLATFORMS)}, with StableHLO inside. JAX promises to load it for six months: "
            f"exported on {today}, it loads until {until}. Keep the work directory, or an export for timm or npz, and "
            "export anew by then.",
        ]
    )


def _program_inputs(spec: ModelSpec, inputs: str, outputs: str) -> str:
    height, width, channels = input_shape(spec, inputs)
    levels = f"{inputs}, levels from 0 to {2**spec.level_bits - 1:,}; normalization is inside"
    kind = "float32, normalized as below" if inputs == "float" else levels
    return (
        f"`images`: (batch, {height}, {width}, {channels}), any batch, {kind}. "
        f"`{outputs}`: (batch, {len(spec.classes)}), float32, in the order of `classes` in model.json. "
        "It computes in float32."
    )


def _preprocessing(spec: ModelSpec) -> str:
    values = metadata.preprocessing(spec)
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    rules = ["turned as its EXIF header says"] if spec.exif_orientation else []
    if spec.background == "none":
        rules.append("stripped of transparency")
    else:
        rules.append(f"laid on {spec.background} where it is transparent")
    if spec.value_ranges is not None:
        shown = ", ".join(f"{low:g} to {high:g}" for low, high in spec.value_ranges)
        each = "of its channels " if len(spec.value_ranges) > 1 else ""
        rounded = "whole ones" if spec.level_bits == 8 else "in steps of 1/257"
        rules.append(
            f"scaled, if it has more than 8 bits, from values {each}from {shown} to levels 0 to 255 ({rounded})"
        )
    size = spec.decoded_size
    resized = f"(Pillow, {spec.interpolation}, antialiased)"
    steps = f"Step by step: an image is {' and '.join(rules)}; "
    if spec.shorter_side is None:
        square = f"its center square, {spec.decoded_crop_pct:.4g} of the shorter side,"
        steps += f"{square} is resized to {size} x {size} {resized}"
    else:
        steps += f"its shorter side is resized to {spec.shorter_side} {resized} and the center {size} x {size} cut"
    if spec.crop_pct != 1 or spec.decoded_size != spec.image_size:
        steps += (
            f"; {spec.crop_pct:.4g} of that square's side is kept and resized to {spec.image_size} x {spec.image_size} "
            "(bilinear, antialiased)"
        )
    return (
        f"| | |\n|-|-|\n{rows}\n\n{steps}; then (level / 255 - mean) / std for each channel. "
        "model.json has the same values, mean and std there of levels from 0 to 255."
    )
