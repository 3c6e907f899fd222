"""A stand-in for the training program, for programs that start it many times."""

import json
import pathlib
import sys

import pytest

from experiments.runner import jobs, progress


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake_run.py in place of patchnets.main; a function that returns what it was told so far."""
    monkeypatch.setattr(jobs, "PROGRAM", (sys.executable, str(pathlib.Path(__file__).with_name("fake_run.py"))))
    monkeypatch.setattr(jobs.config_lib, "config_hash", lambda config: "hash")
    monkeypatch.setattr(jobs, "POLL", 0.02)
    monkeypatch.setattr(progress.machine, "gpus", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    notes = tmp_path / "notes"
    notes.touch()
    monkeypatch.setenv("NOTES", str(notes))
    return lambda: [json.loads(line) for line in notes.read_text().splitlines()]
