"""Split specifications select the examples that TFDS selects, and stratified splits are fair and fixed."""

import contextlib
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from patchnets.data import splits
from patchnets.errors import UserError

SIZES = {"train": 1438, "test": 359, "un-labeled": 7}
AWKWARD_SIZES = [1, 2, 3, 7, 10, 37, 99, 101, 250, 1438, 50_000, 1_281_167]
PERCENTAGES = [
    "0.05",
    "1",
    "2.5",
    "7",
    "12.5",
    "33",
    "33.3",
    "33.333",
    "49.95",
    "50",
    "66.6",
    "75",
    "90",
    "99.9",
    "100",
]


def tfds_parts(spec, sizes):
    """What TFDS itself makes of a specification, in the form of splits.parse_split."""
    infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0) for name, size in sizes.items()}
    parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    return [(p.splitname, p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in parts]


def assert_one_line(error):
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec",
    [
        "train",
        "un-labeled",
        "train[:10]",
        "train[10:]",
        "train[3:8]",
        "train[0:1438]",
        "train[-5:]",
        "train[:-5]",
        "train[-5:-2]",
        "train[-1438:]",
        "train[100:-100]",
        "train[:90%]",
        "train[90%:]",
        "train[25%:75%]",
        "train[-25%:]",
        "train[:-25%]",
        "train[-30%:-10%]",
        "train[-100%:100%]",
        "train[33.3%:66.6%]",
        "un-labeled[:50%]",
        "train+test",
        "train + test",
        "train[:10%]+test[-3:]",
        "test[5:]+train[:5]+un-labeled",
        "train[50%:]+train[:50%]",
        "train[:60%]+train[40%:]",
    ],
)
def test_a_spec_selects_what_tfds_selects(spec):
    assert splits.parse_split(spec, SIZES) == tfds_parts(spec, SIZES)


@pytest.mark.parametrize("size", AWKWARD_SIZES)
def test_percentages_of_awkward_sizes_round_as_in_tfds(size):
    sizes, sample = {"train": size}, 0
    full = [str(p) for p in range(101)]
    forms = ["train[:{}%]", "train[{}%:]", "train[:-{}%]", "train[-{}%:]"]
    for form, percent in itertools.product(forms, [*full, *PERCENTAGES]):
        spec = form.format(percent)
        ((_, low, high),) = expected = tfds_parts(spec, sizes)
        if low < high:
            sample += 1
            assert splits.parse_split(spec, sizes) == expected, spec
        else:
            with pytest.raises(UserError, match="holds no examples"):
                splits.parse_split(spec, sizes)
    assert sample > 100


@pytest.mark.parametrize("size", AWKWARD_SIZES)
def test_the_two_sides_of_a_percentage_share_nothing_and_miss_nothing(size):
    for percent in PERCENTAGES:
        parts = []
        for spec in (f"train[:{percent}%]", f"train[{percent}%:]"):
            with contextlib.suppress(UserError):  # one side may be empty
                parts += splits.parse_split(spec, {"train": size})
        assert [low for _, low, _ in parts] == [0, *[high for _, _, high in parts[:-1]]]
        assert parts[-1][2] == size


@pytest.mark.parametrize("spec", ["train[1%:60]", "train[10:60%]", "train[:-10]+test[10%:80]"])
def test_a_slice_of_mixed_units_is_refused_or_means_what_it_means_in_tfds(spec):
    try:
        parts = splits.parse_split(spec, SIZES)
    except UserError:
        return
    assert parts == tfds_parts(spec, SIZES)


@pytest.mark.parametrize("spec", ["validation", "Train", "trai[:10%]", "train+dev", "test[:5]+nothing"])
def test_an_unknown_split_is_an_error_that_names_those_that_exist(spec):
    with pytest.raises(ValueError):
        tfds_parts(spec, SIZES)
    with pytest.raises(UserError, match="there is no") as error:
        splits.parse_split(spec, SIZES)
    assert all(name in str(error.value) for name in (*SIZES, spec))
    assert_one_line(error)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "+",
        "train+",
        "+test",
        "train[",
        "train[:10%",
        "train]",
        "train[]",
        "train[5]",
        "train[90%]",
        "train[a:b]",
        "train[::2]",
        "train[1:2:3]",
        "train[:1.5]",
        "train[:ten%]",
        "train[:--5]",
        "train(:10)",
        "train[:10]test",
        "train,test",
    ],
)
def test_a_spec_that_tfds_cannot_read_is_an_error_that_quotes_it(spec):
    with pytest.raises(ValueError):
        tfds_parts(spec, SIZES)
    with pytest.raises(UserError) as error:
        splits.parse_split(spec, SIZES)
    assert repr(spec) in str(error.value)
    assert_one_line(error)


