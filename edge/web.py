"""Files over HTTP(S), from any place in them, as their bytes come."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from edge.config import RepositorySettings

SILENCE_S = 15.0  # of a server, before and between bytes
PART_BYTES = 65_536


class Source(Protocol):
    """Where files come from. Raises tuf's DownloadError; DownloadHTTPError with the status where there is one."""

    def parts(self, url: str, offset: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """Bytes and their places, one after the other, from `offset` on: from 0 where ranges cannot be had."""
        ...


class Web:
    """The `Source` over the network.

    No redirection is followed: it could lead anywhere in the plant's network. `ca_file` has the certificates that an
    HTTPS server must come from; without it they are the system's.
    """

    def __init__(self, ca_file: Path | None = None) -> None:
        trusted = str(ca_file) if ca_file else None
        self._pool = urllib3.PoolManager(timeout=SILENCE_S, retries=False, ca_certs=trusted)

    def parts(self, url: str, offset: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """As `Source`."""
        try:
            response = self._asked(url, offset)
            try:
                at = _begin(response, offset)
                while data := response.read1(PART_BYTES):
                    yield at, data
                    at += len(data)
                response.release_conn()
            finally:
                response.close()
        except ReadTimeoutError as error:
            raise SlowRetrievalError(f"{url}: the server is silent ({error})") from error
        except (HTTPError, ValueError) as error:
            raise DownloadError(f"{url}: {error}") from error

    def _asked(self, url: str, offset: int) -> BaseHTTPResponse:
        headers = {"User-Agent": "lineside", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        response = self._pool.request(
            "GET", url, headers=headers, redirect=False, preload_content=False, decode_content=False
        )
        if response.status not in (200, 206):
            response.close()
            raise DownloadHTTPError(f"{url}: the server answers {response.status}", response.status)
        return response


def of(config: RepositorySettings, base: Path) -> Web:
    """The way to a device's repository; `base` is the folder of the device file."""
    return Web(base / config.ca_file if config.ca_file else None)


def _begin(response: BaseHTTPResponse, offset: int) -> int:
    """The place of a response's first byte (RFC 9110, 14.4). Raises ValueError for a part that was not asked for."""
    if response.status == 200:
        return 0
    told = response.headers.get("Content-Range", "")
    found = re.match(r"bytes (\d+)-", told)
    if not found or int(found[1]) != offset:
        raise ValueError(f"asked for bytes from {offset}, the server answers {told!r}")
    return offset
