"""Write a trained model for other programs, load it as they do, and compare its logits with the model's.

    python -m patchnets.export MODEL --to=timm|npz|onnx|stablehlo [--output=DIR]

timm       config.json and model.safetensors, for timm.create_model("local-dir:DIR", pretrained=True) and transformers
npz        the names of the authors' checkpoints; MLP-Mixer and ViT
onnx       model.onnx, for any batch size; needs jax2onnx (make onnx)
stablehlo  a program of jax.export for CPU, CUDA and TPU and any batch size, which JAX loads for six months

The folder also gets model.json, export.json with the step of the checkpoint, and a README.md with preprocessing, the
figures of the run, and the code to load it. patchnets.load reads folders of timm and npz. If logits differ by more than
1e-4, or by more than 1e-4 of the largest, or probabilities by more than 1e-4 of the largest, nothing is kept and the
exit status is 1.
"""

import sys

from patchnets import runtime
from patchnets.runtime.cli import ArgumentParser, checkpoint, default_output, out_folder, path, run_cli
from patchnets.weights import FORMATS, INPUTS, OUTPUTS


def execute(arguments: list[str]) -> int:
    """Export as a command line says, print the folder and the comparison, and return the exit status."""
    parser = ArgumentParser("python -m patchnets.export", description=__doc__)
    parser.add_argument("model", metavar="MODEL", type=path, help="a run, an export, or others' weights")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format")
    parser.add_argument("--output", type=out_folder, metavar="DIR", help="default: MODEL/export/FORMAT")
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default="float",
        help="of onnx and stablehlo: normalized floats, or decoded images, which the program then normalizes",
    )
    parser.add_argument("--output_type", choices=OUTPUTS, default="logits", help="of onnx and stablehlo")
    parser.add_argument("--network", metavar="NAME", help="what others' weights are of, if they do not say it")
    parser.add_argument("--checkpoint", type=checkpoint, default="best", help="best, latest or a step")
    parser.add_argument("--verify", choices=("on", "off"), default="on", help="compare outputs (default: on)")
    settings = parser.parse_args(arguments)
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.inference.load import load

    model = load(settings.model, settings.checkpoint, settings.network)
    report = model.export(
        settings.output or default_output(settings.model, "export", settings.to),
        settings.to,
        inputs=settings.input,
        outputs=settings.output_type,
        verified=settings.verify == "on",
    )
    print(report)
    return 0


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    return run_cli(argv, execute, "patchnets.export")


if __name__ == "__main__":
    runtime.start_program("patchnets.export")
    sys.exit(main(sys.argv))
