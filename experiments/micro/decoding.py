"""Measure decoding, random cropping and resizing of photographs to 224 pixels, and streaming from a folder.

    python -m experiments.micro.decoding [--out=FILE.json] [--rounds=7]
    python -m experiments.micro.decoding --minutes=10 [--workers=N] [--out=FILE.json]

Without --minutes: images/s on one core (by processor time, the median over rounds in which all methods take turns) for
JPEGs of 500 x 375 and 2000 x 1500 pixels, made from scikit-learn's two photographs with noise for texture.
With --minutes: a StreamingLoader reads a folder of such JPEGs; every half minute, the resident memory of this process
and of its workers in MiB, and images/s.
"""

import functools
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from patchnets.data import decode
from patchnets.data.streaming import batch_reader
from patchnets.runtime.cli import ArgumentParser, path, positive_float, positive_int, run_cli

SIZE, LEAST_AREA, ASPECT = 224, 0.08, 4 / 3
NOISE = 11.0  # standard deviation in gray levels; gives ImageNet's 110 KB per JPEG of 500 x 375 pixels
Method = Callable[[list[bytes], int], Any]  # processes all images in the round of that number


def photographs(count: int, width: int, height: int, quality: int = 92) -> list[bytes]:
    """Return JPEGs of different parts of two photographs, with different noise."""
    from sklearn import datasets

    photos = [Image.fromarray(photo) for photo in datasets.load_sample_images().images]
    generator = np.random.default_rng(0)
    jpegs = []
    for i in range(count):
        photo = photos[i % 2]
        share, across, down = generator.uniform(0.7, 1.0), *generator.uniform(0, 1, 2)
        wide = share * min(photo.width, photo.height * width / height)
        high = wide * height / width
        left, top = across * (photo.width - wide), down * (photo.height - high)
        part = photo.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
        noisy = np.asarray(part, np.float32) + generator.normal(0, NOISE, (height, width, 1))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
        jpegs.append(file.getvalue())
    return jpegs


def crop(number: int, image: int) -> Callable[[int, int], tuple[int, int, int, int]]:
    return functools.partial(batch_reader.random_crop, key=(number, image), least_area=LEAST_AREA, aspect=ASPECT)


def each(decode_one: Callable[[bytes, Callable[..., Any]], Any]) -> Method:
    """Return a method that processes images one at a time."""

    def method(images: list[bytes], number: int) -> None:
        for i, data in enumerate(images):
            assert decode_one(data, crop(number, i)).shape == (SIZE, SIZE, 3)

    return method


def part_of(pixels: np.ndarray, choose: Callable[..., Any], height: int, width: int) -> np.ndarray:
    top, left, rows, columns = choose(height, width)
    down, right = pixels.shape[0] / height, pixels.shape[1] / width
    return pixels[round(top * down) : round((top + rows) * down), round(left * right) : round((left + columns) * right)]


