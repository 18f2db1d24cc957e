"""The edge on aarch64 without a board: do its packages resolve, does it import, do encoders compute what they do here?

`python -m bench.aarch64` (`make aarch64`) makes a Debian root for arm64 with mmdebstrap, puts aarch64 wheels of
`lineside[edge-cpu]` beside it, and runs bench/aarch64_self_test.py in it under qemu's user mode: no container, no
binfmt, no rights beyond apt's. `--resolve` only asks pip's resolver what a JetPack would get. Exit code 6 when
something does not hold.

ONNX Runtime is 1.23.2, the last with wheels for Python 3.10; 1.31 crashes under qemu 7.2, which says nothing of boards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from packaging.requirements import Requirement

from lineside.cli import tell
from lineside.config import load

ROOT = Path(__file__).resolve().parents[1]
ONNXRUNTIME = "onnxruntime==1.23.2"
FIRST_GLIBC = 17  # manylinux2014
SUITE, GUEST_PYTHON = "bookworm", "3.11"
PACKAGES = "python3,libstdc++6,libportaudio2,libgomp1,ca-certificates"
SHOWN = ("numpy", "onnxruntime", "opencv-python-headless", "av", "msgspec", "tuf", "cryptography", "paho-mqtt")
FAR = 1e-5  # of 1 - cosine between two machines: float32 in another order


class Unresolved(Exception):
    """pip finds no set of packages; in its own words."""


@dataclass(frozen=True)
class Target:
    """A Python on a device, and the newest glibc 2.x whose wheels it takes."""

    name: str
    python: str
    glibc: int


TARGETS = (Target("JetPack 6", "3.10", 35), Target("Debian 12", GUEST_PYTHON, 36), Target("JetPack 7", "3.12", 39))


def main() -> None:
    """Print tables of Markdown; exit code 6 when something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("var/aarch64"), help="what is made once stays here")
    parser.add_argument("--encoders", type=Path, nargs="*", default=[], help="further encoder files or folders")
    parser.add_argument("--resolve", action="store_true", help="only ask the resolver")
    asked = parser.parse_args()
    if reason := why_not():
        sys.exit(f"aarch64: {reason}")
    held = _tell_resolved()
    if not asked.resolve:
        work = asked.work.resolve()
        held &= _tell_run(work, [*_made(work / "encoders"), *_files(asked.encoders)])
    sys.exit(0 if held else 6)


def why_not() -> str:
    """Why it cannot be done on this machine; empty where it can."""
    missing = [name for name in ("mmdebstrap", "apt-get", "dpkg") if shutil.which(name) is None]
    return f"needs {', '.join(missing)} (Debian)" if missing else ""


# ---- packages


def platforms(glibc: int) -> list[str]:
    """Platform tags that a device takes. pip takes each literally and never widens one, so all are listed.

    >>> platforms(18)
    ['linux_aarch64', 'manylinux2014_aarch64', 'manylinux_2_17_aarch64', 'manylinux_2_18_aarch64']
    """
    ladder = [f"manylinux_2_{minor}_aarch64" for minor in range(FIRST_GLIBC, glibc + 1)]
    return ["linux_aarch64", "manylinux2014_aarch64", *ladder]


def requirements(project: dict[str, Any], extra: str, python: str) -> list[str]:
    """What `lineside[extra]` needs on a Python of this version, extras of our own resolved.

    pip judges markers by the Python that it runs on, not by the one that it is asked for.

    >>> project = {"dependencies": ["a", "b; python_version < '3.11'"]}
    >>> project["optional-dependencies"] = {"x": ["c>=1"], "y": ["lineside[x]", "d"]}
    >>> requirements(project, "y", "3.10"), requirements(project, "y", "3.12")
    (['a', 'b', 'c>=1', 'd'], ['a', 'c>=1', 'd'])
    """
    needed, waiting = [], [*project["dependencies"], *project["optional-dependencies"][extra]]
    for each in map(Requirement, waiting):  # `waiting` grows while we go
        if each.marker is not None and not each.marker.evaluate({"python_version": python}):
            continue
        if each.name == "lineside":
            waiting += [one for own in sorted(each.extras) for one in project["optional-dependencies"][own]]
        else:
            each.marker = None
            needed.append(str(each))
    return needed


