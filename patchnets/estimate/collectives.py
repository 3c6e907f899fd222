"""Collective operations between devices, read from the text of a compiled program."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<result>\(.*?\)|\S+) (?P<kind>[\w\-]+)\(")
_CALLED = re.compile(r"(?:calls|body|called_computations|branch_computations)=\{?([^,}\s]+(?:, ?%[^,}\s]+)*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r" s32\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"\b(pred|[sufbc]\w*?(\d+)\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All operations of one kind: their number in a step, and the bytes of their results on one device."""

    kind: str
    count: int
    bytes: int


def collectives(program: str) -> list[Collective]:
    """Return the collectives in one step of a compiled training program (`compiled.as_text()`).

    Operations in a loop of known length, such as the loop over the blocks of a scanned network, count once per
    iteration. The loop over steps, of unknown length, counts once. A fused all-reduce of which each device keeps a part
    is a reduce-scatter.
    """
    blocks, entry = _computations(program)
    counts, sizes = Counter[str](), Counter[str]()

    def walk(name: str, times: int, scattering: bool) -> None:
        for line in blocks.get(name, ()):
            operation = _OPERATION.match(line)
            if operation is None:
                continue
            kind = operation["kind"].removesuffix("-start")
            if kind in KINDS:
                number, size = times, _result_bytes(operation["result"], kind, started=operation["kind"] != kind)
                kind = "reduce-scatter" if scattering and kind == "all-reduce" else kind
                counts[kind] += number
                sizes[kind] += number * size
                continue
            trips = _trips(line, blocks) if operation["kind"] == "while" else 1
            for inner in _called(line):
                walk(inner, times * trips, scattering or "all-reduce-scatter" in inner)

    walk(entry, 1, False)
    return [Collective(kind, counts[kind], sizes[kind]) for kind in KINDS if counts[kind]]


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Return {name: lines} of every computation, and the name of the entry computation."""
    blocks: dict[str, list[str]] = {}
    entry, inside = "", None
    for line in program.splitlines():
        if head := _HEAD.match(line):
            inside = blocks.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            inside = None
        elif inside is not None:
            inside.append(line)
    return blocks, entry


def _trips(line: str, blocks: dict[str, list[str]]) -> int:
    """Return a loop's iterations: XLA's annotation, or on a TPU the constant in the condition, counting from 0."""
    if noted := _TRIPS.search(line):
        return int(noted[1])
    condition = _CONDITION.search(line)
    lines = blocks.get(condition[1], []) if condition else []
    bounds = [int(bound[1]) for text in lines if (bound := _BOUND.search(text))]
    compares = [text for text in lines if " compare(" in text]
    return bounds[0] if len(bounds) == len(compares) == 1 and "direction=LT" in compares[0] else 1


def _called(line: str) -> Iterator[str]:
    for group in _CALLED.findall(line):
        yield from (name.strip().lstrip("%") for name in group.split(","))


def _result_bytes(result: str, kind: str, started: bool) -> int:
    """Return the bytes of an operation's results. A started operation's result tuple holds its operands first."""
    arrays = [_bytes(*match) for match in _ARRAY.findall(result)]
    if started and kind != "all-reduce" and len(arrays) > 1:
        arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[1:2]
    return sum(arrays)


def _bytes(kind: str, bits: str, shape: str) -> int:
    width = 8 if kind == "pred" else int(bits)
    return math.prod(int(length) for length in shape.split(",") if length) * width // 8
