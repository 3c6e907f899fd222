"""97.49 % on scikit-learn's handwritten digits with a small gMLP; 98.89 % with the paper's network.

Test accuracy on two CPU cores, seed 0, in 28 s and 35 s.

1,797 images of 8 x 8 pixels, no download; a fixed, stratified 20 % is the test split. The first command trains the
network of the Keras example "image classification with modern MLP models" with its recipe, made smaller and without
flips. :paper trains the paper's network with a recipe for these images.

    python -m patchnets.main --config=configs/gmlp_digits.py
    python -m patchnets.main --config=configs/gmlp_digits.py:paper
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    config = common.keras_mlp("digits", 0.003, model=dict(name="keras_gmlp"))
    return common.on_digits(config, patch_size=2, depth=4, hidden_dim=64, dropout_rate=0.2)


def paper():
    return common.digits(model=dict(name="gmlp", patch_size=2, depth=4, hidden_dim=64, ffn_dim=256))
