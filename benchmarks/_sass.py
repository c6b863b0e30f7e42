"""The machine instructions of a program that XLA compiled for an NVIDIA GPU."""

import pathlib
import re
import struct
import subprocess
import sys
import tempfile
from typing import Any

# A compiled program is a Riegeli file inside another: blocks of 64 KiB with a header each, and in
# them chunks. https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md
SIGNATURE = bytes.fromhex("83af70d10d884a3f")
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40


def kernels(compiled: Any) -> dict[str, list[str]]:
    """The instructions of each kernel, by name, up to the last exit."""
    found: dict[str, list[str]] = {}
    for cubin in _cubins(bytes(compiled.runtime_executable().serialize())):
        instructions: list[str] = []
        for line in _disassembled(cubin).splitlines():
            if section := re.match(r"\.text\.(\S+):", line.strip()):
                instructions = found.setdefault(section[1], [])
            elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
                instructions.append(instruction[1].strip())
    for instructions in found.values():
        exits = [i for i, instruction in enumerate(instructions) if "EXIT" in instruction]
        del instructions[exits[-1] + 1 :]
    return found


def bytes_stored(instructions: list[str]) -> int:
    """How many bytes one thread writes to global memory when each instruction runs once."""
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    stored = 0
    for instruction in instructions:
        if kind := re.search(r"\bSTG\.E(\S*)", instruction):
            stored += next((widths[w] for w in kind[1].split(".") if w in widths), 4)
    return stored


def _cubins(serialized: bytes) -> list[bytes]:
    import cramjam

    content = _without_blocks(_without_blocks(serialized))
    found: list[bytes] = []
    at = CHUNK_HEADER  # the first chunk is the signature
    while content[at + 24 : at + 25] == b"r":  # a chunk of records
        (size,) = struct.unpack_from("<Q", content, at + 8)
        chunk = content[at + CHUNK_HEADER : at + CHUNK_HEADER + size]
        at += CHUNK_HEADER + size
        sizes, start = _varint(chunk, 1)
        records = chunk[start + sizes :]
        if chunk[:1] == b"s":  # snappy, behind its own length
            _, start = _varint(records, 0)
            records = bytes(cramjam.snappy.decompress_raw(records[start:]))
        found += _elves(records)
    return found


def _without_blocks(data: bytes) -> bytes:
    start = data.index(SIGNATURE)
    return b"".join(data[i + BLOCK_HEADER : i + BLOCK] for i in range(start, len(data), BLOCK))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, and the position after it."""
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return number, at


def _elves(data: bytes) -> list[bytes]:
    """The ELF files in some data, each as long as its tables say."""
    found = []
    for match in re.finditer(rb"\x7fELF", data):
        programs, sections = struct.unpack_from("<QQ", data, match.start() + 32)
        entries = struct.unpack_from("<HHHH", data, match.start() + 54)
        size = max(programs + entries[0] * entries[1], sections + entries[2] * entries[3])
        found.append(data[match.start() : match.start() + size])
    return found


def _disassembled(cubin: bytes) -> str:
    folders = pathlib.Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/nvdisasm")
    program = next(folders, pathlib.Path("nvdisasm"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "-c", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
