"""CIFAR from scratch: what papers and repositories publish for networks of this size."""

from experiments.tables.row import Cost, Row

GPU = "1 GPU"
NANO, SMALL = "github.com/omihub777/MLP-Mixer-CIFAR", "github.com/omihub777/ViT-CIFAR"
LOCUS, KENTAROY = "github.com/locuslab/convmixer-cifar10", "github.com/kentaroy47/vision-transformers-cifar10"

TABLE = (
    Row(
        "convmixer-paper",
        "configs/convmixer_cifar10.py:paper",
        "cifar10",
        dict(accuracy=0.9603),
        "arXiv 2201.09792, table 3",
        Cost(200, GPU),
        note="others report 95.89 %",
    ),
    Row(
        "convmixer-25",
        "configs/convmixer_cifar10.py:locuslab",
        "cifar10",
        dict(accuracy=0.926),
        f"{LOCUS}, 25 epochs",
        Cost(25, GPU),
    ),
    Row(
        "convmixer-100",
        "configs/convmixer_cifar10.py:locuslab-100",
        "cifar10",
        dict(accuracy=0.94),
        f"{LOCUS}, 100 epochs",
        Cost(100, GPU),
    ),
    Row("mixer-nano-10", "configs/mixer_cifar10.py:nano", "cifar10", dict(accuracy=0.9083), NANO, Cost(300, GPU)),
    Row("mixer-nano-100", "configs/mixer_cifar100.py:nano", "cifar100", dict(accuracy=0.6751), NANO, Cost(300, GPU)),
    Row("vit-10", "configs/vit_cifar10.py:omihub777", "cifar10", dict(accuracy=0.9092), SMALL, Cost(200, GPU)),
    Row("vit-100", "configs/vit_cifar100.py:omihub777", "cifar100", dict(accuracy=0.6654), SMALL, Cost(200, GPU)),
    *(
        Row(
            f"vit-512-10-{epochs}",
            f"configs/vit_cifar10.py:kentaroy47-{epochs}",
            "cifar10",
            dict(accuracy=accuracy),
            f"{KENTAROY}, {epochs} epochs",
            Cost(epochs, GPU),
        )
        for epochs, accuracy in ((200, 0.80), (500, 0.85), (1000, 0.89))
    ),
    Row(
        "vit-512-100",
        "configs/vit_cifar100.py:kentaroy47",
        "cifar100",
        dict(accuracy=0.52),
        KENTAROY,
        Cost(200, GPU),
    ),
)
