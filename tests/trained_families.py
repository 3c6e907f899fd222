"""A small network of each of the five families, trained on the digits for a few steps, and the digits as files."""

import dataclasses
import functools
import pathlib

import numpy as np
from PIL import Image

import patchnets
from patchnets import train
from patchnets.config import common
from patchnets.data.sources import digits

BLOCKS = dict(patch_size=2, depth=2, hidden_dim=16)
FAMILIES = {
    "mlp_mixer": BLOCKS | dict(tokens_mlp_dim=8, channels_mlp_dim=32, gelu="exact"),
    "fnet": BLOCKS | dict(mlp_dim=32),
    "gmlp": BLOCKS | dict(ffn_dim=32),
    "convmixer": BLOCKS | dict(kernel_size=3),
    "vit": BLOCKS | dict(mlp_dim=32, num_heads=2),
}
TEST_IMAGES = 100
STEPS = 48


@dataclasses.dataclass(frozen=True)
class TrainedFamilies:
    """Work directories, each trained when it is first asked for; read them, and write elsewhere."""

    root: pathlib.Path

    @functools.cache  # noqa: B019, because there is a single object
    def workdir(self, family: str) -> pathlib.Path:
        config = common.base(
            dataset=dict(
                name="digits", val_split="train[:100]", test_split=f"test[:{TEST_IMAGES}]", cache_dir=str(self.root)
            ),
            image_size=8,
            model=dict(name=family, **FAMILIES[family]),
            batch_size=64,
            total_steps=STEPS,
            mesh=dict(data=1),
            optimizer=dict(learning_rate=1e-2),
            tensorboard=False,
            plots=False,
        )
        train.train(config, self.root / family)
        return self.root / family

    def model(self, family: str) -> patchnets.Model:
        return patchnets.load(self.workdir(family))

    @functools.cached_property
    def files(self) -> list[pathlib.Path]:
        """The test images as PNG files, in a folder of each class."""
        paths = []
        for i, (image, label) in enumerate(digits.Digits().records("test").examples(range(TEST_IMAGES))):
            paths.append(self.root / "images" / str(label) / f"{i:03d}.png")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(paths[-1])
        return paths


def held_out_images() -> np.ndarray:
    """Return the test images as uint8 arrays."""
    return np.stack([image for image, _ in digits.Digits().records("test").examples(range(TEST_IMAGES))])
