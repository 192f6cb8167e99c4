#!/usr/bin/env python3
"""The floor: read these folders' weights, write as many bytes as LIKE has, durably, and compute nothing at all.

    python scripts/benchmarks/peers/floor.py OUT LIKE FOLDER...

Two threads, one reused buffer each, plain system calls, space reserved first: what a program made of nothing but input
and output would take. No other program with the same input and output, and the same promise of durability, is faster
by much.
"""

from __future__ import annotations

import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 4 << 20
THREADS = 2


def main() -> None:
    """Read and write in both threads, in turns, as a program would that computes in between."""
    out, like, *folders = (Path(argument) for argument in sys.argv[1:])
    out.mkdir()
    output = os.open(out / "floor.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    size = sum(path.stat().st_size for path in like.glob("*.safetensors"))
    os.posix_fallocate(output, 0, size)
    inputs = [os.open(path, os.O_RDONLY) for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    reads = [(file, at) for file in inputs for at in range(0, os.fstat(file).st_size, BLOCK)]
    writes = [(output, at) for at in range(0, size, BLOCK)]
    # (how far through its list, file, position), so that both lists end together
    steps = sorted((index / len(part), *step) for part in (reads, writes) for index, step in enumerate(part))

    def work(number: int) -> None:
        buffer = memoryview(mmap.mmap(-1, BLOCK))  # page-aligned
        for _, file, at in steps[number::THREADS]:
            if file == output:
                os.pwrite(file, buffer[: size - at], at)
            else:
                os.preadv(file, [buffer], at)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    os.fsync(output)


if __name__ == "__main__":
    main()
