"""What cuts cost a download: bytes that a server sends more than once, by how often it hangs up.

python -m bench.resume --megabytes 20
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
from pathlib import Path

from edge.fetcher import Fetcher
from edge.web import PART_BYTES, Web
from lineside.clock import SystemClock
from tests.range_server import Manners, RangeServer

EVERY_CHUNKS = (2, 8, 64)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--megabytes", type=int, default=20)
    size = words.parse_args().megabytes * 1_000_000
    data = random.Random(1).randbytes(size)
    print(f"a file of {size} bytes, chunks of {PART_BYTES}\n")
    print("| the server | after chunks | requests | sent more than once, bytes | a cut costs, bytes |")
    print("|---|---|---|---|---|")
    for reset in (False, True):
        for every in EVERY_CHUNKS:
            requests, again = measured(data, Manners(cut_after=every * PART_BYTES, reset=reset))
            how = "resets" if reset else "hangs up"
            print(f"| {how} | {every} | {requests} | {again} | {again / max(1, requests - 1):.0f} |")


def measured(data: bytes, manners: Manners) -> tuple[int, int]:
    """Requests, and bytes beyond the file's own, until it is whole."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"{hashlib.sha256(data).hexdigest()}.camera-1.onnx"
        (Path(folder) / name).write_bytes(data)
        server = RangeServer(Path(folder), manners)
        fetcher = Fetcher(Web(), Path(folder) / "kept", SystemClock())
        got = fetcher.download_bytes(f"{server.url}/{name}", len(data))
        server.close()
    assert got == data
    return len(server.ranges), server.sent - len(data)


if __name__ == "__main__":
    main()
