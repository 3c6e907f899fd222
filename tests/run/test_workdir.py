"""A work directory is written completely or not at all, is locked by one run, and is cut back to its checkpoint."""

import json
import os

import jax
import numpy as np
import pytest

from patchnets import train
from patchnets.config import flatten
from patchnets.errors import UserError
from patchnets.parallel import multihost
from patchnets.run.workdir import Workdir, read_metrics

DATA = {"name": "digits", "examples": {"train": 3}}


def test_it_is_empty_until_it_is_claimed_and_then_holds_the_configuration(tiny_config, tmp_path):
    path = Workdir(tmp_path / "a" / "b", flatten(tiny_config))
    assert path.load_summary() is None
    assert list(tmp_path.iterdir()) == []
    path.acquire(DATA)
    assert json.loads((tmp_path / "a/b/config.json").read_text())["model"]["patch_size"] == 4
    assert json.loads((tmp_path / "a/b/data.json").read_text()) == DATA


OTHER_TYPES = ["", "{", "[1]", "3", "null", "true", '"text"', "NaN", "\x00"]


@pytest.mark.parametrize("name", ["config.json", "data.json"])
@pytest.mark.parametrize("content", OTHER_TYPES)
def test_a_file_of_another_type_is_named_in_one_line(tiny_config, tmp_path, name, content):
    Workdir(tmp_path, flatten(tiny_config)).acquire(DATA)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/{name} cannot be read \(.*\); give another --workdir$"):
        Workdir(tmp_path, flatten(tiny_config)).acquire(DATA)
    assert (tmp_path / name).read_text() == content


SUMMARY = {"best_step": 1, "steps": 2, "epochs": 1.0, "wall_seconds": 3.0, "test_accuracy": 0.5}


@pytest.mark.parametrize("content", [*OTHER_TYPES, "{}", json.dumps(SUMMARY | {"test_accuracy": "0.5"})])
def test_a_summary_that_is_none_does_not_finish_a_run(tiny_config, tmp_path, content):
    path = Workdir(tmp_path, flatten(tiny_config))
    path.acquire(DATA)
    path.release()
    (tmp_path / "summary.json").write_text(content)
    assert path.load_summary() is None
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    assert path.load_summary() == SUMMARY


def test_only_one_at_a_time_may_have_it(tiny_config, tmp_path):
    first, second = (Workdir(tmp_path / "run", flatten(tiny_config)) for _ in range(2))
    first.acquire(DATA)
    for attempt in (second.load_summary, lambda: second.acquire(DATA)):
        with pytest.raises(UserError, match="another process is running"):
            attempt()
    first.release()
    second.acquire(DATA)


def test_processes_know_the_folder_by_a_mark_in_it_which_leaves_nothing(tiny_config, tmp_path):
    first, second, other = (
        Workdir(tmp_path / name, flatten(tiny_config), writes=name == "a/b") for name in ("a/b", "a/../a/b", "c")
    )
    with first.probe_file(7), second.probe_file(7):
        assert (
            second.probe_visible(7, seconds=0)
            and not second.probe_visible(8, seconds=0)
            and not other.probe_visible(7, seconds=0)
        )
    assert list((tmp_path / "a" / "b").iterdir()) == [] and not other.path.exists()
    with pytest.raises(UserError), Workdir(tmp_path / "d" / "e", flatten(tiny_config)).probe_file(7):
        raise UserError("it is not the same")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("theirs", ["the same", "another"])
def test_processes_agree_on_their_folder_and_configuration_or_all_are_told(tiny_config, tmp_path, monkeypatch, theirs):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    theirs_is = lambda value: value if theirs == "the same" else np.zeros_like(value)
    monkeypatch.setattr(multihost, "gather", lambda value: np.array([value, theirs_is(value)]))
    path = Workdir(tmp_path / "run", flatten(tiny_config))
    if theirs == "the same":
        path.check_shared()
        train.check_same_config(flatten(tiny_config))
        return
    with pytest.raises(UserError, match=f"--workdir={tmp_path}/run is not the same folder in process 1"):
        path.check_shared()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="gives process 1 another configuration than process 0"):
        train.check_same_config(flatten(tiny_config))


