"""Comparison of a run with published figures, and when a run is not compared."""

import pytest

from patchnets.config import default_config, flatten, published, recipe_diff


def figures(**values):
    return published.Published(source="a paper, table 1", tolerance=0.02, **values)


@pytest.mark.parametrize(
    ("top1", "top5", "verdict"),
    [
        (0.48, 0.78, "reproduced"),
        (0.455, 0.755, "reproduced"),
        (0.455, 0.74, "not reproduced"),
        (0.44, 0.9, "not reproduced"),
    ],
)
def test_verdict_holds_every_metric_to_its_claim_less_the_tolerance(top1, top5, verdict):
    summary = {"test_accuracy": top1, "test_top5_accuracy": top5, "val_accuracy": 0.1}
    actual = published.compare(figures(accuracy=0.47, top5_accuracy=0.77), summary)["published"]
    assert actual["verdict"] == verdict and actual["source"] == "a paper, table 1"
    assert actual["accuracy"] == {"published": 0.47, "measured": top1, "difference": pytest.approx(top1 - 0.47)}


def test_what_is_not_claimed_is_not_compared():
    assert published.compare(figures(), {"test_accuracy": 0.5}) == {} and published.describe(figures()) is None
    actual = published.compare(figures(top5_accuracy=0.7), {"test_accuracy": 0.1, "test_top5_accuracy": 0.71})[
        "published"
    ]
    assert actual["verdict"] == "reproduced" and "accuracy" not in actual


def test_without_a_test_split_there_is_no_verdict():
    assert "no test split" in published.compare(figures(accuracy=0.5), {"val_accuracy": 0.5})["published"]["verdict"]


def recipe(**values):
    return flatten(default_config(**values))


@pytest.mark.parametrize("settings", [dict(total_epochs=7.0), dict(seed=1, augment=dict(flip=True))])
def test_a_changed_recipe_is_not_held_to_the_claim(settings):
    changed = figures(accuracy=0.5)
    changed = published.mark_incomparable(changed, recipe_diff(recipe(), recipe(**settings)))
    actual = published.compare(changed, {"test_accuracy": 0.9})["published"]
    assert actual["verdict"].startswith("not compared: config.")
    assert "not compared" in published.describe(changed) and "(+40.00 points)" in published.describe_comparison(actual)


def test_another_seed_or_place_is_the_same_recipe():
    same = figures(accuracy=0.5)
    other = recipe(
        seed=3, dataset=dict(data_dir="x"), mesh=dict(data=2), published=dict(tolerance=0.1), log_every_steps=5
    )
    same = published.mark_incomparable(same, recipe_diff(recipe(), other))
    assert published.compare(same, {"test_accuracy": 0.49})["published"]["verdict"] == "reproduced"


def test_screens_name_figures_source_and_verdict():
    settings = figures(accuracy=0.4758, top5_accuracy=0.7718)
    assert published.describe(settings) == "published: top-1 47.58%, top-5 77.18% of the test split (a paper, table 1)"
    actual = published.compare(settings, {"test_accuracy": 0.4858, "test_top5_accuracy": 0.7418})["published"]
    assert published.describe_comparison(actual) == (
        "top-1 47.58% published, 48.58% measured (+1.00 points); "
        "top-5 77.18% published, 74.18% measured (-3.00 points): not reproduced"
    )
