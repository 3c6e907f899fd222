"""93.59 % on scikit-learn's handwritten digits with a small ConvMixer; 99.16 % with the paper's network.

Test accuracy on two CPU cores, seed 0, in 36 s and 76 s.

1,797 images of 8 x 8 pixels, no download; a fixed, stratified 20 % is the test split. The first command trains the
network of the Keras example "image classification with ConvMixer" with its recipe, made smaller and without flips.
:paper trains the paper's network with a recipe for these images.

    python -m patchnets.main --config=configs/convmixer_digits.py
    python -m patchnets.main --config=configs/convmixer_digits.py:paper
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    config = common.keras_convmixer("digits", model=dict(name="keras_convmixer"))
    # More than the example's 10: BatchNorm's running statistics (momentum 0.99) take hundreds of steps to converge.
    config.total_epochs = 60.0
    return common.on_digits(config, patch_size=2, depth=4, hidden_dim=64, kernel_size=5)


def paper():
    return common.digits(model=dict(name="convmixer", patch_size=1, depth=4, hidden_dim=64, kernel_size=5))
