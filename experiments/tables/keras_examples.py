"""The Keras examples: MLPs and ViT on CIFAR-100, ConvMixer on CIFAR-10; and the papers' networks with their recipes.

Keras's runs: Keras 3.15.1 with TensorFlow, the same images, the tutorial's model and recipe, one epoch, the last 10 %
of a fixed shuffle for validation.
"""

from experiments.runner.run_spec import Budget, Reference, RunSpec

MLP = "Keras example, image classification with modern MLP models"
VIT = "Keras example, image classification with Vision Transformer"
CONVMIXER = "Keras example, image classification with ConvMixer"
SHORT, LONG = "2 CPU cores", "1 GPU"


def _keras(accuracy: tuple[float, ...], top5_accuracy: tuple[float, ...]) -> Reference:
    return Reference("Keras", dict(accuracy=accuracy, top5_accuracy=top5_accuracy))


def _mlp(
    name: str, one_epoch: tuple[float, float], fifty_epochs: tuple[float, float], peer: Reference, minutes: float
) -> list[RunSpec]:
    file = f"configs/{name}_cifar100.py"
    unpublished = f"{MLP}: nothing published for the paper's network"

    def figures(pair: tuple[float, float]) -> dict[str, float]:
        return dict(zip(("accuracy", "top5_accuracy"), pair))

    return [
        RunSpec(
            f"{name}-1",
            f"{file}:one_epoch",
            "cifar100",
            figures(one_epoch),
            f"{MLP}, 1 epoch",
            Budget(1, SHORT, minutes),
            tolerance=0.02,
            peer=peer,
        ),
        RunSpec(
            f"{name}-paper-1",
            f"{file}:paper",
            "cifar100",
            {},
            unpublished,
            Budget(1, SHORT, minutes),
            changes=dict(total_epochs=1.0),
        ),
        RunSpec(
            f"{name}-50",
            file,
            "cifar100",
            figures(fifty_epochs),
            f"{MLP}, earlier edition, 50 epochs",
            Budget(50, LONG),
            tolerance=0.02,
            note="published with an optimizer whose decay was not multiplied by the learning rate",
        ),
    ]


TABLE = (
    *_mlp("mixer", (0.0976, 0.308), (0.4758, 0.7718), _keras((0.1929, 0.1838), (0.4533, 0.4424)), 3),
    *_mlp("fnet", (0.1382, 0.3615), (0.4663, 0.7647), _keras((0.1401, 0.1373), (0.3625, 0.3653)), 3),
    *_mlp("gmlp", (0.1705, 0.4257), (0.5064, 0.7828), _keras((0.1678, 0.1619), (0.4239, 0.4165)), 4),
    RunSpec(
        "vit-1",
        "configs/vit_cifar100.py",
        "cifar100",
        {},
        f"{VIT}: nothing published for 1 epoch",
        Budget(1, SHORT, 15),
        changes=dict(total_epochs=1.0),
        peer=_keras((0.0836,), (0.2587,)),
    ),
    RunSpec(
        "vit-paper-1",
        "configs/vit_cifar100.py:paper",
        "cifar100",
        {},
        f"{VIT}: nothing published for the paper's network",
        Budget(1, SHORT, 15),
        changes=dict(total_epochs=1.0),
    ),
    RunSpec(
        "vit-10",
        "configs/vit_cifar100.py",
        "cifar100",
        dict(accuracy=0.1061, top5_accuracy=0.3151),
        f"{VIT}, 10 epochs",
        Budget(10, LONG),
        tolerance=0.02,
    ),
    RunSpec(
        "vit-100",
        "configs/vit_cifar100.py:hundred_epochs",
        "cifar100",
        dict(accuracy=0.55, top5_accuracy=0.82),
        f"{VIT}, approximate figures for 100 epochs",
        Budget(100, LONG),
        tolerance=0.02,
    ),
    RunSpec(
        "convmixer-2",
        "configs/convmixer_cifar10.py",
        "cifar10",
        {},
        f"{CONVMIXER}, validation after 2 of 10 epochs",
        Budget(2, SHORT, 30),
        tolerance=0.02,
        changes=dict(total_epochs=2.0),
        curve={2: 0.724},
        note="a constant learning rate: the first 2 of 10 epochs are a run of 2. After 1 epoch 15.4 % is published, "
        "and Keras is at chance on the same images: BatchNorm's running statistics, of momentum 0.99, lag behind",
    ),
    RunSpec(
        "convmixer-paper-2",
        "configs/convmixer_cifar10.py",
        "cifar10",
        {},
        f"{CONVMIXER}: nothing published for the paper's network",
        Budget(2, SHORT, 30),
        changes={"total_epochs": 2.0, "model.name": "convmixer", "model.variant": "256/8-k5-p2"},
        note="the paper's 256/8 with kernels of 5 and patches of 2, as the tutorial's",
    ),
    RunSpec(
        "convmixer-10",
        "configs/convmixer_cifar10.py",
        "cifar10",
        dict(accuracy=0.8369),
        f"{CONVMIXER}, 10 epochs",
        Budget(10, LONG),
        tolerance=0.02,
        curve={2: 0.724, 3: 0.780, 10: 0.832},
    ),
)
