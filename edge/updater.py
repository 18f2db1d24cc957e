"""Fetches signed encoders: everything is verified against the root that was shipped, before a byte of it is parsed.

The checks and their order are those of The Update Framework (python-tuf's client). A refusal is a ReleaseError that
names the check; whatever it is, the encoder in use stays in use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuf.api import exceptions as tuf
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater as Client
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher
from urllib3.exceptions import HTTPError

from edge.config import RepositorySettings
from edge.slots import Slot, Slots
from lineside.errors import ReleaseError
from lineside.targets import (
    MAX_MODEL_BYTES,
    MAX_POINTER_BYTES,
    Pointer,
    pointer_name,
    read_model,
    read_pointer,
)

SILENCE_S = 15
KEPT = "the running encoder stays"

# Which check an error of the client stands for, and what mends it; the first row that fits counts.
REFUSALS: tuple[tuple[type[Exception], str, str], ...] = (
    (tuf.ExpiredMetadataError, "expired", "run `lineside deploy refresh` at the plant and check this device's clock"),
    (tuf.BadVersionNumberError, "rollback", "the server shows an older state than was seen before; mend its copy"),
    (tuf.UnsignedMetadataError, "signature", "the file is not signed by the keys of this plant; publish it again"),
    (tuf.LengthOrHashMismatchError, "hash", "the file is not the one that was signed; publish it again"),
    (tuf.RepositoryError, "metadata", "the repository is not whole; publish again"),
    (tuf.DownloadLengthMismatchError, "length", "the server sends more than was signed; mend the server"),
    (tuf.DownloadError, "unreachable", "check [repository] url, the network and the server"),
    (HTTPError, "unreachable", "the transfer was cut; check the network"),
    (OSError, "storage", "free some space and check the rights of the state folder"),
)


class Updater:
    """Looks into the signed repository on behalf of one device.

    `base` is the folder that `config.root` starts from; verified metadata is remembered under `state_dir`, which is
    what makes an older repository state noticeable.
    """

    def __init__(self, config: RepositorySettings, base: Path, state_dir: Path, slots: Slots) -> None:
        self._config, self._root, self._slots = config, base / config.root, slots
        self._folder = state_dir / "repository"

    def fetch(self, modality: str, precision: str = "fp32") -> Slot | None:
        """Bring the version that `modality` is to run into the free slot; None when it is the one in use.

        Nothing is switched. A version that the free slot already holds is not downloaded again. Raises ReleaseError
        whose `check` is `signature`, `expired`, `rollback`, `hash`, `length`, `unreachable`, `missing`, `metadata`,
        `pointer` or `storage`.
        """
        with _named(f"{modality} from {self._config.url or 'no repository'}"):
            client = self._client()
            client.refresh()
            pointer = self._pointer(client, modality)
            if precision not in pointer.targets:
                told = f"version {pointer.version} was not published in {precision}"
                raise ReleaseError("missing", modality, told, f"publish it, or choose of {', '.join(pointer.targets)}")
            info = self._info(client, pointer.targets[precision], MAX_MODEL_BYTES)
            return self._bring(client, modality, pointer.version, info)

    def _bring(self, client: Client, modality: str, version: int, info: TargetFile) -> Slot | None:
        model, signed = read_model(info.custom, info.path), info.hashes.get("sha256", "")
        if (model.version, model.sha256) != (version, signed):
            told = f"is described as version {model.version}, {model.sha256}; signed is version {version}, {signed}"
            raise ReleaseError("metadata", info.path, told, "publish it again")
        current, spare = self._slots.current(modality), self._slots.spare(modality)
        if current is not None and current.sha256 == signed:
            return None
        if spare is not None and spare.sha256 == signed:
            return spare
        data = self._download(client, info)
        return self._slots.stage(modality, data, version=version, expected_sha256=signed, target=info.path)

    def _client(self) -> Client:
        if not self._config.url:
            raise ReleaseError("unreachable", "repository", "none is configured", "set [repository] url")
        try:
            root = self._root.read_bytes()
        except OSError as error:
            mend = "copy root.json from the plant's folder (`lineside deploy init` names it)"
            raise ReleaseError("missing", str(self._root), f"cannot be read ({error.strerror})", mend) from error
        url = self._config.url.rstrip("/")
        self._folder.mkdir(parents=True, exist_ok=True)
        return Client(
            metadata_dir=str(self._folder),
            metadata_base_url=f"{url}/metadata/",
            target_base_url=f"{url}/targets/",
            fetcher=Urllib3Fetcher(socket_timeout=SILENCE_S, app_user_agent="lineside"),
            bootstrap=root,
        )

    def _pointer(self, client: Client, modality: str) -> Pointer:
        info = self._info(client, pointer_name(modality), MAX_POINTER_BYTES)
        return read_pointer(self._download(client, info), modality)

    def _info(self, client: Client, name: str, most_bytes: int) -> TargetFile:
        info = client.get_targetinfo(name)
        if info is None:
            raise ReleaseError("missing", name, "is not in the signed repository", "publish this modality")
        if info.length > most_bytes:
            raise ReleaseError("length", name, f"{info.length} bytes, limit {most_bytes}", "publish a smaller file")
        return info

    def _download(self, client: Client, info: TargetFile) -> bytes:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            return Path(client.download_target(info, str(Path(folder, "target")))).read_bytes()


@contextmanager
def _named(thing: str) -> Iterator[None]:
    """Turn the client's errors into refusals of ours."""
    try:
        yield
    except (tuf.RepositoryError, tuf.DownloadError, HTTPError, OSError) as error:
        if isinstance(error, tuf.DownloadHTTPError) and error.status_code in (403, 404):
            mend = f"check [repository] url; {KEPT}"
            raise ReleaseError("missing", thing, f"the server has no such file ({error})", mend) from error
        check, mend = next((check, mend) for kind, check, mend in REFUSALS if isinstance(error, kind))
        raise ReleaseError(check, thing, str(error) or type(error).__name__, f"{mend}; {KEPT}") from error
