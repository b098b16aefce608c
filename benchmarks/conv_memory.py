"""Peak memory of a training step on CPU, a process of its own for `conv_step.py`: names in, bytes as JSON out.

The kernel keeps a process's peak; it is set back before each step. Needs Linux.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

from conv_columns import SHAPES, Shape, training_steps


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the peak), bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def trim() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak(shape: Shape, column: str, dtype: str) -> int:
    """Of model, input and step together."""
    trim()
    before = resident("VmRSS")
    step = training_steps(shape, "cpu", dtype, only=column)[column]
    step.run()
    trim()
    Path("/proc/self/clear_refs").write_text("5")
    step.run()
    return resident("VmHWM") - before


def main(dtype: str, *names: str) -> None:
    shapes = [shape for shape in SHAPES if shape.name in names]
    found = {}
    for shape in shapes:
        columns = list(training_steps(shape, "cpu", dtype))
        for column in columns:
            peak(shape, column, dtype)  # pages of the libraries' code come in on the first
        found[shape.name] = {column: peak(shape, column, dtype) for column in columns}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
