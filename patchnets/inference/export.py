"""Write a trained model as others read it: timm, the authors' .npz, ONNX, jax.export."""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt

from patchnets.errors import RunError, UserError, first_line
from patchnets.inference import metadata, model_card, programs, verify
from patchnets.inference.verify import Comparison
from patchnets.run.model_spec import FILE_NAME, ModelSpec
from patchnets.runtime.files import refuse_url, removed_afterwards, write_atomically
from patchnets.weights import FORMATS, INPUTS, OUTPUTS, files, folders, official_npz, timm

UNVERIFIED = "Nothing was compared: it was exported with --verify=off."


class ExportedModel(Protocol):
    """What is used of a `patchnets.inference.model.Model`."""

    spec: ModelSpec
    variables: Any
    source: str
    step: int | None

    def logits_of_decoded(
        self, decoded: UInt[np.ndarray, "images size size channels"]
    ) -> Float32[np.ndarray, "images classes"]: ...

    def to_probabilities(
        self, logits: Float32[np.ndarray, "images classes"]
    ) -> Float32[np.ndarray, "images classes"]: ...

    def with_variables(self, variables: Any) -> "ExportedModel": ...


@dataclasses.dataclass(frozen=True)
class Report:
    """An exported folder: its files, the comparison with the model, and what else there is to say."""

    directory: pathlib.Path
    files: tuple[str, ...]
    comparison: Comparison | None
    notes: str = ""

    def __str__(self) -> str:
        check = UNVERIFIED if self.comparison is None else f"checked by {self.comparison}"
        return "\n".join(filter(None, [f"{self.directory}: {', '.join(self.files)}", check, self.notes]))


def export(
    model: ExportedModel,
    directory: str | os.PathLike[str],
    to: str,
    *,
    inputs: str = "float",
    outputs: str = "logits",
    verified: bool = True,
    dtype: str = "float32",
) -> Report:
    """Write a folder, compare what was written with the model, and only then give it its name.

    Args:
      model: its network computes in float32.
      directory: which must not exist, or be empty.
      to: among FORMATS.
      inputs: of onnx and stablehlo: float, normalized inputs; or the type of decoded images, uint8 or uint16.
      outputs: of onnx and stablehlo: logits or probabilities.
      verified: whether to compare.
      dtype: in which the network computed when it was trained.

    Raises:
      UserError: the network cannot be written so, or something that is needed is not installed.
      RunError: what was written gives other outputs than the model; nothing is left of it.
    """
    check_options(to, inputs, outputs)
    if inputs not in ("float", kind := model.spec.rules.dtype.name):
        raise UserError(f"--input={inputs}: images of this model are decoded to {kind}; use --input={kind}, or float")
    refuse_url(directory)
    target = pathlib.Path(directory).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; remove it, or name another")
    job = _Export(model, inputs, outputs, verified, dtype)
    write = {"timm": job.to_timm, "npz": job.to_npz, "onnx": job.to_onnx, "stablehlo": job.to_stablehlo}[to]
    with _new_folders(target.parent):
        name = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-")
        with removed_afterwards(pathlib.Path(name)) as partial:
            write_atomically(partial / FILE_NAME, json.dumps(model.spec.to_json(), indent=2) + "\n")
            write_atomically(partial / folders.EXPORT, json.dumps({"format": to, "step": model.step}) + "\n")
            comparison, notes = write(partial)
            partial.chmod(0o755)
            if target.exists():
                target.rmdir()
            partial.rename(target)
    notes = "\n".join(filter(None, [notes, job.dtype_note]))
    return Report(target, tuple(sorted(path.name for path in target.iterdir())), comparison, notes)


@contextlib.contextmanager
def _new_folders(directory: pathlib.Path) -> Iterator[None]:
    """Make a folder and those above it; remove the new ones if the block raises, as far as they are empty."""
    new = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # one in which something else lies by now
            for folder in new:
                folder.rmdir()
        raise


def check_options(to: str, inputs: str, outputs: str) -> None:
    """Raise UserError for options that do not exist or do not go together."""
    for name, value, known in (
        ("to", to, FORMATS),
        ("input", inputs, INPUTS),
        ("output_type", outputs, OUTPUTS),
    ):
        if value not in known:
            raise UserError(f"--{name}={value} is unknown; expected {', '.join(known)}")
    if to in ("timm", "npz") and (inputs, outputs) != ("float", "logits"):
        raise UserError(
            f"--to={to} writes weights, whose code takes float inputs and returns logits; leave out --input and "
            "--output_type, or use --to=onnx or --to=stablehlo"
        )


