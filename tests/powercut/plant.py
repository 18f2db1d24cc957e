"""The plant's side: the signed repository that a web server hands out, and the hub's store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

import msgspec
import sqlalchemy as sa
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from deploy import keys, repository
from deploy.begin import Asked, begin
from deploy.repository import Repository
from hub.store import Store, database_url
from hub.tables import Row as Stored
from hub.tables import row
from lineside import config, wire
from lineside.clock import SystemClock
from lineside.plant import PlantConfig
from lineside.targets import Candidate, Pointer, pointer_name
from tests import tiny_encoder
from tests.powercut.child import done_in_child
from tests.powercut.device_state import score
from tests.powercut.table import NEW, OLD, Row, Scene, say

PLANT = PlantConfig(site="line1", devices=["edge-1"])
Step = Callable[[Path, Path], object]
BATCHES = 4
BATCH = 5


class Files(FetcherInterface):
    """What a web server on this machine would send."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield Path(urlparse(url).path).read_bytes()
        except FileNotFoundError as error:
            raise DownloadHTTPError(str(error), 404) from error


def repo_in(folder: Path) -> Repository:
    return repository.of(PLANT, folder, SystemClock())


def seen(folder: Path) -> dict[str, int]:
    """The version that a stock client, which knows the first root alone, finds for each modality, with its files."""
    published, versions = folder / "repository", {}
    with tempfile.TemporaryDirectory() as memory:
        client = Updater(
            memory,
            f"file://{published}/metadata/",
            memory,
            f"file://{published}/targets/",
            Files(),
            bootstrap=(published / "metadata" / "1.root.json").read_bytes(),
        )
        for modality in PLANT.modalities:
            info = client.get_targetinfo(pointer_name(modality))
            assert info is not None, f"{modality} is gone"
            pointer = msgspec.json.decode(Path(client.download_target(info)).read_bytes(), type=Pointer)
            for target in pointer.targets.values():
                model = client.get_targetinfo(target)
                assert model is not None, f"{target} is gone"
                client.download_target(model)
            versions[modality] = pointer.version
    return versions


def publish(version: int, files: Path, folder: Path) -> None:
    """Sign a version of both, and bring it to all devices in one ring."""
    repo, name = repo_in(folder), f"to-{version}"
    repo.publish([files / f"{modality}-{version}.onnx" for modality in PLANT.modalities])
    if {one.version for one in repo.pointed().values()} != {version}:
        everybody = Candidate(rollout=name, version=version, targets={}, percent=100.0)
        repo.offer(dict.fromkeys(PLANT.modalities, version), everybody)
        repo.settle(name, taken=True)


def judge(before: dict[str, int], after: dict[str, int], folder: Path, _: list[str]) -> str:
    """What devices see, and that the operator's side can read all of it too."""
    found = seen(folder)
    assert {modality: one.version for modality, one in repo_in(folder).pointed().items()} == found
    return OLD if found == before else NEW if found == after else f"a mixture, {found}"


@contextlib.contextmanager
def published(act: Step, again: Step, upto: int, after: dict[str, int], folder: Path) -> Iterator[Scene]:
    """Both modalities were published up to a version; the steps take the encoders' folder and the plant's."""
    base = folder / "plant"
    base.mkdir()

    def prepare() -> None:
        repo_in(base).init(PLANT.modalities)
        for version in (1, 2):
            for modality in PLANT.modalities:
                tiny_encoder.write(folder, modality, version)
        for version in range(1, upto + 1):
            publish(version, folder, base)

    done_in_child(prepare)
    before = dict.fromkeys(PLANT.modalities, upto)
    yield Scene(base, partial(act, folder), partial(judge, before, after), partial(again, folder))


# Without TLS: no two signatures of a certificate are of one length, and what each kill left is compared by length.
ASKED = Asked("line1", ("edge-1",), PLANT.modalities, 1883, 8080, demo=False)


def init(_: Path, folder: Path) -> None:
    begin(folder, ASKED, SystemClock())


