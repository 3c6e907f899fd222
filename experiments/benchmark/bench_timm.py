"""Measure timm: its network, AdamW, and prepared batches in memory. Runs in a worker process.

timm: eager, contiguous memory format; timm-channels-last: channels_last; timm-compiled: torch.compile, with
channels_last for ConvMixer, where it is faster. bfloat16 uses autocast.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.benchmark.ipc import Exchange, Message, peak_memory_mib
from experiments.benchmark.timm_networks import build, timm
from experiments.benchmark.workloads import TUTORIALS, WORKLOADS, Workload

READY = 4  # number of different batches


def forward_flops(model: str) -> int:
    """Return the FLOPs per image counted by PyTorch on the meta device: two per multiply-accumulate."""
    from torch.utils.flop_counter import FlopCounterMode

    workload, counter = WORKLOADS[model], FlopCounterMode(display=False)
    with torch.device("meta"), counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        build(model).eval()(torch.zeros(1, workload.channels, workload.image_size, workload.image_size))
    return counter.get_total_flops()


def batches(workload: Workload, spec: Message, device: str, memory_format: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return batches of normalized floats, or of stored uint8 images for the evaluation of a tutorial."""
    torch.manual_seed(0)
    stored = spec["work"] == "eval" and spec["model"] in TUTORIALS
    side = workload.stored if stored else workload.image_size
    shape = (spec["batch"], workload.channels, side, side)
    ready = []
    for _ in range(READY):
        images = torch.randint(0, 256, shape, dtype=torch.uint8) if stored else torch.randn(shape)
        labels = torch.randint(0, workload.classes, (spec["batch"],))
        ready.append((images.to(device, **memory_format), labels.to(device)))
    return ready


def trainer(network: Any, workload: Workload, autocast: Callable[[], Any], device: str) -> Callable[[Any, Any], None]:
    """Return a training step."""
    settings: dict[str, Any] = dict(fused=True) if device == "cuda" else {}
    optimizer = torch.optim.AdamW(network.parameters(), lr=workload.learning_rate, weight_decay=1e-4, **settings)
    network.train()

    def step(images: Any, labels: Any) -> None:
        with autocast():
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def evaluator(network: Any, workload: Workload, autocast: Callable[[], Any]) -> Callable[[Any, Any], None]:
    """Return an evaluation step: prepare, classify, count."""
    network.eval()
    size = workload.image_size
    correct = 0

    def step(images: Any, labels: Any) -> None:
        nonlocal correct
        with torch.inference_mode(), autocast():
            if images.dtype == torch.uint8:
                images = (images.float() - 127.5) / 64
                if images.shape[-1] != size:
                    images = F.interpolate(images, (size, size), mode="bilinear")
            correct = correct + (network(images).argmax(-1) == labels).sum()

    return step


def run(spec: Message, exchange: Exchange) -> Message:
    """Build, run the first step, and serve turns; return the last message."""
    workload = WORKLOADS[spec["model"]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 on a GPU, JAX's default
    torch.backends.cudnn.benchmark = True
    network: Any = build(spec["model"])
    compiled = spec["competitor"] == "timm-compiled"
    last = spec["competitor"] == "timm-channels-last" or (compiled and "convmixer" in spec["model"])
    memory_format: dict[str, Any] = dict(memory_format=torch.channels_last) if last else {}
    network = network.to(device, **memory_format)
    if compiled:
        network = torch.compile(network)
    half = spec["dtype"] == "bfloat16"
    autocast: Callable[[], Any] = (lambda: torch.autocast(device, torch.bfloat16)) if half else contextlib.nullcontext
    data = batches(workload, spec, device, memory_format)
    if spec["work"] == "train":
        step = trainer(network, workload, autocast, device)
    else:
        step = evaluator(network, workload, autocast)
    step(*data[0])
    wait()
    first_step_seconds = time.time() - spec["spawned"]
    each = 0.0  # seconds per step in the last turn

    def run_for(seconds: float) -> int:
        """Run the number of steps that the last turn predicts, so that the device is synchronized once."""
        nonlocal each
        began, count = time.perf_counter(), 0
        least = max(1, round(seconds / each)) if each else 1
        while count < least or (not each and time.perf_counter() - began < seconds):
            step(*data[count % READY])
            count += 1
            if not each:
                wait()
        wait()
        each = (time.perf_counter() - began) / count
        return count

    exchange.tell(
        ready=first_step_seconds,
        params=sum(p.numel() for p in network.parameters()),
        macs=forward_flops(spec["model"]) // 2,
        versions={"torch": torch.__version__, "timm": timm.__version__},
    )
    exchange.serve(run_for)
    mib = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_memory_mib()
    return {"peak_memory_mib": mib}