class _Export:
    """Writes one format into a folder, and compares. Every `to_` returns the comparison, None for none, and notes."""

    def __init__(self, model: ExportedModel, inputs: str, outputs: str, verified: bool, dtype: str):
        self.model, self.inputs, self.outputs, self.verified = model, inputs, outputs, verified
        self.spec, self.network = model.spec, model.spec.create_model()
        self.dtype_note = "" if dtype == "float32" else f"Computed in float32; the run computed in {dtype}."

    def to_timm(self, folder: pathlib.Path) -> tuple[Comparison | None, str]:
        described = timm.describe(self.spec)
        entries = timm.to_entries(self.network, self.model.variables, self.spec.image_size)
        files.write_safetensors(folder / folders.SAFETENSORS, entries)
        config = metadata.timm_config(self.spec, described)
        write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
        comparison = None
        if self.verified:
            again = self.read_again(folder)
            try:
                run, by = verify.run_timm(folder, described)
            except ImportError as error:
                by = f"patchnets reading it again (timm cannot be imported: {first_line(error, 80)})"
                comparison = self.compare(again.logits_of_decoded, by, decoded=True)
            else:
                comparison = self.compare(run, by)
        notes = "" if described.entry_point else "timm has no name for this size; README.md has the code that loads it."
        self.write_readme(folder, "timm", comparison, network=described)
        return comparison, notes

    def to_npz(self, folder: pathlib.Path) -> tuple[Comparison | None, str]:
        owner = official_npz.project(self.network)
        files.write_npz(folder / folders.NPZ, official_npz.to_arrays(self.network, self.model.variables))
        comparison = None
        if self.verified:
            again = self.read_again(folder)
            comparison = self.compare(again.logits_of_decoded, "patchnets reading it again", decoded=True)
        notes = f"Names and shapes are those of google-research/{owner}."
        if self.spec.fields["gelu"] != "tanh":
            notes += f" This network has gelu={self.spec.fields['gelu']}; that project's code computes tanh."
        if (epsilon := self.spec.fields.get("norm_epsilon", 1e-6)) != 1e-6:
            notes += f" This network has norm_epsilon={epsilon}; that project's code has 1e-6."
        self.write_readme(folder, "npz", comparison, notes=notes)
        return comparison, notes

    def to_onnx(self, folder: pathlib.Path) -> tuple[Comparison | None, str]:
        programs.check_size(self.model.variables)
        values = metadata.program_metadata(self.spec, self.inputs, self.outputs)
        program = programs.to_onnx(self.spec, self.model.variables, self.inputs, self.outputs, values)
        write_atomically(folder / folders.ONNX, program)
        comparison = None
        if self.verified:
            comparison = self.compare(*verify.run_onnx(folder / folders.ONNX), decoded=self.inputs != "float")
            if self.outputs == "probabilities":
                logits = programs.to_onnx(self.spec, self.model.variables, self.inputs, "logits", values)
                comparison = self.compare_logits(
                    comparison, verify.run_onnx, folder / f".logits-{folders.ONNX}", logits
                )
        self.write_readme(folder, "onnx", comparison)
        return comparison, ""

    def to_stablehlo(self, folder: pathlib.Path) -> tuple[Comparison | None, str]:
        programs.check_size(self.model.variables)
        program = programs.to_jax_export(self.spec, self.model.variables, self.inputs, self.outputs)
        write_atomically(folder / folders.JAX_EXPORT, program)
        comparison = None
        if self.verified:
            run, by = verify.run_jax_export(folder / folders.JAX_EXPORT)
            comparison = self.compare(run, by, decoded=self.inputs != "float")
            if self.outputs == "probabilities":
                logits = programs.to_jax_export(self.spec, self.model.variables, self.inputs, "logits")
                path = folder / f".logits-{folders.JAX_EXPORT}"
                comparison = self.compare_logits(comparison, verify.run_jax_export, path, logits)
        self.write_readme(folder, "stablehlo", comparison)
        return comparison, "JAX loads it for six months from today (README.md)."

    def read_again(self, folder: pathlib.Path) -> ExportedModel:
        """Return the model with the weights of the folder. Raise RunError if they are others, by a bit."""
        variables = folders.read_variables(folder, self.spec)
        if not verify.same_variables(variables, self.model.variables):
            raise RunError("the weights that were written are others when read again; nothing is kept of the export")
        return self.model.with_variables(variables)

    def compare_logits(
        self,
        comparison: Comparison,
        load: Callable[[pathlib.Path], tuple[verify.Run, str]],
        path: pathlib.Path,
        program: bytes,
    ) -> Comparison:
        """Return the comparison of a program of probabilities with that of the same program's logits.

        Probabilities near 0 or 1 hide logits that differ. `path` is where to keep the second program meanwhile.
        """
        write_atomically(path, program)
        try:
            logits = self.compare(*load(path), decoded=self.inputs != "float", outputs="logits")
        finally:
            path.unlink()
        return dataclasses.replace(comparison, logits=logits)

    def compare(self, run: verify.Run, by: str, decoded: bool = False, outputs: str = "") -> Comparison:
        """Return the outputs of `run`, of decoded images or else of inputs of the network, beside the model's.

        Raises:
          RunError: they differ by more than the tolerance.
        """
        outputs = outputs or self.outputs
        images, description = verify.verification_images(self.model.source, self.spec)
        logits = verify.in_batches(self.model.logits_of_decoded, images)
        expected = logits if outputs == "logits" else self.model.to_probabilities(logits)
        if not decoded:
            images = verify.in_batches(lambda part: np.asarray(self.spec.preprocess(jnp.asarray(part))), images)
        comparison = verify.compare(expected, verify.in_batches(run, images), by, description, outputs)
        if not comparison.holds:
            raise RunError(f"the export does not agree with the model, and nothing is kept of it: {comparison}")
        return comparison

    def write_readme(
        self, folder: pathlib.Path, to: str, comparison: Comparison | None, notes: str = "", **details: Any
    ) -> None:
        text = model_card.write_readme(
            self.spec,
            to,
            model_card.read_summary(self.model.source),
            UNVERIFIED if comparison is None else f"Compared with the model by {comparison}.",
            step=self.model.step,
            inputs=self.inputs,
            outputs=self.outputs,
            notes="\n\n".join(filter(None, [notes, self.dtype_note])),
            **details,
        )
        write_atomically(folder / "README.md", text)