def resolved(target: Target, extra: str) -> dict[str, str]:
    """Versions by package that pip would install. Raises Unresolved when it finds no set."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--report", str(report), "--target", folder]
        _pip(target, [*options, *requirements(_project(), extra, target.python)])
        found = json.loads(report.read_bytes())["install"]
    return {one["metadata"]["name"].lower(): one["metadata"]["version"] for one in found}


def _pip(target: Target, arguments: list[str]) -> None:
    tags = [word for tag in platforms(target.glibc) for word in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", target.python, *tags, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Unresolved(next((line for line in done.stderr.splitlines() if "ERROR" in line), done.stderr[-200:]))


def _project() -> dict[str, Any]:
    project: dict[str, Any] = load(ROOT / "pyproject.toml", dict)["project"]
    return project


def _tell_resolved() -> bool:
    print(f"| aarch64 | Python | glibc | `[edge]` | `[edge-cpu]` | {' | '.join(SHOWN)} |\n{'|---' * (5 + len(SHOWN))}|")
    held = True
    for target in TARGETS:
        tell(f"resolving for {target.name}")
        try:
            edge, whole = resolved(target, "edge"), resolved(target, "edge-cpu")
        except Unresolved as error:
            held = False
            print(f"| {target.name} | {target.python} | 2.{target.glibc} | does not resolve: {error} |")
            continue
        versions = " | ".join(whole.get(name, "–") for name in SHOWN)
        print(f"| {target.name} | {target.python} | 2.{target.glibc} | {len(edge)} | {len(whole)} | {versions} |")
    tell("")
    return held


# ---- a machine


def emulator(work: Path) -> Path:
    """qemu for aarch64 programs, unpacked and not installed."""
    program = work / "qemu" / "usr" / "bin" / "qemu-aarch64-static"
    if not program.exists():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["apt-get", "download", "-q", "qemu-user-static"], cwd=folder, check=True, stdout=sys.stderr)
            [package] = Path(folder).glob("*.deb")
            subprocess.run(["dpkg", "-x", str(package), str(work / "qemu")], check=True)
    return program


def guest(work: Path) -> Path:
    """A Debian root for arm64, its packages unpacked and not configured: nothing of it has to run for that."""
    root = work / "root"
    if not (root / "usr" / "bin" / f"python{GUEST_PYTHON}").exists():
        command = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={PACKAGES}"]
        subprocess.run([*command, SUITE, str(root)], check=True)
    return root


def wheels(work: Path) -> Path:
    """The edge's packages for the guest's Python."""
    site = work / "site"
    if not (site / "onnxruntime").exists():
        [target] = [each for each in TARGETS if each.python == GUEST_PYTHON]
        needed = [one for one in requirements(_project(), "edge-cpu", GUEST_PYTHON) if "onnxruntime" not in one]
        _pip(target, ["--target", str(site), *needed, ONNXRUNTIME])
    return site


def _made(folder: Path) -> list[Path]:
    """Encoders as they are exported, with random weights: our own trunks and those of realistic size."""
    for name, more in (("own", ["--own"]), ("realistic", [])):
        if not (folder / name).exists():
            tell(f"exporting {name} encoders")
            command = [sys.executable, "-m", "bench.realistic_encoders", "--out", str(folder / name), *more]
            subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT)
    return [*_files([ROOT / "tests" / "data"]), *_files([folder])]


def _files(paths: list[Path]) -> list[Path]:
    return [file.resolve() for path in paths for file in (sorted(path.rglob("*.onnx")) if path.is_dir() else [path])]


def self_tested(command: list[str], path: str, outputs: Path, files: list[Path]) -> dict[str, Any]:
    """What bench/aarch64_self_test.py tells, run by this Python with this PYTHONPATH; embeddings in `outputs`."""
    script = [str(ROOT / "bench" / "aarch64_self_test.py"), str(outputs), *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *script], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _tell_run(work: Path, files: list[Path]) -> bool:
    work.mkdir(parents=True, exist_ok=True)
    root, site = guest(work), wheels(work)
    tell("running on aarch64")
    there = [str(emulator(work)), "-L", str(root), str(root / "usr" / "bin" / f"python{GUEST_PYTHON}")]
    far, here = work / "aarch64.npz", work / "here.npz"
    told = self_tested(there, f"{ROOT}:{site}", far, files)
    ours = self_tested([sys.executable], str(ROOT), here, files)
    tell("")
    print(f"\n{told['machine']}, Python {told['python']}, onnxruntime {told['onnxruntime']}, against", end=" ")
    print(
        f"{ours['machine']}, onnxruntime {ours['onnxruntime']}: {told['imported']} modules of edge and lineside", end=""
    )
    print(f" import, {len(told['failed'])} do not{''.join(f'; {n}: {why}' for n, why in told['failed'].items())}\n")
    return _compare(told, np.load(far), np.load(here), files) and not told["failed"]


def _compare(told: dict[str, Any], far: Any, here: Any, files: list[Path]) -> bool:
    print("| encoder | self-test, 1 - cosine | tolerance | to x86, 1 - cosine | largest difference | held |")
    print("|---" * 6 + "|")
    held = True
    for file in files:
        name, test = label(file), told["self_tests"][str(file)]
        one, other = far[str(file)], here[str(file)]
        cosine = float(np.max(1 - (unit(one) * unit(other)).sum(1)))
        fine = test["worst"] <= test["tolerance"] and cosine <= max(FAR, test["tolerance"])
        held &= fine
        worst, most = max(0.0, test["worst"]), np.abs(one - other).max()
        print(
            f"| {name} | {worst:.1e} | {test['tolerance']:.0e} | {max(0.0, cosine):.1e} | {most:.1e} | {_said(fine)} |"
        )
    return held


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Vectors (n, dim) at unit norm, exactly enough to tell 1e-12 of 1 - cosine.

    >>> unit(np.array([[3, 4]], np.float32)).tolist()
    [[0.6, 0.8]]
    """
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def label(file: Path) -> str:
    """Folder and file of an encoder.

    >>> label(Path("var/own/camera-1.int8.onnx"))
    'own/camera-1.int8'
    """
    return f"{file.parent.name}/{file.name.removesuffix('.onnx')}"


def _said(held: bool) -> str:
    return "yes" if held else "**no**"


if __name__ == "__main__":
    main()
