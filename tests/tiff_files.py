"""TIFFs of any type, byte order and number of channels, which Pillow cannot write."""

import struct


def tiff(array, byte_order):
    """An uncompressed TIFF of one strip, by the specification (Adobe, TIFF revision 6.0)."""
    mark, code = {"little": (b"II", "<"), "big": (b"MM", ">")}[byte_order]
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    pixels = array.astype(array.dtype.newbyteorder(code)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    bits = 8 * array.dtype.itemsize
    tags = {256: width, 257: height, 259: 1, 262: 2 if channels > 1 else 1, 273: 8, 277: channels}
    tags |= {278: height, 279: len(pixels), 339: kind} | ({338: 0} if channels > 3 else {})
    entries, extra = [], b""
    after = 8 + len(pixels)
    for tag in sorted([*tags, 258]):
        numbers = {258: [bits] * channels, 338: [0] * (channels - 3)}.get(tag, [])
        if len(numbers) > 2:
            entries.append(struct.pack(code + "HHII", tag, 3, len(numbers), after + len(extra)))
            extra += struct.pack(code + "H" * len(numbers), *numbers)
        elif tag == 338:
            entries.append(struct.pack(code + "HHIHH", tag, 3, len(numbers), 0, 0))
        else:
            entries.append(struct.pack(code + "HHII", tag, 4, 1, bits if tag == 258 else tags[tag]))
    directory = struct.pack(code + "H", len(entries)) + b"".join(entries) + bytes(4)
    return mark + struct.pack(code + "HI", 42, after + len(extra)) + pixels + extra + directory