def test_a_claim_compares_again_what_another_run_wrote_in_the_meantime(tiny_config, tmp_path):
    mine = Workdir(tmp_path / "run", flatten(tiny_config))
    assert mine.load_summary() is None
    other = tiny_config.copy_and_resolve_references()
    other.seed = 5
    theirs = Workdir(tmp_path / "run", flatten(other))
    theirs.acquire(DATA)
    theirs.release()
    with pytest.raises(UserError, match="seed: 5 there, 0 here"):
        mine.acquire(DATA)


def test_where_things_lie_may_change_and_what_figures_hang_on_may_not(tiny_config, tmp_path):
    Workdir(tmp_path / "run", flatten(tiny_config)).acquire(DATA)
    moved = tiny_config.copy_and_resolve_references()
    moved.dataset.cache_dir, moved.checkpoint.max_to_keep, moved.plots = "elsewhere", 7, True
    assert Workdir(tmp_path / "run", flatten(moved)).load_summary() is None
    moved.batch_size = 8
    with pytest.raises(UserError, match=r"\(batch_size: 64 there, 8 here\)"):
        Workdir(tmp_path / "run", flatten(moved)).load_summary()


def test_lines_past_the_checkpoint_and_torn_or_strange_ones_go_and_the_others_stay_to_the_letter(tiny_config, tmp_path):
    path = Workdir(tmp_path, flatten(tiny_config))
    good = [json.dumps({"step": step, "train_loss": 0.5}) for step in (10, 20)]
    strange = [
        json.dumps({"step": 20, "test_loss": 1.0}),
        json.dumps({"step": 20, "best_step": 10, "val_knn": 0.5}),
        json.dumps({"step": 30}),
        "7",
        "{}",
        "\udcff",
        '{"step": 1, "tr',
    ]
    text = "\n".join([good[0], *strange[:3], good[1], *strange[3:]])
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    path.rewind_metrics(20)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == good
    path.append_metrics({"step": 25})
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 25]


def test_a_key_that_an_older_run_does_not_have_counts_as_what_that_version_did(tiny_config, tmp_path):
    older = flatten(tiny_config)
    for name in ("dataset.exif_orientation", "dataset.background", "crop_pct", "cpu.microbatch"):
        older.pop(name, None)
    Workdir(tmp_path / "run", older).acquire({})
    with pytest.raises(UserError, match=r"dataset\.background: none there, white here; dataset\.exif_orientation"):
        Workdir(tmp_path / "run", flatten(tiny_config)).load_summary()
    tiny_config.dataset.exif_orientation, tiny_config.dataset.background = False, "none"
    assert Workdir(tmp_path / "run", flatten(tiny_config)).load_summary() is None


def test_a_start_at_step_0_keeps_the_metrics_of_before_and_says_so(tiny_config, tmp_path, capsys):
    path = Workdir(tmp_path, flatten(tiny_config))
    for count in (1, 2):
        text = json.dumps({"step": 10 * count, "train_loss": 0.5}) + "\n"
        (tmp_path / "metrics.jsonl").write_text(text)
        path.rewind_metrics(0)
        assert (tmp_path / f"metrics-{count}.jsonl").read_text() == text and not (tmp_path / "metrics.jsonl").exists()
        error = capsys.readouterr().err
        assert f"metrics up to step {10 * count} but no checkpoint; starting at step 0" in error
        assert error.count("\n") == 1 and f"metrics-{count}.jsonl" in error
    path.rewind_metrics(0)
    assert capsys.readouterr().err == "" and not (tmp_path / "metrics-3.jsonl").exists()


def test_damaged_lines_of_metrics_cost_no_others(tmp_path, capsys):
    rows = [json.dumps({"step": step}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join([rows[0], '{"step": ', rows[1], "\0", rows[2]]).encode())
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert capsys.readouterr().err.endswith("metrics.jsonl: left out 2 damaged of 5 lines\n")


def test_a_file_that_cannot_be_replaced_is_left_as_it_was(tiny_config, tmp_path, monkeypatch):
    path = Workdir(tmp_path, flatten(tiny_config))
    path.write_text("note", "before")

    def fail(*arguments):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        path.write_text("note", "after")
    assert (tmp_path / "note").read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["note"]
