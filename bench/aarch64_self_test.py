"""Runs on aarch64: imports what a device imports, and every encoder file's golden self-test. One JSON line.

`python bench/aarch64_self_test.py OUTPUTS.npz FILE…` writes the embeddings of the golden windows too, so that whoever
started it can compare them with another machine's.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import platform
import sys
from pathlib import Path
from time import perf_counter

import numpy as np


def main(outputs: Path, files: list[Path]) -> None:
    """Print what was imported and how each file did."""
    imported, failed = _imported()
    import onnxruntime

    embedded, tests = {}, {}
    for file in files:
        tests[str(file)], embedded[str(file)] = _tested(file)
    np.savez(outputs, **embedded)  # type: ignore[arg-type]
    told = {"machine": platform.machine(), "python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
    print(json.dumps({**told, "imported": imported, "failed": failed, "self_tests": tests}))


def _imported() -> tuple[int, dict[str, str]]:
    """How many modules of edge and lineside can be imported, and why the others cannot."""
    done, failed = 0, {}
    for package in map(importlib.import_module, ("lineside", "edge")):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
                done += 1
            except Exception as error:  # noqa: BLE001 - the others are tried all the same
                failed[module.name] = f"{type(error).__name__}: {error}"
    return done, failed


def _tested(file: Path) -> tuple[dict[str, float], np.ndarray]:
    """The self-test of a file, and the embeddings (n, dim) of its golden windows."""
    from edge.encoder import Encoder
    from lineside import release

    encoder = Encoder.load(file)
    made: list[np.ndarray] = []

    def embed(batch: np.ndarray) -> np.ndarray:
        made.append(encoder.embed(batch))
        return made[-1]

    begun = perf_counter()
    worst = release.self_test(encoder.card, embed)
    return {"worst": worst, "tolerance": encoder.card.tolerance, "seconds": perf_counter() - begun}, made[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
