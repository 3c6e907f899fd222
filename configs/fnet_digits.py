"""A small FNet on scikit-learn's handwritten digits, trained as the Mixer of configs/mixer_digits.py.

    python -m patchnets.main --config=configs/fnet_digits.py

Measured on two CPU cores, seed 0: 96.94 % of the test split in 38 s.
"""

from configs import common


def get_config():
    return common.digits(model=dict(name="fnet", patch_size=2, depth=4, hidden_dim=64, mlp_dim=256))
