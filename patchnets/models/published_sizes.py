"""Published image size, parameters and multiply-accumulates of every model and variant.

Parameters include the head. Where a paper rounds (59 M), this table has the exact count of its definition. `python -m
patchnets.models` prints them next to counts of the networks; tests compare the two.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """One row; `params` and `gmacs` are None if nothing was published."""

    params: int | None
    gmacs: float | None
    image_size: int = 224
    num_classes: int = 1000


PUBLISHED: dict[tuple[str, str], Published] = {
    # arXiv 2105.01601, table 1
    ("mlp_mixer", "S/32"): Published(19_104_624, 1.00),
    ("mlp_mixer", "S/16"): Published(18_528_264, 3.79),
    ("mlp_mixer", "B/32"): Published(60_293_428, 3.24),
    ("mlp_mixer", "B/16"): Published(59_880_472, 12.62),
    ("mlp_mixer", "L/32"): Published(206_939_264, 11.27),
    ("mlp_mixer", "L/16"): Published(208_196_168, 44.6),
    ("mlp_mixer", "H/14"): Published(432_350_952, 121.0),
    # The FNet paper is about text: these sizes are this project's own.
    ("fnet", "Ti/16"): Published(None, None),
    ("fnet", "Ti/32"): Published(None, None),
    ("fnet", "S/16"): Published(None, None),
    ("fnet", "S/32"): Published(None, None),
    ("fnet", "B/16"): Published(None, None),
    ("fnet", "B/32"): Published(None, None),
    # arXiv 2105.08050, table 1
    ("gmlp", "Ti/16"): Published(5_867_328, 1.34),
    ("gmlp", "S/16"): Published(19_422_656, 4.42),
    ("gmlp", "B/16"): Published(73_075_392, 15.78),
    # arXiv 2201.09792, table 1 and its repository; the networks for CIFAR by the formula that it gives
    ("convmixer", "1536/20"): Published(51_625_960, 51.10),
    ("convmixer", "768/32"): Published(21_110_248, 20.68),
    ("convmixer", "1024/20"): Published(24_383_464, 5.95),
    ("convmixer", "1024/12"): Published(14_621_672, 13.85),
    ("convmixer", "512/16"): Published(5_357_544, 4.91),
    ("convmixer", "256/8-k5-p1"): Published(591_882, None, 32, 10),
    ("convmixer", "256/8-k5-p2"): Published(594_186, None, 32, 10),
    ("convmixer", "256/8-k9-p1"): Published(706_570, None, 32, 10),
    ("convmixer", "256/8-k9-p2"): Published(708_874, None, 32, 10),
    ("convmixer", "256/16"): Published(1_409_034, None, 32, 10),
    # arXiv 2010.11929, table 1, and 2012.12877; the other sizes and patches combine them
    ("vit", "Ti/14"): Published(None, None),
    ("vit", "Ti/16"): Published(5_717_416, 1.26),
    ("vit", "Ti/32"): Published(None, None),
    ("vit", "S/14"): Published(None, None),
    ("vit", "S/16"): Published(22_050_664, 4.61),
    ("vit", "S/32"): Published(22_878_952, 1.15),
    ("vit", "B/14"): Published(None, None),
    ("vit", "B/16"): Published(86_567_656, 17.58),
    ("vit", "B/32"): Published(88_224_232, 4.41),
    ("vit", "L/14"): Published(None, None),
    ("vit", "L/16"): Published(304_326_632, 61.6),
    ("vit", "L/32"): Published(306_535_400, 15.39),
    ("vit", "H/14"): Published(632_045_800, None),
    ("vit", "H/16"): Published(None, None),
    ("vit", "H/32"): Published(None, None),
    # The tutorials, at the size and number of classes of each
    ("keras_mixer", "cifar100"): Published(242_788, None, 64, 100),
    ("keras_fnet", "cifar100"): Published(621_924, None, 64, 100),
    ("keras_gmlp", "cifar100"): Published(885_348, None, 64, 100),
    ("keras_vit", "cifar100"): Published(21_759_012, None, 72, 100),
    ("keras_convmixer", "cifar10"): Published(594_186, None, 32, 10),
    ("blog_mixer_pytorch", "imagenet"): Published(3_110_316, None),
    ("blog_mixer_keras", "cifar10"): Published(1_226_890, None, 32, 10),
}
