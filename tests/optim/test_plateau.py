"""Lowering the learning rate and stopping, against sequences worked out by hand from what Keras documents."""

import json

import pytest

from patchnets.config import default_config
from patchnets.errors import UserError
from patchnets.optim.plateau import Plateau


def patience(factor=0.5, plateau=2, stop=3) -> Plateau:
    return Plateau(factor, plateau, stop)


def scales(watcher: Plateau, losses: list[float]) -> list[float]:
    actual = []
    for loss in losses:
        watcher.observe(loss)
        actual.append(watcher.lr_scale)
    return actual


def test_the_rate_is_halved_after_two_validations_without_a_lower_loss_and_the_count_starts_anew():
    losses = [2.0, 1.0, 1.5, 1.1, 1.2, 0.5, 0.6, 0.4, 0.5, 0.4]
    assert scales(patience(), losses) == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_the_rate_goes_on_falling_while_nothing_gets_better():
    assert scales(patience(), [1.0] * 7) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_a_gain_below_a_ten_thousandth_is_none_for_the_rate_but_is_one_for_stopping():
    watcher = patience(stop=2)
    assert scales(watcher, [1.0, 0.99995, 0.9999]) == [1, 1, 0.5]
    assert watcher.stop_waited == 0 and not watcher.should_stop


def test_the_run_is_over_after_three_validations_in_a_row_without_a_lower_loss():
    watcher, over = patience(), []
    for loss in [3.0, 2.0, 2.5, 2.5, 1.9, 1.9, 2.0, 2.1]:
        watcher.observe(loss)
        over.append(watcher.should_stop)
    assert over == [False] * 7 + [True]


def test_nothing_happens_unless_asked_for():
    watcher = Plateau(None, None, None)
    assert set(scales(watcher, [1.0] * 50)) == {1.0} and not watcher.should_stop


def test_what_was_seen_survives_a_checkpoint_at_every_point():
    losses = [2.0, 1.0, 1.5, 1.1, 1.2, 0.5, 0.6, 0.7, 0.8]
    for cut in range(len(losses)):
        full, first = patience(), patience()
        scales(full, losses)
        scales(first, losses[:cut])
        second = patience()
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        scales(second, losses[cut:])
        assert second == full and full.should_stop


@pytest.mark.parametrize("key", ["factor", "patience"])
def test_one_half_of_the_pair_is_refused(key):
    config = default_config()
    config.reduce_on_plateau[key] = 1
    with pytest.raises(UserError, match=r"factor and config\.reduce_on_plateau\.patience go together"):
        Plateau(config.reduce_on_plateau.factor, config.reduce_on_plateau.patience)
