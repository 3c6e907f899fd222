"""Published figures beside measured ones: the verdict, and when a run is not held to them."""

import pytest

from patchnets import claims
from patchnets.config import INCIDENTAL, default_config


def config(**values):
    return default_config(claims=dict(source="a paper, table 1", tolerance=0.02, **values))


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
    found = claims.compared(config(accuracy=0.47, top5_accuracy=0.77), summary)["claims"]
    assert found["verdict"] == verdict and found["source"] == "a paper, table 1"
    assert found["accuracy"] == {"published": 0.47, "measured": top1, "difference": pytest.approx(top1 - 0.47)}


def test_what_is_not_claimed_is_not_compared():
    assert claims.compared(config(), {"test_accuracy": 0.5}) == {} and claims.stated(config()) is None
    found = claims.compared(config(top5_accuracy=0.7), {"test_accuracy": 0.1, "test_top5_accuracy": 0.71})["claims"]
    assert found["verdict"] == "reproduced" and "accuracy" not in found


def test_without_a_test_split_there_is_no_verdict():
    assert "no test split" in claims.compared(config(accuracy=0.5), {"val_accuracy": 0.5})["claims"]["verdict"]


@pytest.mark.parametrize("given", [{"total_epochs"}, {"seed", "model.depth"}, {"augment.flip", "dataset.path"}])
def test_a_changed_recipe_is_not_held_to_the_claim(given):
    changed = config(accuracy=0.5)
    claims.void_if_changed(changed, given, INCIDENTAL)
    found = claims.compared(changed, {"test_accuracy": 0.9})["claims"]
    assert found["verdict"].startswith("not compared: config.")
    assert "not compared" in claims.stated(changed) and "+40.00 points" in claims.concluded(found)


def test_another_seed_or_place_is_the_same_recipe():
    same = config(accuracy=0.5)
    claims.void_if_changed(same, {"seed", "dataset.data_dir", "mesh.data", "claims.tolerance"}, INCIDENTAL)
    assert claims.compared(same, {"test_accuracy": 0.49})["claims"]["verdict"] == "reproduced"


def test_screens_name_figures_source_and_verdict():
    given = config(accuracy=0.4758, top5_accuracy=0.7718)
    assert claims.stated(given) == "published: top-1 47.58%, top-5 77.18% of the test split (a paper, table 1)"
    found = claims.compared(given, {"test_accuracy": 0.4858, "test_top5_accuracy": 0.7418})["claims"]
    assert claims.concluded(found) == (
        "top-1 47.58% (+1.00 points here), top-5 77.18% (-3.00 points here): not reproduced"
    )
