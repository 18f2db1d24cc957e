"""What a device keeps on its disk of what it saw and heard, without reading the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from mcap.exceptions import McapError
from mcap.reader import make_reader

from edge.archive import EVIDENCE, RECORDINGS
from edge.bounded_folder import recordings
from lineside.channels import KINDS
from lineside.clock import NS
from lineside.messages import Alarm
from lineside.recording import DAMAGE


class Kept(msgspec.Struct, frozen=True):
    """One file: which folder it is in, when it begins (UTC), what alarms are in it, and how much of which sensors.

    `problem` says why its content could not be told; the file is then whole no more.
    """

    file: str
    folder: str
    start_ns: int
    seconds: float
    mb: float
    sensors: list[str]
    alarms: list[str]
    problem: str = ""


def inventory(state: Path) -> Iterator[Kept]:
    """Every whole file in a device's state folder, evidence first, the oldest first."""
    for folder in (EVIDENCE, RECORDINGS):
        for file in recordings(state / folder):
            yield _kept(file, folder)


def _kept(file: Path, folder: str) -> Kept:
    mb = file.stat().st_size / 1e6
    try:
        with file.open("rb") as stream:
            reader = make_reader(stream)
            summary = reader.get_summary()
            if summary is None or summary.statistics is None:
                raise McapError("it has no index")
            told = summary.statistics
            said = [msgspec.json.decode(one.data, type=Alarm) for _, _, one in reader.iter_messages(topics="/alarms")]
    except (*DAMAGE, msgspec.DecodeError, OSError) as error:
        return Kept(file.name, folder, 0, 0.0, mb, [], [], f"cannot be read ({error}); delete it")
    schemas = {one.id: one.name for one in summary.schemas.values()}
    sensors = sorted(
        channel.topic.lstrip("/")
        for channel in summary.channels.values()
        if (kind := KINDS.get(schemas.get(channel.schema_id, ""))) and kind.modality
    )
    seconds = (told.message_end_time - told.message_start_time) / NS
    alarms = [alarm.text for alarm in said if alarm.state == "raised"]
    return Kept(file.name, folder, told.message_start_time, seconds, mb, sensors, alarms)
