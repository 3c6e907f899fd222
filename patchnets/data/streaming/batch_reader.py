"""Read, decode and crop the images of a chunk, up to 32 neighbors in a batch, in a worker.

Order and crops are functions of (seed, epoch, example), drawn by NumPy. A worker imports JAX, because Grain does, but
never initializes a backend, which would take a device from the training process, nor imports TensorFlow.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Int32

from patchnets.data import decode
from patchnets.data.order import epoch_order
from patchnets.data.sources.base import Records
from patchnets.errors import RunError, UserError, first_line
from patchnets.prng import RngStream

CHUNK_SIZE = 32
MAX_ATTEMPTS = 10


def random_crop(
    height: int, width: int, key: tuple[int, ...], least_area: float, aspect: float
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a random part of an image, as torchvision's RandomResizedCrop does.

    Its area is uniform in [least_area, 1] of the image's, and log(width / height) uniform in
    [-log(aspect), log(aspect)]. If ten draws do not fit, return the largest center crop that `aspect` allows.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    for area, shape, down, right in generator.random((MAX_ATTEMPTS, 4)):
        area = height * width * (least_area + (1 - least_area) * area)
        ratio = math.exp((2 * shape - 1) * math.log(aspect))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    rows, columns = min(height, round(width * aspect)), min(width, round(height * aspect))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


@dataclasses.dataclass(frozen=True, eq=False)
class BatchReader:
    """Reader of chunks by their number, counted through all steps of a run.

    Attributes:
      parts: (records, first, one past the last) of each part of the split.
      size: side of the images in pixels.
      channels: 1 for gray, 3 for RGB.
      num_classes: labels must be below it.
      batch_size: examples in a step, over all processes.
      rows: the rows of a batch that this process fills.
      seed: for order and crops; None keeps the order.
      crop_scale_min: smallest share of an image's area in a random crop; 1 for no random crops.
      crop_ratio_max: largest ratio of width to height, or of height to width, of a random crop.
      crop_pct: without random crops, the side of the center square as a share of the shorter side.
      skip: give an image that cannot be read mask 0, instead of raising its error.
    """

    parts: tuple[tuple[Records, int, int], ...]
    size: int
    channels: int
    num_classes: int
    batch_size: int
    rows: Int32[np.ndarray, " local_batch"]
    seed: int | None
    crop_scale_min: float = 1.0
    crop_ratio_max: float = 4 / 3
    crop_pct: float = 1.0
    skip: bool = False

    @property
    def num_examples(self) -> int:
        return sum(high - low for _, low, high in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.batch_size)

    @property
    def chunks_per_step(self) -> int:
        return -(-len(self.rows) // CHUNK_SIZE)

    def __call__(self, number: int) -> dict[str, Any]:
        """Return the arrays of a chunk, or {"error": RunError or UserError}: Grain would change a raised error."""
        try:
            return self.read_chunk(int(number))
        except (RunError, UserError) as error:
            return {"error": error}
        except Exception as error:
            return {"error": RunError(f"reading images failed ({type(error).__name__}: {first_line(error)})")}

    def before(self, stop: int, number: int) -> dict[str, Any]:
        """Return a chunk; an empty dictionary from number `stop` on."""
        return self(number) if number < stop else {}

    def read_chunk(self, number: int) -> dict[str, Any]:
        """Return the arrays of a chunk: images, labels, mask and list of unreadable images.

        {"image": uint8 or uint16 [n, size, size, channels], "label": int32 [n], "mask": float32 [n], "unreadable": ...}
        "unreadable" lists (row of the chunk, name, error) of images that are black, with label 0 and mask 0.

        Raises:
          RunError: an image cannot be read or decoded, and `skip` is false; the message names it.
          UserError: a label is outside the classes.
        """
        step, chunk = divmod(number, self.chunks_per_step)
        epoch, done = divmod(step, self.steps_per_epoch)
        low, high = (len(self.rows) * i // self.chunks_per_step for i in (chunk, chunk + 1))
        places = done * self.batch_size + self.rows[low:high]
        examples = places % self.num_examples
        if self.seed is not None:
            examples = epoch_order(self.seed, epoch, self.num_examples)[examples]
        shape = (len(places), self.size, self.size, self.channels)
        images = np.zeros(shape, self.parts[0][0].rules.dtype)
        labels = np.zeros(len(places), np.int32)
        mask = (places < self.num_examples).astype(np.float32)
        unreadable: list[tuple[int, str, str]] = []
        for i, example in enumerate(examples.tolist()):
            try:
                images[i], labels[i] = self.read(epoch, example)
            except RunError as error:
                if not self.skip:
                    raise
                mask[i] = 0.0
                records, position = self.find_record(example)
                unreadable.append((i, records.name_of(position), str(error)))
        return {"image": images, "label": labels, "mask": mask, "unreadable": unreadable}

    def read(self, epoch: int, example: int) -> tuple[np.ndarray, int]:
        """Return the image and label of an example of the split in an epoch."""
        records, position = self.find_record(example)
        name = records.name_of(position)
        data, label = records.encoded(position)
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"{name} has no label, or one outside the {self.num_classes} classes ({label}); choose another split"
            )
        if self.crop_scale_min < 1 and self.seed is not None:
            key = (RngStream.CROP, self.seed, epoch, example)
            choose = functools.partial(random_crop, key=key, least_area=self.crop_scale_min, aspect=self.crop_ratio_max)
            return decode.decode_crop(data, name, self.channels, self.size, choose, records.rules), label
        return decode.decode_image(data, name, self.channels, self.size, self.crop_pct, records.rules), label

    def find_record(self, example: int) -> tuple[Records, int]:
        """Return the records with an example of the split, and its position in them."""
        for records, low, high in self.parts:
            if example < high - low:
                return records, low + example
            example -= high - low
        raise IndexError(example)
