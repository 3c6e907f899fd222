"""Figures of an evaluation, against scikit-learn, training's own metrics and NumPy."""

import io
import itertools
import types

import numpy as np
import pytest
import scipy.special
from PIL import Image
from sklearn import metrics

from patchnets.data.pixel_rules import DEFAULT_RULES
from patchnets.errors import RunError, UserError
from patchnets.inference import calibration, evaluation, labeled
from patchnets.inference.evaluation import Outputs
from patchnets.inference.model import Model
from patchnets.step.metrics import top_k_correct

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


class PixelClassifier:
    """Predicts the class whose index is the first pixel of an image: its logit is 2, the others are 0."""

    def __init__(self, classes=CLASSES, loss="softmax"):
        self.spec = types.SimpleNamespace(
            interpolation="bicubic",
            classes=classes,
            loss=loss,
            channels=1,
            decoded_size=4,
            decoded_crop_pct=1.0,
            image_size=4,
            shorter_side=None,
        )
        self.spec.rules = DEFAULT_RULES

    def logits_of_decoded(self, decoded, batch_size):
        assert len(decoded) <= batch_size
        return 2 * np.eye(len(self.spec.classes), dtype=np.float32)[decoded[:, 0, 0, 0]]

    to_probabilities = Model.to_probabilities


def image_of(index):
    return np.full((4, 4, 1), index, np.uint8)


def random_outputs(examples=500, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    logits = rng.normal(size=(examples, classes)) + 1.5 * np.eye(classes)[labels]
    names = tuple(map(str, range(examples)))
    return Outputs(names, labels, logits.astype(np.float32), (), {})


def evaluate(outputs, loss="softmax", val=None, classes=CLASSES):
    return evaluation.compute_metrics(PixelClassifier(classes, loss), "data", outputs, val)


def test_figures_are_those_of_scikit_learn():
    outputs = random_outputs()
    result = evaluate(outputs)
    probabilities = scipy.special.softmax(outputs.logits.astype(np.float64), axis=-1)
    predicted = probabilities.argmax(axis=-1)
    assert result.accuracy == metrics.accuracy_score(outputs.labels, predicted)
    assert result.top5_accuracy == metrics.top_k_accuracy_score(outputs.labels, probabilities, k=5)
    assert result.loss == pytest.approx(metrics.log_loss(outputs.labels, probabilities), rel=1e-6)
    np.testing.assert_array_equal(result.confusion, metrics.confusion_matrix(outputs.labels, predicted))
    report = metrics.classification_report(outputs.labels, predicted, target_names=CLASSES, output_dict=True)
    for name, row in [*result.per_class.items(), ("macro avg", result.macro)]:
        expected = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert [row.precision, row.recall, row.f1, row.images] == pytest.approx(expected)


def test_the_sigmoid_loss_is_the_sum_over_classes_of_log_losses():
    outputs = random_outputs()
    probabilities = scipy.special.expit(outputs.logits.astype(np.float64))
    expected = sum(metrics.log_loss(outputs.labels == i, probabilities[:, i]) for i in range(len(CLASSES)))
    assert evaluate(outputs, "sigmoid").loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_equal_logits_rank_as_in_training(k):
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 3, (400, 7)).astype(np.float32), rng.integers(0, 7, 400)
    expected = float(np.mean(top_k_correct(logits, labels, k)))
    assert evaluation.top_k_accuracy(logits, labels, k) == pytest.approx(expected, abs=1e-7)
    if k == 1:
        assert evaluation.top_k_accuracy(logits, labels, k) == (logits.argmax(axis=-1) == labels).mean()


def test_of_at_most_five_classes_each_is_among_the_first_five():
    outputs = random_outputs(classes=3)
    assert evaluate(outputs, classes=CLASSES[:3]).top5_accuracy == 1.0


def test_the_mean_over_classes_leaves_out_those_without_images():
    outputs = random_outputs(classes=7)
    kept = outputs.labels < 4
    few = Outputs(tuple(np.array(outputs.names)[kept]), outputs.labels[kept], outputs.logits[kept], (), {})
    result = evaluate(few)
    assert result.missing_classes == CLASSES[4:]
    assert [result.per_class[name].images for name in CLASSES[4:]] == [0, 0, 0]
    for attribute in ("precision", "recall", "f1"):
        expected = np.mean([getattr(result.per_class[name], attribute) for name in CLASSES[:4]])
        assert getattr(result.macro, attribute) == pytest.approx(expected)


