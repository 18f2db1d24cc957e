"""Fetches signed encoders: everything is verified against the root that was shipped, before a byte of it is parsed.

The checks and their order are those of The Update Framework (python-tuf's client). A refusal is a ReleaseError that
names the check; whatever it is, the encoder in use stays in use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from tuf.api import exceptions as tuf
from tuf.api.metadata import TargetFile

from edge import freshness, web
from edge.change import Choice
from edge.config import RepositorySettings
from edge.fetcher import Fetcher
from edge.patching import patched
from edge.slots import Slot, Slots
from edge.trusted import Client, FastForwardError, MisusedKeyError
from lineside import BUILT
from lineside.clock import NS, SystemClock, wall_ns
from lineside.errors import ReleaseError
from lineside.files import make_folder
from lineside.targets import (
    MAX_MODEL_BYTES,
    MAX_POINTER_BYTES,
    Candidate,
    Pointer,
    pointer_name,
    read_model,
    read_pointer,
)

log = logging.getLogger(__name__)
KEPT = "the running encoder stays"
SKEW_S = 3600.0  # by which this device's clock may be behind the plant's
BUILT_NS = round(datetime.fromisoformat(BUILT).replace(tzinfo=timezone.utc).timestamp()) * NS

# Which check an error of the client stands for, and what mends it; the first row that fits counts.
REFUSALS: tuple[tuple[type[Exception], str, str], ...] = (
    (tuf.ExpiredMetadataError, "expired", "run `lineside deploy refresh` at the plant and check this device's clock"),
    (FastForwardError, "fast-forward", "somebody has the online keys; run `lineside deploy rotate` at the plant"),
    (tuf.BadVersionNumberError, "rollback", "the server shows an older state than was seen before; mend its copy"),
    (MisusedKeyError, "key", "was a key stolen? if not, publish again with the keys that may sign this"),
    (tuf.UnsignedMetadataError, "signature", "the file is not signed by the keys of this plant; publish it again"),
    (tuf.LengthOrHashMismatchError, "mix-and-match", "metadata of different states were put together; publish again"),
    (tuf.RepositoryError, "metadata", "the repository is not whole; publish again"),
    (tuf.DownloadLengthMismatchError, "length", "the server sends more than was signed; mend the server"),
    (tuf.SlowRetrievalError, "slow", "what has come is kept; check the network and the server"),
    (tuf.DownloadError, "unreachable", "check [repository] url, the network and the server"),
    (OSError, "storage", "free some space and check the rights of the state folder"),
)


@dataclass(frozen=True)
class Seen:
    """What the repository wants this device to run, by modality; for which it cannot be told, and why."""

    choices: dict[str, Choice] = field(default_factory=dict)
    refused: dict[str, ReleaseError] = field(default_factory=dict)


class Updater:
    """Looks into the signed repository on behalf of one device.

    `base` is the folder that `config.root` starts from; verified metadata is remembered under `state_dir`, which is
    what makes an older repository state noticeable. `fetcher` brings the bytes, over HTTP where none is given.
    `device` is the name under which it takes part in rollouts; `wall_ns` reads the wall clock.
    """

    def __init__(
        self,
        config: RepositorySettings,
        base: Path,
        state_dir: Path,
        slots: Slots,
        fetcher: Fetcher | None = None,
        device: str = "",
        wall_ns: Callable[[], int] = wall_ns,
    ) -> None:
        self._config, self._root, self._slots = config, base / config.root, slots
        self._folder = state_dir / "repository"
        self._fetcher = fetcher or Fetcher(web.of(config, base), self._folder / "partial", SystemClock())
        self._device, self._wall_ns = device, wall_ns
        self._trusted: tuple[Client, dict[str, TargetFile]] | None = None  # of the last look

    def look(self, modalities: Sequence[str], precision: str = "fp32") -> Seen:
        """What this device is to run, by one refresh of the metadata for all modalities.

        Raises ReleaseError whose `check` is `clock`, `signature`, `key`, `expired`, `rollback`, `fast-forward`,
        `mix-and-match`, `unreachable`, `slow`, `missing`, `metadata` or `storage`; what is wrong with one modality
        alone is told in `Seen.refused`.
        """
        seen, infos = Seen(), dict[str, TargetFile]()
        with _named(self._config.url or "no repository"):
            self._check_clock()
            client = self._client()
            with client.keys_told():
                client.refresh()
        for modality in modalities:
            try:
                with _named(f"{modality} from {self._config.url}"), client.keys_told():
                    seen.choices[modality], infos[modality] = self._choice(client, modality, precision)
            except ReleaseError as error:
                seen.refused[modality] = error
        if not seen.refused and all(
            self._slots.holds(modality, choice.sha256) for modality, choice in seen.choices.items()
        ):
            self._fetcher.clear()
        self._trusted = client, infos
        return seen

    def bring(self, choice: Choice) -> Slot | None:
        """Bring what `look` has found for a modality into the free slot; None when it is the one in use.

        Nothing is switched. A version that the free slot already holds is not downloaded again. Raises ReleaseError
        whose `check` is one of `look`'s, `hash`, `length` or `pointer`.
        """
        with _named(f"{choice.modality} from {self._config.url}"):
            if self._trusted is None or choice.modality not in self._trusted[1]:
                self.look([choice.modality])
            assert self._trusted is not None
            client, infos = self._trusted
            info = infos.get(choice.modality)
            if info is None or info.hashes.get("sha256") != choice.sha256:
                told = f"version {choice.version} is no more what the repository wants"
                raise ReleaseError("missing", choice.modality, told, "it is looked at again")
            return self._bring(client, choice.modality, choice.version, info)

    def fetch(self, modality: str, precision: str = "fp32") -> Slot | None:
        """`look` at one modality and `bring` what it is to run. Raises ReleaseError as these do."""
        seen = self.look([modality], precision)
        if (refused := seen.refused.get(modality)) is not None:
            raise refused
        return self.bring(seen.choices[modality])

    def _choice(self, client: Client, modality: str, precision: str) -> tuple[Choice, TargetFile]:
        pointer = self._pointer(client, modality)
        candidate = pointer.candidate
        named: Pointer | Candidate = candidate if candidate and candidate.takes(self._device) else pointer
        if precision not in named.targets:
            told = f"version {named.version} was not published in {precision}"
            raise ReleaseError("missing", modality, told, f"publish it, or choose of {', '.join(named.targets)}")
        info = self._info(client, named.targets[precision], MAX_MODEL_BYTES)
        choice = Choice(
            modality=modality, version=named.version, sha256=info.hashes.get("sha256", ""), target=info.path
        )
        if isinstance(named, Candidate):
            own = {"rollout": named.rollout, "paused": named.paused, "terms": named.terms}
            choice = msgspec.structs.replace(choice, **own)
        return choice, info

    def _check_clock(self) -> None:
        """A clock that is behind would take metadata that has expired for fresh: nothing is believed then."""
        now_ns, signed_ns = self._wall_ns(), freshness.signed_ns(self._folder) - round(SKEW_S * NS)
        for since_ns, what in ((BUILT_NS, "this agent was made"), (signed_ns, "the newest metadata was signed")):
            if now_ns < since_ns:
                told = f"the wall clock shows {_date(now_ns)}, before {what} ({_date(since_ns)})"
                raise ReleaseError("clock", self._device or "device", told, f"set the clock; {KEPT}")

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
        data = patched(info.path, signed, (current, spare), lambda name: self._delta(client, name, info.length))
        data = data if data is not None else self._download(client, info)
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
        make_folder(self._folder)
        return Client(
            metadata_dir=str(self._folder),
            metadata_base_url=f"{url}/metadata/",
            target_base_url=f"{url}/targets/",
            fetcher=self._fetcher,
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

    def _delta(self, client: Client, name: str, most_bytes: int) -> bytes | None:
        """A delta that is signed and smaller than the whole file; None where there is none, or it does not come."""
        try:
            info = client.get_targetinfo(name)
            return self._download(client, info) if info is not None and info.length < most_bytes else None
        except (tuf.RepositoryError, tuf.DownloadError, ReleaseError) as error:
            log.warning("%s: %s", name, error)
            return None

    def _download(self, client: Client, info: TargetFile) -> bytes:
        place = self._folder / ".target.new"  # one name: what a power cut leaves is overwritten, and never heaps up
        try:
            return Path(client.download_target(info, str(place))).read_bytes()
        except tuf.LengthOrHashMismatchError as error:
            mend = f"the file is not the one that was signed; publish it again; {KEPT}"
            raise ReleaseError("hash", info.path, str(error), mend) from error
        finally:
            place.unlink(missing_ok=True)


@contextmanager
def _named(thing: str) -> Iterator[None]:
    """Turn the client's errors into refusals of ours."""
    try:
        yield
    except (tuf.RepositoryError, tuf.DownloadError, OSError) as error:
        if isinstance(error, tuf.DownloadHTTPError) and error.status_code in (403, 404):
            mend = f"check [repository] url; {KEPT}"
            raise ReleaseError("missing", thing, f"the server has no such file ({error})", mend) from error
        check, mend = next((check, mend) for kind, check, mend in REFUSALS if isinstance(error, kind))
        raise ReleaseError(check, thing, str(error) or type(error).__name__, f"{mend}; {KEPT}") from error


def _date(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns / NS, timezone.utc):%Y-%m-%d %H:%M} UTC"
