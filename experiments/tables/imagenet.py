"""ImageNet-1k from scratch with the papers' recipes. Every row needs a cluster."""

from experiments.runner.run_spec import Budget, RunSpec

CLUSTER = "a cluster"
MIXER, GMLP, CONVMIXER = "arXiv 2105.01601, table 2", "arXiv 2105.08050, as others cite it", "arXiv 2201.09792, table 1"
CONVMIXER_CITED = "arXiv 2201.09792, as others cite it"
PLAIN, AUGREG = "arXiv 2205.01580", "arXiv 2106.10270, the best of its runs on ImageNet-1k"


def _row(name: str, config: str, accuracy: float, source: str, epochs: float, tolerance: float = 0.01) -> RunSpec:
    """Return a row; its id is also a folder name, hence without "/"."""
    return RunSpec(
        name.replace("/", "-"),
        config,
        "imagenet2012",
        dict(accuracy=accuracy),
        source,
        Budget(epochs, CLUSTER),
        tolerance,
    )


TABLE = (
    _row("mixer-B/16", "configs/mixer_imagenet.py:B/16", 0.7644, MIXER, 300),
    _row("mixer-L/16", "configs/mixer_imagenet.py:L/16", 0.7176, MIXER, 300),
    _row("gmlp-Ti/16", "configs/gmlp_imagenet.py:Ti/16", 0.723, GMLP, 300),
    _row("gmlp-S/16", "configs/gmlp_imagenet.py:S/16", 0.796, GMLP, 300),
    _row("gmlp-B/16", "configs/gmlp_imagenet.py:B/16", 0.816, GMLP, 300),
    _row("convmixer-1536/20", "configs/convmixer_imagenet.py:1536/20", 0.8137, CONVMIXER, 150),
    _row("convmixer-768/32", "configs/convmixer_imagenet.py:768/32", 0.8016, CONVMIXER, 300),
    _row("convmixer-1024/20", "configs/convmixer_imagenet.py:1024/20", 0.7694, CONVMIXER, 150),
    _row("convmixer-1024/12", "configs/convmixer_imagenet.py:1024/12", 0.778, CONVMIXER_CITED, 150),
    _row("convmixer-512/16", "configs/convmixer_imagenet.py:512/16", 0.738, CONVMIXER_CITED, 150),
    *(
        _row(f"vit-plain-{epochs}", f"configs/vit_imagenet.py:plain-{epochs}", accuracy, PLAIN, epochs)
        for epochs, accuracy in ((90, 0.765), (150, 0.785), (300, 0.80))
    ),
    *(
        _row(
            f"vit-augreg-{name.replace('/', '-')}",
            f"configs/vit_imagenet.py:augreg-{name}",
            accuracy,
            AUGREG,
            300,
            0.02,
        )
        for name, accuracy in (("S/16", 0.7884), ("B/32", 0.7491), ("B/16", 0.7915))
    ),
)
