"""CIFAR from scratch: published results of papers and repositories for networks of this size."""

from experiments.runner.run_spec import Budget, RunSpec

GPU = "1 GPU"
NANO, SMALL = "github.com/omihub777/MLP-Mixer-CIFAR", "github.com/omihub777/ViT-CIFAR"
LOCUS, KENTAROY = "github.com/locuslab/convmixer-cifar10", "github.com/kentaroy47/vision-transformers-cifar10"

TABLE = (
    RunSpec(
        "convmixer-paper",
        "configs/convmixer_cifar10.py:paper",
        "cifar10",
        dict(accuracy=0.9603),
        "arXiv 2201.09792, table 3",
        Budget(200, GPU),
        note="others report 95.89 %",
    ),
    RunSpec(
        "convmixer-25",
        "configs/convmixer_cifar10.py:locuslab",
        "cifar10",
        dict(accuracy=0.926),
        f"{LOCUS}, 25 epochs",
        Budget(25, GPU),
    ),
    RunSpec(
        "convmixer-100",
        "configs/convmixer_cifar10.py:locuslab-100",
        "cifar10",
        dict(accuracy=0.94),
        f"{LOCUS}, 100 epochs",
        Budget(100, GPU),
    ),
    RunSpec("mixer-nano-10", "configs/mixer_cifar10.py:nano", "cifar10", dict(accuracy=0.9083), NANO, Budget(300, GPU)),
    RunSpec(
        "mixer-nano-100", "configs/mixer_cifar100.py:nano", "cifar100", dict(accuracy=0.6751), NANO, Budget(300, GPU)
    ),
    RunSpec("vit-10", "configs/vit_cifar10.py:omihub777", "cifar10", dict(accuracy=0.9092), SMALL, Budget(200, GPU)),
    RunSpec("vit-100", "configs/vit_cifar100.py:omihub777", "cifar100", dict(accuracy=0.6654), SMALL, Budget(200, GPU)),
    *(
        RunSpec(
            f"vit-512-10-{epochs}",
            f"configs/vit_cifar10.py:kentaroy47-{epochs}",
            "cifar10",
            dict(accuracy=accuracy),
            f"{KENTAROY}, {epochs} epochs",
            Budget(epochs, GPU),
        )
        for epochs, accuracy in ((200, 0.80), (500, 0.85), (1000, 0.89))
    ),
    RunSpec(
        "vit-512-100",
        "configs/vit_cifar100.py:kentaroy47",
        "cifar100",
        dict(accuracy=0.52),
        KENTAROY,
        Budget(200, GPU),
    ),
)
