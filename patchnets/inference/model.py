"""A trained network with its classes and preprocessing."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, UInt, UInt8

from patchnets.errors import RunError, UserError
from patchnets.inference import explain, export
from patchnets.inference import images as images_lib
from patchnets.models.intermediates import capture_intermediates
from patchnets.parallel import cpu, sharding
from patchnets.parallel import mesh as mesh_lib
from patchnets.run.model_spec import ModelSpec
from patchnets.step.task import wrap_logits_fn

if TYPE_CHECKING:
    from patchnets.inference.evaluation import Evaluation

BATCH_SIZE = 64
EXPLAINED = 8  # images that are explained at a time: SmoothGrad keeps the activations of all of them
SMALL_BATCHES = (1, 8)  # batches are padded to one of these or to the full size, so that at most three are compiled


class Model:
    """A trained network, ready to classify images of any size.

    Attributes:
      spec: everything about it but the weights (`patchnets.run.model_spec`).
      classes: names, in the order of probabilities.
      network: the Flax module.
      variables: its trained variables, {"params", "batch_stats"}, as host arrays.
      source: where it was loaded from, as an absolute path.
      step: of the checkpoint that it was loaded from; None if unknown.
      notes: lines on what the source did not say, and was assumed.
    """

    def __init__(
        self,
        spec: ModelSpec,
        variables: Any,
        source: str = "",
        step: int | None = None,
        notes: tuple[str, ...] = (),
    ):
        self.spec, self.variables, self.source, self.step = spec, jax.device_get(variables), source, step
        self.notes = notes
        self.network: nn.Module = spec.create_model()
        # Programs and copies on devices live as long as the model.
        self._logits_fn = functools.cache(self._make_logits_fn)
        self._features_fn = functools.cache(self._make_features_fn)
        self._explain_fn = functools.cache(self._make_explain_fn)
        self._on_mesh = functools.cache(self._put_on_mesh)

    def __repr__(self) -> str:
        return (
            f"Model({self.spec.network}, {len(self.classes)} classes, {self.spec.image_size} px, from {self.source!r})"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    def require_classes(self) -> None:
        """Raise UserError for a network without a head, which computes features and no probabilities."""
        if not self.classes:
            raise UserError(
                f"{self.source} has no classes: its weights have no head, and give features only (model.features, or "
                "--features); train a head on your classes"
            )

    def preprocess(self, images: Any) -> Float32[Array, "images size size channels"]:
        """Return images as inputs of the network: decoded, cropped, resized and normalized as in evaluation.

        Args:
          images: one or many paths, Pillow images or uint8 arrays, of any sizes.
        """
        decoded = images_lib.stack(images_lib.decode_many(images_lib.as_list(images), self.spec))
        return self.spec.preprocess(jnp.asarray(decoded))

    def predict(self, images: Any, topk: int = 5, batch_size: int = BATCH_SIZE) -> list[list[tuple[str, float]]]:
        """Return the `topk` most probable classes of each image, as [(class, probability), ...].

        Args and errors: as `probabilities`.
        """
        logits = self.logits(images, batch_size)
        return [
            [(self.classes[i], float(row[i])) for i in top_classes(logits_row, topk)]
            for logits_row, row in zip(logits, self.to_probabilities(logits))
        ]

    def probabilities(self, images: Any, batch_size: int = BATCH_SIZE) -> Float32[np.ndarray, "images classes"]:
        """Return the probability of every class for each image.

        Args:
          images: one or many paths, Pillow images or uint8 arrays (height, width[, channels]), of any sizes.
          batch_size: the most images that go through the network at a time.

        Raises:
          UserError: the network has no classes.
          RunError: an image file cannot be read.
          ValueError: an array that is no image.
        """
        return self.to_probabilities(self.logits(images, batch_size))

    def to_probabilities(self, logits: Float32[np.ndarray, "images classes"]) -> Float32[np.ndarray, "images classes"]:
        """Return the probabilities of logits: softmax, or sigmoid for a network trained with that loss."""
        if self.spec.loss == "sigmoid":
            small = np.exp(-np.abs(logits))  # of either sign without overflow, and without rounding to 0
            return (np.where(logits >= 0, 1, small) / (1 + small)).astype(np.float32)
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)

    def logits(self, images: Any, batch_size: int = BATCH_SIZE) -> Float32[np.ndarray, "images classes"]:
        """Return the logits of each image. Args and errors: as `probabilities`."""
        self.require_classes()
        outputs = list(self._batches(images, self._logits_fn, batch_size))
        return np.concatenate(outputs) if outputs else np.zeros((0, len(self.classes)), np.float32)

    def features(self, images: Any, layer: str = "pre_logits", batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Return the activations of a layer for each image.

        Args:
          images, batch_size: as for `probabilities`.
          layer: "pre_logits", the input of the head: (images, width); "stem" or "block_0" and so on, the output of a
            block; or another name of `patchnets.models.intermediates`.

        Raises:
          UserError: there is no such layer.
        """
        outputs = list(self._batches(images, functools.partial(self._features_fn, layer), batch_size))
        if not outputs:
            raise UserError("there are no images to compute features of")
        return np.concatenate(outputs)

    def explain(
        self, image: images_lib.AnyImage, class_: str | int | None = None, method: str = "auto"
    ) -> Float32[np.ndarray, "size size"]:
        """Return what the prediction of an image rests on: a map from 0 to 1 over the pixels of the network's input.

        Args:
          image: a path, a Pillow image or a uint8 array, of any size.
          class_: the class to explain, by its name or index; None for the most probable one.
          method: "rollout" (attention rollout: a ViT only, and the same for every class), "smoothgrad", or "auto":
            rollout for a ViT if `class_` is None, else SmoothGrad (`patchnets.inference.explain`).

        Raises:
          UserError: there is no such class or method, or the network has no attention.
          RunError, ValueError: as of `probabilities`.
        """
        self.require_classes()
        if class_ is None:
            index = None
        elif class_ in self.classes:
            index = self.classes.index(str(class_))
        elif isinstance(class_, int | np.integer) and 0 <= class_ < len(self.classes):
            index = int(class_)
        else:
            raise UserError(f"there is no class {class_!r}; known: {', '.join(self.classes[:20])}")
        if method == "rollout" and class_ is not None:
            raise UserError("attention rollout is the same for every class; leave the class out, or use smoothgrad")
        if method == "auto" and class_ is not None:
            method = "smoothgrad"
        decoded = images_lib.decode_one(image, self.spec)[None]
        index = int(self.logits_of_decoded(decoded).argmax()) if index is None else index
        return self.explain_decoded(decoded, np.array([index]), method)[0]

    def explain_decoded(
        self,
        decoded: UInt[np.ndarray, "images size size channels"],
        classes: Int[np.ndarray, " images"],
        method: str = "auto",
    ) -> Float32[np.ndarray, "images size size"]:
        """Return the maps of images that are decoded already, each for a class; see `explain`."""
        attention = hasattr(self.network, "num_heads")
        method = ("rollout" if attention else "smoothgrad") if method == "auto" else method
        if method not in explain.METHODS:
            raise UserError(f"there is no method {method!r}; known: auto, {', '.join(explain.METHODS)}")
        if method == "rollout" and not attention:
            raise UserError(f"{self.spec.network} has no attention to roll out; use smoothgrad")
        maps = functools.partial(self._explain_fn, method)
        parts = [slice(i, i + EXPLAINED) for i in range(0, len(decoded), EXPLAINED)]
        return np.concatenate([self.apply_padded(maps, decoded[p], EXPLAINED, classes[p]) for p in parts])

    def _make_explain_fn(self, method: str, size: int) -> Any:
        """Return the compiled function (decoded images, classes) -> maps of `size` images."""
        mesh, explain_fn = self._mesh_of(size), explain.METHODS[method]
        per_image, replicated = PartitionSpec(mesh_lib.BATCH_AXES), PartitionSpec()
        maps = jax.shard_map(
            lambda variables, images, classes: explain_fn(
                self.network, variables, self.spec.preprocess(images), classes
            ),
            mesh=mesh,
            in_specs=(replicated, per_image, per_image),
            out_specs=per_image,
            check_vma=False,
        )
        return functools.partial(jax.jit(maps), self._on_mesh(mesh))

    def displayed(
        self, decoded: UInt[np.ndarray, "images size size channels"]
    ) -> UInt8[np.ndarray, "images size size channels"]:
        """Return decoded images as the network gets them, but for the normalization: cropped and resized."""
        levels = self.spec.preprocess.resize(jnp.asarray(decoded), self.spec.crop_pct)
        return np.asarray(jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8))

    def evaluate(self, data: Any, val: Any = None, batch_size: int = BATCH_SIZE) -> "Evaluation":
        """Return accuracy, loss, metrics by class, confusion and calibration on labeled images.

        Classes are matched by name. Images that cannot be read, or whose class the model does not have, are left out
        and named in the result (`unreadable`, `unknown_classes`).

        Args:
          data: a folder with a folder of images for each class; or (images, labels), images as for `probabilities`,
            labels the names or the indices of their classes.
          val: validation images of the same kind, on which to fit a temperature.
          batch_size: the most images that go through the network at a time.

        Raises:
          UserError: there are no images, or none of a class of the model.
          RunError: no image can be read, or the outputs are not finite.
          ValueError: not as many labels as images, or an index outside the classes.
        """
        self.require_classes()
        from patchnets.inference import evaluation  # scikit-learn takes a second to import

        labeled = evaluation.as_labeled(data, self.classes)
        val_labeled = None if val is None else evaluation.as_labeled(val, self.classes)
        return evaluation.evaluate(self, labeled, val_labeled, batch_size)

    def _batches(self, images: Any, fn_of_size: Any, batch_size: int) -> Iterator[np.ndarray]:
        """Apply a function to images in padded batches; yield its results, one array a batch."""
        pending: list[images_lib.Decoded] = []
        for image in images_lib.decode_many(images_lib.as_list(images), self.spec):
            if isinstance(image, RunError):
                raise image
            pending.append(image)
            if len(pending) == batch_size:
                yield self.apply_padded(fn_of_size, np.stack(pending), batch_size)
                pending = []
        if pending:
            yield self.apply_padded(fn_of_size, np.stack(pending), batch_size)

    def logits_of_decoded(
        self, decoded: UInt[np.ndarray, "images size size channels"], batch_size: int = BATCH_SIZE
    ) -> Float32[np.ndarray, "images classes"]:
        """Return the logits of at most `batch_size` images that are decoded already (`images.decode_one`)."""
        return self.apply_padded(self._logits_fn, decoded, batch_size)

    def features_of_decoded(
        self,
        decoded: UInt[np.ndarray, "images size size channels"],
        layer: str = "pre_logits",
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Return `features` of at most `batch_size` images that are decoded already."""
        return self.apply_padded(functools.partial(self._features_fn, layer), decoded, batch_size)

    def apply_padded(self, fn_of_size: Any, decoded: np.ndarray, batch_size: int, *others: np.ndarray) -> np.ndarray:
        """Apply `fn_of_size(size)` to a batch padded to `size`, one of a few, and return the rows of its images.

        `others` are further arguments of that function, with a row for each image.
        """
        size = next(size for size in (*SMALL_BATCHES, batch_size) if size >= len(decoded) or size == batch_size)
        filled = [np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)]) for x in (decoded, *others)]
        return np.asarray(fn_of_size(size)(*filled))[: len(decoded)]

    def _make_logits_fn(self, size: int) -> Any:
        """Return the compiled function decoded images -> logits of a batch of `size` images.

        A batch is split over the devices if it divides, and on a CPU into microbatches that stay in cache.
        """
        mesh = self._mesh_of(size)
        apply = self._on_batches(
            lambda variables, images: jnp.asarray(self.network.apply(variables, images, train=False)), size, mesh
        )
        compiled = jax.jit(lambda variables, images: apply(variables, self.spec.preprocess(images)).astype(jnp.float32))
        return functools.partial(compiled, self._on_mesh(mesh))

    def _make_features_fn(self, layer: str, size: int) -> Any:
        """Return the compiled function decoded images -> activations of a layer, of a batch of `size` images.

        The inputs of the head are computed on all devices, as logits are, other layers on one.
        """

        def features(variables: Any, images: Array) -> Float[Array, "batch ..."]:
            captured = capture_intermediates(self.network, variables, images)
            layers = [name for name in captured if not name.endswith("/mixing") or hasattr(self.network, "num_heads")]
            if layer not in layers:  # the mixing of other networks is the same for all images
                raise UserError(f"the network has no features called {layer!r}; it has {', '.join(layers)}")
            return captured[layer]

        mesh = self._mesh_of(size) if layer == "pre_logits" else mesh_lib.make_mesh(devices=jax.local_devices()[:1])
        apply = self._on_batches(features, size, mesh) if layer == "pre_logits" else features
        compiled = jax.jit(lambda variables, images: apply(variables, self.spec.preprocess(images)))
        return functools.partial(compiled, self._on_mesh(mesh))

    def _on_batches(self, fn: Any, size: int, mesh: Mesh) -> Any:
        """Split the batch of a function (variables, inputs) -> rows over devices, and on a CPU into microbatches."""
        count = cpu.num_microbatches(
            self.network, self.variables["params"], self.spec.image_size, size, mesh.size, train=False
        )
        return wrap_logits_fn(fn, mesh=mesh, num_microbatches=count)

    def _mesh_of(self, size: int) -> Mesh:
        """Return the devices that share a batch: all of them if it divides, else the first."""
        devices = jax.local_devices()
        return mesh_lib.make_mesh(devices=devices if size % len(devices) == 0 else devices[:1])

    def _put_on_mesh(self, mesh: Mesh) -> Any:
        """Return the variables on all devices of a mesh."""
        return jax.device_put(self.variables, sharding.replicated(mesh))

    def with_variables(self, variables: Any) -> "Model":
        """Return a model with other variables of the same network."""
        return Model(self.spec, variables, self.source)

    def export(
        self,
        directory: str | os.PathLike[str],
        to: str,
        *,
        inputs: str = "float",
        outputs: str = "logits",
        verified: bool = True,
    ) -> export.Report:
        """Write the model for other programs, and compare what they compute with what this model does.

        Args:
          directory: a folder to make; it may exist if it is empty.
          to: timm, npz, onnx or stablehlo.
          inputs: of onnx and stablehlo: float, normalized inputs of the network; or the type of decoded images, uint8
            (uint16 for a model of images of more than 8 bits).
          outputs: of onnx and stablehlo: logits or probabilities.
          verified: whether to compare.

        Raises:
          UserError: the network cannot be written so, or something that is needed is not installed.
          RunError: what was written gives other outputs; nothing is left of it.
        """
        fields = self.spec.fields | {"dtype": "float32"}
        model = Model(dataclasses.replace(self.spec, fields=fields), self.variables, self.source, self.step)
        return export.export(
            model, directory, to, inputs=inputs, outputs=outputs, verified=verified, dtype=self.spec.fields["dtype"]
        )


def top_classes(logits: Float32[np.ndarray, " classes"], topk: int) -> list[int]:
    """Return the indices of the largest logits, largest first; of equal ones the earlier first.

    Probabilities would not do: in float32 many logits have the same one.
    """
    return np.argsort(-logits, kind="stable")[:topk].tolist()
