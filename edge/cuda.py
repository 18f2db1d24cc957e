"""NVIDIA's driver, as far as an encoder needs it: which GPU is here, memory on it, copies. `python -m edge.cuda` tells.

CUDA Driver API (libcuda.so.1 comes with every driver, so that nothing is to be installed). A broken driver has been
seen to end the process that asks it: ask in a child (`found`).
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NAME_BYTES = 256
FIND_S = 30.0
VERSIONS = ("/sys/module/nvidia/version", "/etc/nv_tegra_release")  # of the kernel's half: a server's, a Jetson's


@dataclass(frozen=True)
class Gpu:
    """A GPU as a compiled engine depends on it; `driver` is of CUDA's version and the kernel module's."""

    name: str
    capability: str
    driver: str


class Cuda:
    """The first GPU, current in the calling thread. Raises OSError without a driver, RuntimeError without a GPU."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self._do("cuInit", 0)
        self._do("cuDeviceGet", ctypes.byref(self._device), 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._do("cuCtxSetCurrent", context)

    def gpu(self) -> Gpu:
        """What it is."""
        name, driver = ctypes.create_string_buffer(NAME_BYTES), ctypes.c_int()
        self._do("cuDeviceGetName", name, NAME_BYTES, self._device)
        self._do("cuDriverGetVersion", ctypes.byref(driver))
        kernel = [path.read_text().splitlines()[0] for path in map(Path, VERSIONS) if path.exists()]
        capability = f"{self._attribute(MAJOR)}.{self._attribute(MINOR)}"
        return Gpu(name.value.decode(), capability, " ".join([str(driver.value), *kernel]))

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the GPU; they are given back when the process ends."""
        address = ctypes.c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def to_gpu(self, address: int, data: bytes) -> None:
        """Copy `data` there."""
        self._do("cuMemcpyHtoD_v2", ctypes.c_uint64(address), data, ctypes.c_size_t(len(data)))

    def from_gpu(self, address: int, size: int) -> bytes:
        """`size` bytes from there."""
        data = ctypes.create_string_buffer(size)
        self._do("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return data.raw

    def stream(self) -> int:
        """A new stream that waits for the copies above, which may still be under way when they return."""
        handle = ctypes.c_void_p()
        self._do("cuStreamCreate", ctypes.byref(handle), 0)  # CU_STREAM_DEFAULT
        return handle.value or 0

    def wait(self, stream: int) -> None:
        """Until all work of a stream is done."""
        self._do("cuStreamSynchronize", ctypes.c_void_p(stream))

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._do("cuDeviceGetAttribute", ctypes.byref(value), which, self._device)
        return value.value

    def _do(self, name: str, *arguments: object) -> None:
        if code := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name} failed with CUDA error {code}")


def found() -> Gpu | str:
    """The GPU of this machine, asked in a process of its own; else why there is none that can be used."""
    command = [sys.executable, "-m", "edge.cuda"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FIND_S, check=False)
    except subprocess.TimeoutExpired:
        return f"its driver did not answer for {FIND_S:g} s"
    if done.returncode < 0:
        return f"its driver ended the process that asked (signal {-done.returncode})"
    told = json.loads(done.stdout) if done.returncode == 0 else {"problem": f"exit {done.returncode}"}
    return str(told["problem"]) if "problem" in told else Gpu(**told)


def main() -> None:
    """Print what is here, as JSON."""
    try:
        told = asdict(Cuda().gpu())
    except (OSError, RuntimeError) as error:
        told = {"problem": str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