@pytest.mark.parametrize(
    "spec", ["train[5:5]", "train[8:3]", "train[:0]", "train[1438:]", "train[:0%]", "train[100%:]", "train[-1:1]"]
)
def test_an_empty_slice_is_an_error(spec):
    ((_, low, high),) = tfds_parts(spec, SIZES)
    assert low >= high
    with pytest.raises(UserError, match=r"holds no examples \(train has 1438\)") as error:
        splits.parse_split(spec, SIZES)
    assert_one_line(error)


def test_one_empty_part_of_a_sum_is_an_error():
    with pytest.raises(UserError, match="holds no examples"):
        splits.parse_split("train+test[5:5]", SIZES)


def test_a_split_without_examples_is_an_error():
    with pytest.raises(UserError, match="holds no examples"):
        splits.parse_split("train", {"train": 0})


@pytest.mark.parametrize(
    ("spec", "bound"), [("test[:360]", "360"), ("test[-360:]", "-360"), ("test[1000:2000]", "1000")]
)
def test_a_bound_beyond_the_size_is_an_error_with_both_numbers(spec, bound):
    with pytest.raises(ValueError):
        tfds_parts(spec, SIZES)
    with pytest.raises(UserError, match="beyond") as error:
        splits.parse_split(spec, SIZES)
    assert bound in str(error.value)
    assert "359" in str(error.value)
    assert_one_line(error)


@pytest.mark.parametrize(
    ("spec", "bound"), [("train[:101%]", "101%"), ("train[-150%:]", "-150%"), ("test[:100.1%]", "100.1%")]
)
def test_more_than_a_hundred_percent_is_an_error_that_names_it(spec, bound):
    with pytest.raises(ValueError):
        tfds_parts(spec, SIZES)
    with pytest.raises(UserError, match="beyond 100%") as error:
        splits.parse_split(spec, SIZES)
    assert f" {bound} " in str(error.value)
    assert_one_line(error)


def test_overlap_counts_the_examples_that_two_sums_of_slices_share():
    generator = np.random.default_rng(0)

    def some_parts():
        """Up to three slices without examples in common."""
        cuts = np.sort(generator.choice(40, 6, replace=False))
        names = generator.choice(["train", "test"], 3)
        return [(str(name), int(low), int(high)) for name, low, high in zip(names, cuts[::2], cuts[1::2])]

    def examples(parts):
        return {(name, i) for name, low, high in parts for i in range(low, high)}

    counts = []
    for _ in range(200):
        first, other = some_parts(), some_parts()
        counts.append(splits.overlap(first, other))
        assert counts[-1] == splits.overlap(other, first) == len(examples(first) & examples(other))
    assert min(counts) == 0
    assert max(counts) > 10


def test_overlap_of_touching_slices_and_of_nothing_is_zero():
    assert splits.overlap([("train", 0, 5)], [("train", 5, 9)]) == 0
    assert splits.overlap([("train", 0, 5)], [("test", 0, 5)]) == 0
    assert splits.overlap([], [("train", 0, 5)]) == 0
    assert splits.overlap([("train", 0, 5)], [("train", 0, 5)]) == 5


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_stratified_gives_every_class_its_share(share):
    labels = np.random.default_rng(1).integers(0, 7, 500)
    rest, held = splits.stratified(labels, share)
    assert sorted(np.concatenate([rest, held])) == list(range(500))  # complete, and nothing twice
    for label in range(7):
        total = (labels == label).sum()
        assert abs((labels[held] == label).sum() - share * total) <= 0.5


def test_stratified_mixes_the_classes_in_both_parts():
    labels = np.repeat(np.arange(5), 100)  # sorted by class
    for part in splits.stratified(labels, 0.2):
        fifth = len(part) // 5
        assert len(set(labels[part[:fifth]])) == 5
        assert len(set(labels[part[-fifth:]])) == 5


def test_stratified_is_fixed_by_its_seed_and_leaves_numpys_global_state_alone():
    labels = np.arange(60) % 4
    np.random.seed(3)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = splits.stratified(labels, 0.25)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.random.seed(4)  # noqa: NPY002
    again, other = splits.stratified(labels, 0.25), splits.stratified(labels, 0.25, seed=1)
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other))


def test_stratified_is_the_same_in_every_release():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    rest, held = splits.stratified(labels, 0.2)
    assert rest.tolist() == [6, 3, 4, 7, 14, 0, 12, 8, 9, 1, 10, 13]
    assert held.tolist() == [11, 5, 2]
