"""A download goes on where it was cut, believes nothing that it kept, and never takes more room than it may."""

from __future__ import annotations

import hashlib
import random
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError, SlowRetrievalError

from deploy import certificates
from edge import fetcher as fetching
from edge.fetcher import Fetcher, Patience
from edge.web import PART_BYTES, Web
from lineside.clock import SystemClock
from lineside.errors import ReleaseError
from tests import tiny_encoder
from tests.range_server import RangeServer
from tests.test_updater import Bench

SIZE = 1_500_000
DATA = random.Random(7).randbytes(SIZE)


class Download:
    """One large file whose name begins with its hash, on a server, and a device that wants it."""

    def __init__(self, folder: Path) -> None:
        self.site, self.kept = folder / "site", folder / "kept"
        self.site.mkdir()
        self.name = f"{hashlib.sha256(DATA).hexdigest()}.camera-1.onnx"
        (self.site / self.name).write_bytes(DATA)
        self.server = RangeServer(self.site)
        self.fetcher = Fetcher(Web(), self.kept, SystemClock())

    def get(self, length: int = SIZE) -> bytes:
        return self.fetcher.download_bytes(f"{self.server.url}/{self.name}", length)

    def parts(self) -> list[int]:
        """The sizes of what is kept."""
        return [path.stat().st_size for path in self.kept.glob("*")]


@pytest.fixture
def download(tmp_path: Path) -> Iterator[Download]:
    made = Download(tmp_path)
    yield made
    made.server.close()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", [2 * PART_BYTES, 3 * PART_BYTES, 7 * PART_BYTES + 1234])
