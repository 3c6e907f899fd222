"""A bit of a checkpoint that changes on the disk is noticed, whatever file it is in."""

import binascii
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from patchnets.errors import RunError, UserError
from patchnets.run import checksums
from patchnets.run.checkpoints import Checkpoints


def state_of(step):
    """Arrays like those of a run: weights, a mean of them, counts, and some that hardly differ from zero."""
    rng = np.random.default_rng(step)
    weights = rng.normal(size=(40, 30)).astype(np.float32)
    params = {"stem": {"kernel": weights, "bias": np.zeros(30, np.float32)}, "head": weights[:7] * 1e-3}
    return {"step": np.int32(step), "params": params, "ema": {"params": params, "batch_stats": {}}, "batch_stats": {}}


def on_devices(tree):
    return jax.tree.map(jax.device_put, tree)


def like():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), on_devices(state_of(1)))


def variables_like():
    return {"params": like()["params"], "batch_stats": {}}


def save(path, steps=(1, 2), accuracies=(0.5, 0.75)):
    checkpoints = Checkpoints(path)
    for step, accuracy in zip(steps, accuracies):
        checkpoints.save(step, on_devices(state_of(step)), {"wall_seconds": step}, {"accuracy": accuracy})
    checkpoints.wait()
    checkpoints.close()
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints; the later is the better one."""
    return save(tmp_path_factory.mktemp("checksums") / "checkpoints")


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(file, position):
    """Change the bit at `position`, counted from the first of a file."""
    content = bytearray(file.read_bytes())
    content[position // 8] ^= 1 << position % 8
    file.write_bytes(content)


def assert_is(state, step):
    expected, actual = (jax.tree_util.tree_leaves_with_path(tree) for tree in (state_of(step), state))
    assert [path for path, _ in expected] == [path for path, _ in actual]
    for (path, leaf), (_, other) in zip(expected, actual):
        np.testing.assert_array_equal(np.asarray(other), leaf, err_msg=jax.tree_util.keystr(path))


def test_each_file_has_its_checksum(saved):
    for step in ("1", "2"):
        stored = json.loads((saved / step / checksums.FILE_NAME).read_text())["crc32"]
        files = {path.relative_to(saved / step).as_posix(): path for path in files_of(saved / step)}
        assert set(files) - set(stored) <= {checksums.FILE_NAME, *checksums.WRITTEN_LATER}
        assert stored == {name: binascii.crc32(files[name].read_bytes()) for name in stored}
        assert "metrics/metrics" in stored and "progress/metadata" in stored
        assert sum(files[name].stat().st_size for name in stored if name.startswith("state/")) > 10_000


def restore_latest(path):
    """(state, progress) of the newest checkpoint that can be read; (state, None) of the best, read only."""
    checkpoints = Checkpoints(path)
    state, progress = checkpoints.restore_latest(like())
    checkpoints.close()
    return state, progress["wall_seconds"]


@pytest.mark.slow
def test_a_flipped_bit_of_the_weights_is_named_and_the_step_before_is_taken(copy, capsys):
    largest = max(files_of(copy / "2" / "state"), key=lambda path: path.stat().st_size)
    flip(largest, largest.stat().st_size * 4)
    name = largest.relative_to(copy / "2").as_posix()
    for which in ("best", "latest", 2):
        checkpoints = Checkpoints(copy, read_only=True)
        with pytest.raises(RunError, match=rf"checkpoint {copy}/2 cannot be read: {name} has changed .* of steps 1$"):
            checkpoints.restore_variables(variables_like(), which, ema=False)
        checkpoints.close()
    assert capsys.readouterr().err == ""
    state, progress = restore_latest(copy)
    assert_is(state, 1)
    assert progress == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"checkpoint {copy}/2 cannot be read: {name} has changed since it was saved"
    assert second == f"skipped and moved to {copy}/unreadable/2"


def test_a_flipped_digit_does_not_make_another_checkpoint_the_best(copy, capsys):
    metrics = copy / "2" / "metrics" / "metrics"
    metrics.write_text(metrics.read_text().replace("0.75", "0.35"))
    checkpoints = Checkpoints(copy, read_only=True)
    step, variables = checkpoints.restore_variables(variables_like(), "best", ema=False)
    assert step == 1
    np.testing.assert_array_equal(variables["params"]["head"], state_of(1)["params"]["head"])
    assert checkpoints.restore_variables(variables_like(), "latest", ema=False)[0] == 1
    with pytest.raises(UserError, match=r"there is no checkpoint of step 2 in .*; kept are those of 1"):
        checkpoints.restore_variables(variables_like(), 2, ema=False)
    checkpoints.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"checkpoint {copy}/2 cannot be read: metrics/metrics has changed since it was saved; it is left out"
    )
    assert {path.name for path in copy.iterdir()} == {"1", "2"}
    checkpoints = Checkpoints(copy)
    step, state, metrics = checkpoints.restore_best(like())
    checkpoints.close()
    assert (step, metrics) == (1, {"accuracy": 0.5})
    assert_is(state, 1)
    assert f"checkpoint {copy}/2 cannot be read: metrics/metrics has changed" in capsys.readouterr().err


def test_a_checkpoint_from_before_checksums_is_restored(copy, capsys):
    (copy / "2" / checksums.FILE_NAME).unlink()
    assert_is(restore_latest(copy)[0], 2)
    assert capsys.readouterr().err == ""


def test_checksums_of_files_that_are_gone_are_a_damaged_checkpoint(copy, capsys):
    (copy / "2" / checksums.FILE_NAME).write_text('{"crc32": {"state/x": 1}}')
    assert_is(restore_latest(copy)[0], 1)
    assert f"checkpoint {copy}/2 cannot be read: " in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"crc32": 3}', "\udcff", "\0" * 300])
def test_a_checkpoint_whose_checksums_cannot_be_read_is_restored_and_said_to_be_unverified(copy, capsys, content):
    (copy / "2" / checksums.FILE_NAME).write_bytes(content.encode(errors="surrogateescape"))
    assert_is(restore_latest(copy)[0], 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{copy}/2/{checksums.FILE_NAME} cannot be read; of the files of this checkpoint 0 are verified, the others "
        "are not"
    )


@pytest.mark.parametrize("damaged", [False, True])
def test_of_torn_checksums_those_that_are_left_are_verified(copy, capsys, damaged):
    """They are cut within a number, which then is another one."""
    path = copy / "2" / checksums.FILE_NAME
    lines = path.read_text().splitlines(keepends=True)
    listed = next(i for i, line in enumerate(lines) if '"state/' in line)
    path.write_text("".join(lines[: listed + 1]) + lines[listed + 1][:-4])
    if damaged:
        flip(copy / "2" / lines[listed].split('"')[1], 8)
    assert_is(restore_latest(copy)[0], 1 if damaged else 2)
    first, *others = capsys.readouterr().err.splitlines()
    assert f"of the files of this checkpoint {listed - 1} are verified, the others are not" in first
    assert bool(others) == damaged


def test_checksums_are_on_the_disk_before_they_have_their_name(copy, monkeypatch):
    events, fsync, replace = [], os.fsync, pathlib.Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("on disk"), fsync(handle)))
    monkeypatch.setattr(pathlib.Path, "replace", lambda *paths: (events.append("named"), replace(*paths)))
    checksums.write_checksums(copy / "2")
    assert events == ["on disk", "named"]


@pytest.mark.slow
def test_any_flipped_bit_is_named_or_changes_nothing(saved, tmp_path, capsys):
    """Fifty bits at random, of each kind of file alike."""
    kinds = {}
    for file in files_of(saved / "2"):
        kinds.setdefault(file.name if file.stat().st_size < 5000 else "data", []).append(file.relative_to(saved))
    rng = np.random.default_rng(0)
    outcomes = {}
    for i in range(50):
        kind = sorted(kinds)[i % len(kinds)]
        file = kinds[kind][rng.integers(len(kinds[kind]))]
        path = shutil.copytree(saved, tmp_path / str(i))
        flip(path / file, rng.integers(8 * (path / file).stat().st_size))
        state, progress = restore_latest(path)
        named = f"checkpoint {path}/2 cannot be read: " in capsys.readouterr().err
        assert_is(state, 1 if named else 2)
        assert progress == (1 if named else 2)
        outcomes.setdefault(kind, []).append(named)
        shutil.rmtree(path)
    unnamed = {kind for kind, named in outcomes.items() if not all(named)}
    assert unnamed <= {*checksums.WRITTEN_LATER, checksums.FILE_NAME}, outcomes
    assert len(outcomes) == len(kinds) >= 6
