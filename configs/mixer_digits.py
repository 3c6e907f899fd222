"""A small MLP-Mixer on scikit-learn's handwritten digits, which need no download.

    python -m patchnets.main --config=configs/mixer_digits.py

1,797 images of 8 x 8 pixels, of which a fixed, stratified fifth is the test split. Measured on two CPU cores, seed 0:
98.05 % of the test split in 42 s, of which 16 s until the first step of a first run.
"""

from configs import common


def get_config():
    return common.digits(
        model=dict(name="mlp_mixer", patch_size=2, depth=4, hidden_dim=64, tokens_mlp_dim=32, channels_mlp_dim=128)
    )