def test_a_server_that_cuts_at_every_kth_chunk_costs_at_most_a_chunk_a_cut(
    download: Download, after: int, reset: bool
) -> None:
    download.server.manners.cut_after, download.server.manners.reset = after, reset
    assert download.get() == DATA
    requests = len(download.server.ranges)
    assert reset or requests == -(-SIZE // after)
    assert download.server.sent - SIZE <= (requests - 1) * PART_BYTES
    assert download.parts() == []


def test_a_cut_that_lasts_is_an_error_and_the_next_look_goes_on(download: Download) -> None:
    download.server.manners.cut_after = 40_000  # less than a chunk: no progress to speak of
    with pytest.raises(DownloadError):
        download.get()
    assert download.parts() == [40_000]
    download.server.manners.cut_after = 0
    assert download.get() == DATA
    assert download.server.ranges == ["", "bytes=40000-"]
    assert download.server.sent == SIZE
    assert download.parts() == []


def test_a_server_without_ranges_sends_the_whole(download: Download) -> None:
    download.server.manners.ranges = False
    download.server.manners.cut_after = 200_000
    with pytest.raises(DownloadError):
        download.get()
    download.server.manners.cut_after = 0
    assert download.get() == DATA


@pytest.mark.parametrize("damage", ["flipped", "zeros behind", "too long", "whole but wrong"])
def test_what_was_kept_is_believed_only_with_its_hash(download: Download, damage: str) -> None:
    download.server.manners.cut_after = 40_000
    with pytest.raises(DownloadError):
        download.get()
    download.server.manners.cut_after = 0
    (path,) = download.kept.glob("*.part")
    kept = bytearray(path.read_bytes())
    if damage == "flipped":
        kept[100] ^= 1
    elif damage == "zeros behind":
        kept += bytes(30_000)
    else:
        kept = bytearray(SIZE + (5 if damage == "too long" else 0))
    path.write_bytes(kept)
    assert download.get() == DATA
    assert download.parts() == []


def test_a_range_that_begins_elsewhere_is_refused(download: Download) -> None:
    download.server.manners.cut_after = 40_000
    with pytest.raises(DownloadError):
        download.get()
    download.server.manners.shift = 1
    with pytest.raises(DownloadError, match="asked for bytes from 40000"):
        download.get()


def test_a_kept_part_beyond_the_end_of_the_file_is_dropped(download: Download) -> None:
    """The server answers 416: what it has is shorter than what was kept."""
    download.kept.mkdir()
    (download.kept / f"{download.name[:64]}.part").write_bytes(bytes(SIZE))
    assert download.get(SIZE + 10) == DATA
    assert download.server.ranges == [f"bytes={SIZE}-", ""]


def test_no_more_than_was_signed_is_taken(download: Download) -> None:
    with pytest.raises(DownloadLengthMismatchError):
        download.get(SIZE - 1)
    assert download.parts() == []
    assert fetching.hash_in(download.name)
    with pytest.raises(DownloadHTTPError):
        download.fetcher.download_bytes(f"{download.server.url}/nowhere", 100)


def test_a_dawdling_server_is_given_up_and_what_came_is_kept(download: Download) -> None:
    download.fetcher = Fetcher(Web(), download.kept, SystemClock(), Patience(grace_s=0.2, bytes_per_s=1e9))
    download.server.manners.trickle, download.server.manners.pause_s = 1_000, 0.01
    with pytest.raises(SlowRetrievalError, match=r"not whole within 0\.2 s"):
        download.get()
    (kept,) = download.parts()
    assert 0 < kept < SIZE
    download.server.manners.pause_s = 0.0
    download.fetcher = Fetcher(Web(), download.kept, SystemClock())
    assert download.get() == DATA
    assert download.server.ranges == ["", f"bytes={kept}-"]


def test_the_oldest_parts_give_way(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_MODEL_BYTES", SIZE + 300_000)
    download.kept.mkdir()
    for number in range(5):
        (download.kept / f"{number:064}.part").write_bytes(bytes(100_000))
    download.server.manners.cut_after = 40_000
    with pytest.raises(DownloadError):
        download.get()
    assert sum(download.parts()) <= SIZE + 300_000
    assert sorted(path.name[63] for path in download.kept.glob("0*.part")) == ["2", "3", "4"]


def test_a_full_disk_is_refused_by_name_and_left_with_room(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(download.site)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=2 * SIZE))
    with pytest.raises(ReleaseError, match="storage failed: 3 MB are free, 67 MB are needed") as error:
        download.get()
    assert error.value.check == "storage"
    assert download.parts() == []
    assert download.server.sent == 0


def test_a_disk_that_fills_up_meanwhile_is_not_kept_full(download: Download) -> None:
    class Full(Web):
        def parts(self, url: str, offset: int = 0):  # type: ignore[no-untyped-def]
            yield 0, bytes(100_000)
            raise OSError(28, "No space left on device")

    download.fetcher = Fetcher(Full(), download.kept, SystemClock())
    with pytest.raises(OSError, match="No space"):
        download.get()
    assert download.parts() == []


def padded(folder: Path, version: int) -> Path:
    """An encoder that is larger than a chunk."""
    path = tiny_encoder.write(folder, "camera", version)
    model = onnx.load(path)
    model.doc_string = random.Random(version).randbytes(400_000).hex()
    onnx.save(model, path)
    return path


def test_an_update_goes_on_after_a_cut_and_is_verified(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.repo.publish([padded(tmp_path, 1)])
    server = RangeServer(bench.repo.roles.folder)
    bench.updater = bench.device(server.url)
    server.manners.cut_after = 50_000
    bench.refuses("unreachable")
    (part,) = (tmp_path / "state" / "repository" / "partial").glob("*.part")
    assert part.stat().st_size == 50_000
    server.manners.cut_after = 0
    assert bench.update() == 1
    assert "bytes=50000-" in server.ranges
    assert not list(part.parent.iterdir())
    server.close()
    bench.server.close()


def test_over_https_with_the_plants_own_authority(tmp_path: Path) -> None:
    certificates.create(tmp_path / "tls", "line1", ("127.0.0.1",), SystemClock())
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "timestamp.json").write_bytes(b"{}")
    server = RangeServer(tmp_path / "site")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "server.crt", tmp_path / "tls" / "server.key")
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    url = server.url.replace("http:", "https:") + "/timestamp.json"
    ours = Fetcher(Web(tmp_path / "tls" / "ca.crt"), tmp_path / "kept", SystemClock())
    assert ours.download_bytes(url, 100) == b"{}"
    with pytest.raises(DownloadError, match="certificate"):
        Fetcher(Web(), tmp_path / "kept", SystemClock()).download_bytes(url, 100)
    server.close()
