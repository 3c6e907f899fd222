"""The program that compares decoders, on a few images and without tf.data, which takes long to import."""

import json
import re

import numpy as np
import pytest

from experiments.micro import decoding


def test_photographs_are_jpegs_of_the_size_and_weight_of_imagenets():
    images = decoding.photographs(3, 500, 375)
    assert all(data[:2] == b"\xff\xd8" for data in images) and len(set(images)) == 3
    assert 60_000 < np.mean([len(data) for data in images]) < 160_000


@pytest.mark.slow
def test_every_way_is_measured_on_both_sizes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(decoding, "tf_data", lambda antialias: None)
    out = tmp_path / "rates.json"
    assert decoding.main(["decoding", "--rounds=1", "--images=2", f"--out={out}"]) == 0
    text, actual = capsys.readouterr().out, json.loads(out.read_text())
    for size in ("500x375", "2000x1500"):
        rates = actual[size]["images_per_second"]
        assert len(rates) >= 4 and all(rate > 0 for rate in rates.values())
        for name, rate in rates.items():
            assert re.search(rf"^  {re.escape(name)} +{rate:.0f}$", text, re.MULTILINE), (name, rate)
    assert actual["500x375"]["images_per_second"]["patchnets"] > actual["2000x1500"]["images_per_second"]["patchnets"]


@pytest.mark.slow
def test_streaming_reports_memory_and_rates(tmp_path):
    rows = decoding.stream(tmp_path, 1 / 30, 0)
    assert rows and all(row["own_mib"] > 20 and row["images_per_second"] > 0 for row in rows)