def methods() -> Iterator[tuple[str, Method]]:
    """Yield (name, method) of every way to decode, crop and resize whose packages are installed."""

    def ours(data: bytes, choose: Callable[..., Any]) -> np.ndarray:
        return decode.decode_crop(data, "image", 3, SIZE, choose)

    def pillow(data: bytes, choose: Callable[..., Any], kind: Image.Resampling) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        by = decode.reduction(choose(height, width), SIZE)
        image.draft("RGB", (width // by, height // by))
        top, left, rows, columns = choose(height, width)
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
        return np.asarray(image.resize((SIZE, SIZE), kind, box=box))

    yield "patchnets", each(ours)
    yield "Pillow, bicubic", each(functools.partial(pillow, kind=Image.Resampling.BICUBIC))
    yield "Pillow, bilinear", each(functools.partial(pillow, kind=Image.Resampling.BILINEAR))
    try:
        import simplejpeg
    except ImportError:
        return

    def smaller(data: bytes, choose: Callable[..., Any], resize: Callable[..., Any], **options: Any) -> np.ndarray:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        by = decode.reduction(choose(height, width), SIZE)
        least = dict(min_height=-(-height // by), min_width=-(-width // by)) if by > 1 else {}
        return resize(part_of(simplejpeg.decode_jpeg(data, **least, **options), choose, height, width))

    def with_pillow(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    yield "simplejpeg, Pillow bilinear", each(functools.partial(smaller, resize=with_pillow))
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(1)
    area = functools.partial(cv2.resize, dsize=(SIZE, SIZE), interpolation=cv2.INTER_AREA)
    linear = functools.partial(cv2.resize, dsize=(SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    reduced = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}

    def opencv(data: bytes, choose: Callable[..., Any]) -> np.ndarray:
        height, width = decode.image_size(data, "image")
        by = min(decode.reduction(choose(height, width), SIZE), 4)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), reduced[by])
        assert pixels is not None
        return area(cv2.cvtColor(part_of(pixels, choose, height, width), cv2.COLOR_BGR2RGB))

    yield "simplejpeg, OpenCV area", each(functools.partial(smaller, resize=area))
    yield (
        "simplejpeg fast, OpenCV area",
        each(functools.partial(smaller, resize=area, fastdct=True, fastupsample=True)),
    )
    yield "simplejpeg, OpenCV linear, aliased", each(functools.partial(smaller, resize=linear))
    yield "OpenCV, OpenCV area", each(opencv)
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        turbo = TurboJPEG()
    except Exception:  # the package needs a system library
        return

    def turbojpeg(data: bytes, choose: Callable[..., Any]) -> np.ndarray:
        width, height, _, _ = turbo.decode_header(data)[:4]
        by = decode.reduction(choose(height, width), SIZE)
        return area(part_of(turbo.decode(data, TJPF_RGB, scaling_factor=(1, by)), choose, height, width))

    yield "PyTurboJPEG, OpenCV area", each(turbojpeg)


def tf_data(antialias: bool) -> Method | None:
    """Return tf.data's fused decode and crop, with one thread; None without TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError:
        return None
    tf.config.set_visible_devices([], "GPU")

    def decode_one(data: Any) -> Any:
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros([1, 0, 4]),
            aspect_ratio_range=(1 / ASPECT, ASPECT),
            area_range=(LEAST_AREA, 1.0),
            max_attempts=batch_reader.MAX_ATTEMPTS,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.clip_by_value(tf.image.resize(image, (SIZE, SIZE), antialias=antialias), 0, 255), tf.uint8)

    @functools.cache
    def endless(first: bytes, *rest: bytes) -> Any:
        data = tf.data.Dataset.from_tensor_slices([first, *rest]).repeat().map(decode_one)
        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        return data.with_options(options).as_numpy_iterator()

    def method(images: list[bytes], number: int) -> None:
        data = endless(*images)
        for _ in images:
            assert next(data).shape == (SIZE, SIZE, 3)

    return method


def measure(images: list[bytes], rounds: int) -> dict[str, float]:
    """Return {method: images/s on one core}; a warm-up round is not counted."""
    known = dict(methods())
    for name, antialias in (("tf.data fused, aliased", False), ("tf.data fused, antialiased", True)):
        if fused := tf_data(antialias):
            known[name] = fused
    seconds: dict[str, list[float]] = {name: [] for name in known}
    for number in range(rounds + 1):
        for name, method in known.items():
            began = time.process_time()
            method(images, number)
            seconds[name].append(time.process_time() - began)
    return {name: len(images) / statistics.median(times[1:]) for name, times in seconds.items()}


def resident_memory() -> tuple[float, list[float]]:
    """Return the resident MiB of this process, and of each of its children."""
    table = subprocess.run(["ps", "-Ao", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    rows = [[int(field) for field in line.split()] for line in table.splitlines()]
    own = next(rss for pid, _, rss in rows if pid == os.getpid())
    children = [rss for _, parent, rss in rows if parent == os.getpid() and rss > 20 * 1024]  # excludes ps
    return own / 1024, [rss / 1024 for rss in children]


def stream(directory: pathlib.Path, minutes: float, workers: int | None) -> list[dict[str, Any]]:
    """Read a folder of photographs with a StreamingLoader; return one row per half minute."""
    import jax

    from patchnets.data import streaming
    from patchnets.data.sources import folder
    from patchnets.parallel import mesh

    for i, data in enumerate(photographs(512, 500, 375)):
        path = directory / "train" / f"class{i % 8}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    records = folder.Folder(str(directory)).records("train")
    began = time.monotonic()
    loader = streaming.StreamingLoader(
        [(records, 0, len(records))],
        batch_size=128,
        mesh=mesh.arrange_devices(jax.devices(), (jax.device_count(), 1)),
        size=SIZE,
        channels=3,
        num_classes=8,
        seed=0,
        crop_scale_min=LEAST_AREA,
        num_workers=workers,
    )
    rows: list[dict[str, Any]] = []
    step, counted = 0, 0
    loader.step_inputs(step)
    lap = start = time.monotonic()
    print(f"first batch after {start - began:.1f} s; {loader.num_workers} workers", flush=True)
    while time.monotonic() - start < 60 * minutes:
        step += 1
        loader.step_inputs(step)
        if (now := time.monotonic()) - lap >= 30 or now - start >= 60 * minutes:
            own, children = resident_memory()
            rate = (step - counted) * loader.batch_size / (now - lap)
            rows.append(dict(seconds=now - start, own_mib=own, worker_mib=children, images_per_second=rate))
            shown = " ".join(f"{mib:.0f}" for mib in children)
            print(f"{now - start:5.0f} s  this process {own:6.0f}  workers {shown}  {rate:6.0f} images/s", flush=True)
            lap, counted = now, step
    loader.close()
    return rows


def execute(command_line: list[str]) -> int:
    """Measure, print and write the results; return the exit status."""
    parser = ArgumentParser("python -m experiments.micro.decoding", description=__doc__)
    parser.add_argument("--minutes", type=positive_float, help="stream for this time instead of comparing decoders")
    parser.add_argument("--workers", type=int, help="decoding processes (default: cores; 0: threads)")
    parser.add_argument("--rounds", type=positive_int, default=7, help="passes of each method over the images")
    parser.add_argument(
        "--images", type=positive_int, default=48, help="of 500 x 375 pixels; a sixth as many of 2000 x 1500"
    )
    parser.add_argument("--out", type=path, help="write the results to this JSON file")
    arguments = parser.parse_args(command_line)
    results: dict[str, Any] = {}
    if arguments.minutes:
        with tempfile.TemporaryDirectory() as directory:
            results["streaming"] = stream(pathlib.Path(directory), arguments.minutes, arguments.workers)
    else:
        sizes = {(500, 375): arguments.images, (2000, 1500): -(-arguments.images // 6)}
        for (width, height), count in sizes.items():
            images = photographs(count, width, height)
            rates = measure(images, arguments.rounds)
            results[f"{width}x{height}"] = {"bytes": sum(map(len, images)) // count, "images_per_second": rates}
            print(f"{width} x {height} pixels, {sum(map(len, images)) / count / 1000:.0f} KB: images/s on one core")
            for name, rate in sorted(rates.items(), key=lambda pair: -pair[1]):
                print(f"  {name:<36}{rate:8.0f}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
