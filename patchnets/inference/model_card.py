"""What an exported folder says about itself: config.json for timm, metadata of ONNX, and README.md."""

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from patchnets import __version__
from patchnets.inference.programs import PLATFORMS, input_shape
from patchnets.run.model_spec import ModelSpec
from patchnets.weights import folders
from patchnets.weights.timm import TimmNetwork

JAX_EXPORT_DAYS = 180  # JAX promises to load what its last six months exported
FIGURES = {
    "test_accuracy": "test accuracy",
    "test_top5_accuracy": "test top-5 accuracy",
    "test_loss": "test loss",
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "epochs": "epochs",
    "best_step": "step of the best checkpoint",
    "params": "parameters",
}


def preprocessing(spec: ModelSpec) -> dict[str, Any]:
    """Return how an image becomes an input of the network, in the terms of timm and torchvision.

    Keys: image_size (pixels a side), channels, mean and std (per channel, of levels from 0 to 1), crop_pct (share of
    the shorter side in the center square that is kept), interpolation. crop_pct is the product of the crop while
    decoding and that on the device; interpolation is that of the step that changes the size.
    """
    resized_on_device = abs(spec.decoded_size * spec.crop_pct - spec.image_size) >= 1
    return dict(
        image_size=spec.image_size,
        channels=spec.channels,
        mean=[level / 255 for level in spec.mean],
        std=[level / 255 for level in spec.std],
        crop_pct=spec.decoded_crop_pct * spec.crop_pct,
        interpolation="bilinear" if resized_on_device else spec.interpolation,
    )


def timm_config(spec: ModelSpec, network: TimmNetwork) -> dict[str, Any]:
    """Return the config.json that `timm.create_model("local-dir:...")` and transformers read."""
    values = preprocessing(spec)
    size = [spec.channels, spec.image_size, spec.image_size]
    return dict(
        architecture=network.entry_point or network.class_name,  # create_model refuses the name of a class
        num_classes=len(spec.classes),
        num_features=spec.fields["hidden_dim"],
        global_pool=network.pool,
        label_names=list(spec.classes),
        model_args=network.entry_args if network.entry_point else network.class_args,
        pretrained_cfg=dict(
            tag="patchnets",
            custom_load=False,
            input_size=size,
            fixed_input_size="img_size" in network.class_args,
            interpolation=values["interpolation"],
            crop_pct=values["crop_pct"],
            crop_mode="center",
            mean=values["mean"],
            std=values["std"],
            num_classes=len(spec.classes),
            pool_size=None,
            first_conv=network.first_conv,
            classifier="head",
        ),
    )


def program_metadata(spec: ModelSpec, inputs: str, outputs: str) -> dict[str, Any]:
    """Return what a program needs to be used: its inputs and outputs, class names and preprocessing."""
    return dict(
        network=spec.network,
        classes=list(spec.classes),
        input=inputs,
        input_layout="NHWC",
        input_shape=["batch", *input_shape(spec, inputs)],
        output=outputs,
        loss=spec.loss,
        **preprocessing(spec),
        patchnets=__version__,
    )


def read_summary(source: str) -> dict[str, Any]:
    """Return the figures of a run from its summary.json; none if it has not ended, or `source` is no run."""
    if not source:
        return {}
    try:
        summary = json.loads((pathlib.Path(source).expanduser() / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def write_readme(
    spec: ModelSpec,
    to: str,
    summary: Mapping[str, Any],
    check: str,
    *,
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
    sections = [
        f"# {spec.network} for {spec.dataset.get('name', 'images')}",
        f"A classifier of {len(spec.classes)} classes, trained and exported by patchnets {__version__}.",
        _figures(spec, summary),
        "## Use",
        use,
        "## Preprocessing",
        _preprocessing(spec),
        "## Check",
        check,
        *([notes] if notes else []),
    ]
    return "\n".join(head) + "\n\n".join(sections) + "\n"


def _figures(spec: ModelSpec, summary: Mapping[str, Any]) -> str:
    rows = [("network", spec.network), ("fields", ", ".join(f"{k}={v}" for k, v in spec.fields.items()))]
    if splits := spec.dataset.get("splits"):
        rows.append(("data", ", ".join(f"{role} {split}" for role, split in splits.items() if split)))
    rows += [(label, summary[key]) for key, label in FIGURES.items() if isinstance(summary.get(key), int | float)]
    versions = ", ".join(f"{name} {version}" for name, version in spec.versions.items())
    rows += [("trained with", versions)] if versions else []
    return "\n".join(["| | |", "|-|-|", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _use_timm(spec: ModelSpec, network: TimmNetwork | None) -> str:
    assert network is not None
    mode, probabilities = "RGB" if spec.channels == 3 else "L", "sigmoid()" if spec.loss == "sigmoid" else "softmax(-1)"
    if network.entry_point:
        return "\n\n".join(
            [
                "In this folder, with timm 1.0 or newer:",
                _python("import timm", "", 'network = timm.create_model("local-dir:.", pretrained=True).eval()'),
                "Its inputs, which need torchvision, and class names:",
                _python(
                    "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
                    f'image = Image.open("photo.jpg").convert("{mode}")',
                    f"probabilities = network(transform(image)[None]).{probabilities}",
                    'labels = network.pretrained_cfg["label_names"]',
                ),
            ]
        )
    return "\n\n".join(
        [
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
            "Class names and preprocessing are in config.json, in timm's terms.",
        ]
    )


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
    kind = (
        "float32, normalized as below" if inputs == "float" else "uint8, levels from 0 to 255; normalization is inside"
    )
    return (
        f"`images`: (batch, {height}, {width}, {channels}), any batch, {kind}. "
        f"`{outputs}`: (batch, {len(spec.classes)}), float32, in the order of `classes` in model.json. "
        "It computes in float32."
    )


def _preprocessing(spec: ModelSpec) -> str:
    values = preprocessing(spec)
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    steps = (
        f"Step by step: the center square, {spec.decoded_crop_pct:.4g} of the shorter side, is resized to "
        f"{spec.decoded_size} x {spec.decoded_size} (Pillow, {spec.interpolation}, antialiased)"
    )
    if spec.crop_pct != 1 or spec.decoded_size != spec.image_size:
        steps += (
            f"; {spec.crop_pct:.4g} of that square's side is kept and resized to {spec.image_size} x {spec.image_size} "
            "(bilinear, antialiased)"
        )
    return (
        f"| | |\n|-|-|\n{rows}\n\n{steps}; then (level / 255 - mean) / std for each channel. "
        "model.json has the same values, mean and std there of levels from 0 to 255."
    )
