"""Four learning rates for the Mixer on digits, about a factor of three apart.

python -m experiments.sweep --sweep=experiments/sweeps/mixer_digits_lr.py --seeds=3
"""

CONFIG = "configs/mixer_digits.py"


def get_sweep():
    for rate in (5e-4, 1.5e-3, 5e-3, 1.5e-2):
        yield f"lr-{rate:g}", {"optimizer.learning_rate": rate}