def init_and_publish(files: Path, folder: Path) -> None:
    """The same command again, and what follows it."""
    init(files, folder)
    publish(1, files, folder)
    assert seen(folder) == dict.fromkeys(PLANT.modalities, 1)


def judge_begun(folder: Path, _: list[str]) -> str:
    """Keys that are there can be used, and nothing is there in part."""
    if (folder / "plant.toml").exists():
        assert config.load(folder / "plant.toml", PlantConfig).site == ASKED.site
    for path in (folder / "keys").glob("*.pem"):
        keys.load(path)
    whole = [path for path in BEGUN if (folder / path).exists()]
    return NEW if len(whole) == len(BEGUN) and repo_in(folder).roles.modalities() == PLANT.modalities else OLD


BEGUN = ("plant.toml", "root.json", "repository/metadata/timestamp.json", "secrets/edge-1.password")


@contextlib.contextmanager
def beginning(folder: Path) -> Iterator[Scene]:
    """An empty folder becomes a plant."""
    base = folder / "plant"
    base.mkdir()

    def encoders() -> None:
        for modality in PLANT.modalities:
            tiny_encoder.write(folder, modality, 1)

    done_in_child(encoders)
    yield Scene(base, partial(init, folder), judge_begun, partial(init_and_publish, folder))


def step_back(_: Path, folder: Path) -> None:
    repo_in(folder).step_back("camera")


def first_again(_: Path, folder: Path) -> None:
    repo_in(folder).point("camera", 1)


def batch(number: int) -> list[Stored]:
    """Scores of one device, numbered without a gap."""
    scores = [score(number * BATCH + i + 1) for i in range(BATCH)]
    return [row("score", told, wire.encode(told), 1) for told in scores]


def opened(folder: Path) -> Store:
    return Store(database_url("sqlite:///hub.db", folder))


def store(folder: Path) -> None:
    """Commit, and tell the device after each batch, which forgets it then."""
    kept = opened(folder)
    for number in range(1, BATCHES):
        kept.add(batch(number))
        say(folder, str(number))
    kept.close()


def judge_store(folder: Path, said: list[str]) -> str:
    """Every batch that was told to be committed is there, and no batch in part."""
    kept = opened(folder)
    with kept._engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
    numbers = [score.start_ns for score in kept.scores("edge-1")]
    assert len(numbers) % BATCH == 0, "a batch is there in part"
    assert numbers == list(range(1, len(numbers) + 1)), "a batch is missing"
    there = len(numbers) // BATCH
    assert there > max(map(int, said), default=0), "what was acknowledged is gone"
    kept.close()
    return NEW if there == BATCHES else OLD


def store_again(folder: Path) -> None:
    """The device sends what was not acknowledged again."""
    kept = opened(folder)
    for number in range(BATCHES):
        kept.add(batch(number))
    assert kept.counts()["scores"] == BATCHES * BATCH
    kept.close()


@contextlib.contextmanager
def storing(folder: Path) -> Iterator[Scene]:
    """A hub that has stored before."""
    base = folder / "hub"
    base.mkdir()

    def prepare() -> None:
        kept = opened(base)
        kept.add(batch(0))
        kept.close()

    done_in_child(prepare)
    yield Scene(base, store, judge_store, store_again)


TWO = dict.fromkeys(PLANT.modalities, 2)
SECOND = partial(publish, 2)
BACK = {**TWO, "camera": 1}
BEGINS = "the same command again makes a plant that publishes"
SERVED = "a stock TUF client gets the old state or the new one, whole; publishing goes on"
ROWS = (
    Row("beginning of a plant", BEGINS, beginning),
    Row("publication of two modalities", SERVED, partial(published, SECOND, SECOND, 1, TWO)),
    Row("publication of the version before", SERVED, partial(published, step_back, first_again, 2, BACK)),
    Row("commits of the hub's store", "what was acknowledged is there; no batch in part", storing),
)