def test_calibration_error_is_that_of_a_sum_over_bins():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(1000).astype(np.float32), rng.random(1000) < 0.6
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        held = (confidence > low) & (confidence <= high)
        expected += held.mean() * abs(confidence[held].mean() - correct[held].mean())
    assert calibration.calibration_error(confidence, correct)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_temperature_undoes_a_known_scale(loss):
    """Labels drawn from the probabilities of logits that are then multiplied by 3."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 6))
    if loss == "softmax":
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
        temperature = calibration.fit_temperature((3 * logits).astype(np.float32), labels, loss)
        assert temperature == pytest.approx(3, rel=0.05)
    else:
        labels = logits.argmax(axis=-1)
        temperature = calibration.fit_temperature((3 * logits).astype(np.float32), labels, loss)

    def loss_at(t):
        return evaluation.mean_loss(evaluation.scale_logits((3 * logits).astype(np.float32), t), labels, loss)

    assert loss_at(temperature) <= min(loss_at(0.97 * temperature), loss_at(1.03 * temperature))


def test_the_temperature_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn", minversion="1.8")
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Logits(sklearn.base.ClassifierMixin, sklearn.base.BaseEstimator):
        classes_ = np.arange(len(CLASSES))

        def __sklearn_is_fitted__(self):
            return True

        def fit(self, x, y):
            return self

        def decision_function(self, x):
            return np.asarray(x, np.float64)

        def predict(self, x):
            return np.asarray(x).argmax(axis=-1)

    val, outputs = random_outputs(seed=1), random_outputs()
    calibrated = CalibratedClassifierCV(FrozenEstimator(Logits()), method="temperature", ensemble=False)
    expected = calibrated.fit(val.logits, val.labels).predict_proba(outputs.logits)
    temperature = calibration.fit_temperature(val.logits, val.labels, "softmax")
    scaled = scipy.special.softmax(outputs.logits / temperature, axis=-1)
    np.testing.assert_allclose(scaled, expected, atol=1e-4)


def test_scaling_changes_calibration_and_loss_and_no_prediction():
    outputs, val = random_outputs(), random_outputs(seed=1)
    plain, scaled = evaluate(outputs), evaluate(outputs, val=val)
    assert plain.calibration.temperature is None and plain.scaled_confidence is None
    assert scaled.accuracy == plain.accuracy and scaled.loss == plain.loss
    assert scaled.calibration.ece == plain.calibration.ece
    assert scaled.calibration.fitted_images == 500
    assert scaled.calibration.scaled_loss < plain.loss
    probabilities = scipy.special.softmax(outputs.logits / scaled.calibration.temperature, axis=-1)
    np.testing.assert_allclose(scaled.scaled_confidence, probabilities.max(axis=-1), rtol=1e-5)


def test_classes_are_matched_by_name_in_whatever_order_they_are():
    names = ("gnu", "cat", "bee")
    labels = [names[i % 3] for i in range(20)]
    images = np.stack([image_of(CLASSES.index(label)) for label in labels])
    result = evaluation.evaluate(PixelClassifier(), labeled.from_pairs(images, labels, CLASSES), batch_size=8)
    assert result.accuracy == 1.0 and result.images == 20
    assert set(result.missing_classes) == {"ant", "dog", "elk", "fox"} and result.unknown_classes == {}


def test_images_of_classes_that_the_model_lacks_are_counted_and_left_out():
    labels = ["bee", "yak", "cat", "emu", "yak"]
    images = [image_of(i) for i in (1, 0, 3, 0, 0)]
    result = evaluation.evaluate(PixelClassifier(), labeled.from_pairs(images, labels, CLASSES))
    assert result.unknown_classes == {"emu": 1, "yak": 2}
    assert result.outputs.names == ("0", "2") and result.accuracy == 0.5
    assert result.confusion[1, 1] == 1 and result.confusion[2, 3] == 1 and result.confusion.sum() == 2
    ((index, image),) = result.outputs.mistakes
    assert index == 1 and (image == 3).all()


def test_without_a_common_class_there_is_nothing_to_evaluate():
    pairs = labeled.from_pairs([image_of(0)], ["yak"], CLASSES)
    with pytest.raises(UserError, match=r"images has no class of the model: it has 'yak'; the model has 'ant', 'bee'"):
        evaluation.evaluate(PixelClassifier(), pairs)


def test_unreadable_images_are_named_and_the_others_evaluated(tmp_path):
    for name in ("bee", "cat"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(image_of(CLASSES.index(name))[..., 0]).save(tmp_path / name / f"{i}.png")
    (tmp_path / "bee" / "1.png").write_bytes(b"not an image")
    (tmp_path / "cat" / "2.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:30])
    (tmp_path / "cat" / "notes.txt").write_text("")
    result = evaluation.evaluate(PixelClassifier(), labeled.from_folder(tmp_path), batch_size=2)
    assert result.outputs.names == ("bee/0.png", "bee/2.png", "cat/0.png", "cat/1.png") and result.accuracy == 1.0
    assert len(result.unreadable) == 2
    assert "bee/1.png cannot be decoded" in result.unreadable[0] and "cat/2.png" in result.unreadable[1]


def test_encoded_images_are_decoded_and_errors_of_reading_are_kept():
    buffer = io.BytesIO()
    Image.fromarray(image_of(1)[..., 0]).save(buffer, "PNG")
    examples = [
        labeled.Example("0", buffer.getvalue(), "bee"),
        labeled.Example("1", b"broken", "bee"),
        labeled.Example("2", RunError("record 2 cannot be read"), None),
        labeled.Example("3", buffer.getvalue(), "bee"),
    ]
    result = evaluation.evaluate(PixelClassifier(), labeled.LabeledImages("x", ("bee",), 4, lambda: iter(examples)))
    assert result.accuracy == 1.0 and result.outputs.names == ("0", "3")
    assert "image 1 of x cannot be decoded" in result.unreadable[0]
    assert result.unreadable[1] == "record 2 cannot be read"


def test_if_no_image_can_be_read_the_first_is_named(tmp_path):
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "1.png").write_bytes(b"not an image")
    with pytest.raises(RunError, match=r"none of the 1 images of .* can be read; the first: .*bee/1.png"):
        evaluation.evaluate(PixelClassifier(), labeled.from_folder(tmp_path))


def test_outputs_that_are_not_finite_have_no_figures():
    model = PixelClassifier()
    model.logits_of_decoded = lambda decoded, batch_size: np.full((len(decoded), 7), np.nan, np.float32)
    with pytest.raises(RunError, match="outputs for 1 of 1 images of images are not finite"):
        evaluation.evaluate(model, labeled.from_pairs([image_of(0)], ["ant"], CLASSES))


def test_labels_are_names_or_indices_of_classes():
    by_index = labeled.from_pairs([image_of(1), image_of(2)], np.array([1, 2]), CLASSES)
    by_name = labeled.from_pairs([image_of(1), image_of(2)], ["bee", "cat"], CLASSES)
    assert [example.label for example in by_index.examples()] == [example.label for example in by_name.examples()]
    with pytest.raises(ValueError, match="label 7 is outside the model's 7 classes"):
        labeled.from_pairs([image_of(1)], [7], CLASSES)
    with pytest.raises(ValueError, match="1 images and 2 labels"):
        labeled.from_pairs([image_of(1)], [1, 2], CLASSES)
    with pytest.raises(TypeError, match="all names of classes, or all indices"):
        labeled.from_pairs([image_of(1)] * 2, [1, "bee"], CLASSES)
    with pytest.raises(TypeError, match="give a folder, or a pair"):
        evaluation.as_labeled(3, CLASSES)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("ours", "theirs"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_class_is_matched_whichever_form_of_unicode_its_name_has(ours, theirs, tmp_path):
    for name, index in ((theirs, 1), ("ant", 0)):
        (tmp_path / name).mkdir()
        Image.fromarray(image_of(index)[..., 0]).save(tmp_path / name / "1.png")
    outputs = evaluation.compute_outputs(PixelClassifier(("ant", ours)), labeled.from_folder(tmp_path), 8)
    assert sorted(outputs.labels) == [0, 1] and outputs.unknown_classes == {}
    result = evaluate(outputs, classes=("ant", ours))
    assert result.accuracy == 1.0 and not result.missing_classes


def test_a_class_of_the_very_name_comes_before_those_that_look_like_it():
    assert evaluation.match_classes((DECOMPOSED, COMPOSED, "x"), (COMPOSED, DECOMPOSED)) == {DECOMPOSED: 1, COMPOSED: 0}
    assert evaluation.match_classes((DECOMPOSED, COMPOSED), ("a", COMPOSED)) == {DECOMPOSED: 1, COMPOSED: 1}
