"""Lowering the learning rate and early stopping, against sequences worked out by hand from what Keras documents."""

import json

import pytest

from patchnets.errors import UserError
from patchnets.optim.plateau import EarlyStopping, ReduceLROnPlateau


def reduce_lr() -> ReduceLROnPlateau:
    return ReduceLROnPlateau(patience=2, factor=0.5)


def scales(plateau: ReduceLROnPlateau, losses: list[float]) -> list[float]:
    actual = []
    for loss in losses:
        plateau.observe(loss)
        actual.append(plateau.lr_scale)
    return actual


def test_the_rate_is_halved_after_two_validations_without_a_lower_loss_and_the_count_starts_again():
    losses = [2.0, 1.0, 1.5, 1.1, 1.2, 0.5, 0.6, 0.4, 0.5, 0.4]
    assert scales(reduce_lr(), losses) == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_the_rate_keeps_falling_while_nothing_improves():
    assert scales(reduce_lr(), [1.0] * 7) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_a_gain_below_a_ten_thousandth_counts_for_stopping_but_not_for_the_rate():
    stopping, plateau, losses = EarlyStopping(2), reduce_lr(), [1.0, 0.99995, 0.9999]
    for loss in losses:
        stopping.observe(loss)
    assert scales(plateau, losses) == [1, 1, 0.5]
    assert stopping.waited == 0 and not stopping.should_stop


def test_the_run_ends_after_three_validations_in_a_row_without_a_lower_loss():
    stopping, stops = EarlyStopping(3), []
    for loss in [3.0, 2.0, 2.5, 2.5, 1.9, 1.9, 2.0, 2.1]:
        stopping.observe(loss)
        stops.append(stopping.should_stop)
    assert stops == [False] * 7 + [True]


def test_nothing_happens_by_default():
    stopping, plateau = EarlyStopping(), ReduceLROnPlateau()
    for _ in range(50):
        stopping.observe(1.0)
    assert set(scales(plateau, [1.0] * 50)) == {1.0} and not stopping.should_stop


@pytest.mark.parametrize("make", [lambda: EarlyStopping(3), reduce_lr])
def test_the_state_survives_a_checkpoint_at_every_point(make):
    losses = [2.0, 1.0, 1.5, 1.1, 1.2, 0.5, 0.6, 0.7, 0.8]
    for interrupted in range(len(losses)):
        full, first, second = make(), make(), make()
        for loss in losses:
            full.observe(loss)
        for loss in losses[:interrupted]:
            first.observe(loss)
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        for loss in losses[interrupted:]:
            second.observe(loss)
        assert second == full and full.waited + (getattr(full, "lr_scale", 1) < 1) > 0


@pytest.mark.parametrize("half", [dict(factor=0.5), dict(patience=1)])
def test_one_half_of_the_pair_is_refused(half):
    with pytest.raises(UserError, match=r"factor and config\.reduce_on_plateau\.patience go together"):
        ReduceLROnPlateau(**half)
