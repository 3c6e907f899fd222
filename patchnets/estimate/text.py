"""Print the figures of an estimate in lines of at most 100 characters."""

from collections.abc import Iterator, Mapping
from typing import Any

from patchnets.run.console import epochs
from patchnets.runtime.format import format_bytes, format_count, format_duration

WIDTH = 100


def format_report(figures: Mapping[str, Any]) -> str:
    """Return the report as text."""
    parts = (_title, _network, _memory, _collectives, _batch, _run, _host)
    return "\n".join(line for part in parts for line in part(figures))


def _row(head: str, text: str) -> str:
    return f"{head:<13}{text}"


def _title(figures: Mapping[str, Any]) -> Iterator[str]:
    network, devices, data = figures["network"], figures["devices"], figures["data"]
    name = f"{network['name']} {network['variant'] or ''}".strip()
    counts = ", ".join(f"{role} {count:,}" for role, count in data["examples"].items())
    devices_text = f"{devices['count']} x {devices['kind']}"
    devices_text += f", topology {devices['topology']}: compiled ahead, not run" if devices["topology"] else ""
    yield _row("network", f"{name} on images of {network['image_size']} px, {network['tokens']:,} tokens each")
    yield _row("data", f"{data['name']}: {counts} images; {data['classes']:,} classes")
    yield _row("", f"sizes {data['source']}")
    yield _row("devices", devices_text)
    if devices["count"] > 1:
        mesh = devices["mesh"]
        layout = "whole on each" if mesh["fsdp"] == 1 else f"split over {mesh['fsdp']}"
        yield _row("", f"mesh: data {mesh['data']}, fsdp {mesh['fsdp']}; parameters are {layout}")


def _network(figures: Mapping[str, Any]) -> Iterator[str]:
    network, batch = figures["network"], figures["run"]["batch_size"]
    yield ""
    yield _row("parameters", f"{network['parameters']:,}")
    yield _row(
        "an image",
        f"{format_count(network['macs'])}MACs forward (multiply-accumulates), {format_count(network['flops'])}FLOPs",
    )
    yield _row(
        "", f"{format_count(network['training_flops'])}FLOPs in training, taken as {network['passes']} x forward"
    )
    yield _row("a step", f"{format_count(network['step_flops'])}FLOPs for {batch:,} images")


def _memory(figures: Mapping[str, Any]) -> Iterator[str]:
    memory, devices, data = figures["memory"], figures["devices"], figures["data"]
    yield ""
    yield "memory of each device" + (", as XLA plans it" if memory["compiled"] else "")
    held = {name: part["per_device"] for name, part in memory["state"].items() if part["per_device"] >= 2**10}
    held |= {"images": data["input_bytes"]}
    if compiled := memory["compiled"]:
        yield f"  arguments    {format_bytes(compiled['arguments']):>11}  the state and images, before a step"
    for name, count in held.items():
        yield f"    {name:<12}{format_bytes(count):>10}"
    if compiled:
        temporaries, aliased = format_bytes(compiled["temporaries"]), format_bytes(compiled["aliased"])
        yield f"  temporaries  {temporaries:>11}  activations, gradients and the like, during a step"
        yield f"  outputs      {format_bytes(compiled['outputs']):>11}  the state after a step"
        yield f"  aliased      {aliased:>11}  outputs that reuse the arguments' memory"
        if compiled["program"]:
            yield f"  program      {format_bytes(compiled['program']):>11}  its instructions"
        yield f"  needed       {format_bytes(memory['needed']):>11}  arguments, temporaries, outputs less aliased" + (
            ", program" if compiled["program"] else ""
        )
        if devices["kind"] != "cpu":  # on the CPU XLA leaves out temporaries
            yield f"  peak         {format_bytes(compiled['peak']):>11}  by XLA's own count, for comparison"
    else:
        yield f"  refused      {memory['refused']}"
    yield f"  {_verdict(memory, devices)}"
    if replicated := memory["replicated_arrays"]["arrays"]:
        yield (
            f"  {replicated} arrays, {format_bytes(memory['replicated_arrays']['bytes'])}, have no dimension that "
            "divides: whole on each"
        )


def _verdict(memory: Mapping[str, Any], devices: Mapping[str, Any]) -> str:
    if devices["memory"] is None:
        return "unknown whether it fits: the device does not report its memory; give --memory=GIB"
    there = f"{format_bytes(devices['memory'])} ({devices['memory_source']})"
    return f"fits into {there}" if memory["fits"] else f"DOES NOT FIT into {there}"


def _collectives(figures: Mapping[str, Any]) -> Iterator[str]:
    sent = figures["collectives"]
    if figures["devices"]["count"] == 1 or figures["memory"]["compiled"] is None:
        return
    yield ""
    yield "communication in a step: number of operations, and bytes of the results on each device"
    if sent is None:
        yield "  not known: XLA cannot print this program"
        return
    for collective in sent:
        yield f"  {collective['kind']:<19}{collective['count']:>8,}  {format_bytes(collective['bytes']):>11}"
    if not sent:
        yield "  nothing"


def _batch(figures: Mapping[str, Any]) -> Iterator[str]:
    run, devices = figures["run"], figures["devices"]
    parts = f", in {run['grad_accum_steps']} parts" if run["grad_accum_steps"] > 1 else ""
    yield ""
    yield _row("batch", f"{run['batch_size']:,} images, {run['batch_size'] // devices['count']:,} a device{parts}")
    if largest := figures["largest_batch"]:
        each = largest["batch_size"] // devices["count"]
        text = f"{largest['batch_size']:,} images, {each:,} a device, with {format_bytes(largest['needed'])}; compiled"
        yield _row("  largest", text)
    for i, suggestion in enumerate(figures["suggestions"]):
        yield _row("" if i else "  would fit", f"{suggestion['keys']}: {format_bytes(suggestion['needed'])}; compiled")
    if figures["memory"]["fits"] is False and not figures["suggestions"]:
        yield _row("", "nothing tried fits: more devices, a smaller batch or a smaller network")


def _run(figures: Mapping[str, Any]) -> Iterator[str]:
    run = figures["run"]
    length = epochs(run["steps"] / run["steps_per_epoch"])
    yield _row("run", f"{run['steps']:,} steps ({length} of {run['steps_per_epoch']:,}), {run['images']:,} images")
    if run["seconds"] is None:
        yield _row("time", "not estimated: give --images-per-second=N, or --measure on the devices themselves")
        return
    yield _row(
        "time", f"{format_duration(run['seconds'])} at {run['images_per_second']:,.0f} images/s ({run['rate_source']});"
    )
    yield _row("", "evaluations, saving and starting not counted")


def _host(figures: Mapping[str, Any]) -> Iterator[str]:
    data, checkpoints = figures["data"], figures["checkpoints"]
    yield _row("host memory", f"{format_bytes(data['host_bytes'])} for input: {data['loader']}, {data['host_holds']}")
    each, kept = format_bytes(checkpoints["bytes"]), checkpoints["kept"]
    text = (
        f"{format_bytes(checkpoints['total_bytes'])} for checkpoints: the latest {kept - 1} and the best, {each} each"
    )
    yield _row("disk", text)
