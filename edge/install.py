"""What shall lie where for an agent that runs as services: units, users, the device file and what it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edge.config import DeviceConfig, SensorSettings
from lineside.errors import ConfigError
from lineside.parts import CONFIG, EDGE, UNITS, Put, started, units_of

STATE = EDGE.state
CAPTURE, NETWORK, UPLINK = EDGE.units
# GStreamer elements that take pictures from a network, as they stand in a pipeline without a URL.
NETWORK_SOURCES = re.compile(r"\b(multiudpsrc|ndisrc|rtspsrc|srtclientsrc|srtsrc|tcpclientsrc|tcpserversrc|udpsrc)\b")


def on_network(sensor: SensorSettings) -> bool:
    """Whether a sensor is on the network: a camera by URL, on loopback too (a service without a network has its own).

    >>> on_network(SensorSettings(name="cam0", modality="camera", source="camera", device="rtsp://127.0.0.1/1"))
    True
    >>> on_network(SensorSettings(name="cam0", modality="camera", source="camera", device="/dev/video0"))
    False
    """
    if sensor.source != "camera" or sensor.device.startswith("file://"):
        return False
    return "://" in sensor.device or NETWORK_SOURCES.search(sensor.device) is not None


def capture_unit(config: DeviceConfig) -> str:
    """The unit that runs this device's sensors: the one with a network only where one of them is on it."""
    return NETWORK if any(on_network(sensor) for sensor in config.sensors) else CAPTURE


def wanted(config: DeviceConfig, file: Path, executable: str, systemd: int) -> list[Put]:
    """All that shall lie on a machine whose systemd is of this version, for the device file `file`.

    Raises ConfigError and LinesideError where a service could not reach what it needs.
    """
    if _inside(config.device.state_dir).startswith("/"):
        mend = f"leave it out: a service keeps its state in {STATE}"
        raise ConfigError("[device] state_dir", f"is {config.device.state_dir!r}", mend)
    return [
        *units_of(EDGE, executable, systemd),
        Put(f"{UNITS}/{UPLINK}.d/credentials.conf", _credentials(config)),
        *(started(unit) for unit in (capture_unit(config), UPLINK)),
        Put(f"{CONFIG}/device.toml", file.read_bytes(), 0o640, "lineside"),  # a camera's URL may hold a password
        Put(f"{CONFIG}/{config.device.state_dir}", target=STATE),
        *_named(config, file.parent),
    ]


def _credentials(config: DeviceConfig) -> bytes:
    """What systemd hands to the uplink, each under its file's name: the service cannot read the files themselves."""
    files = [PurePosixPath(CONFIG) / file for file in config.broker.files.values()]
    if len({file.name for file in files}) != len(files):
        raise ConfigError("[broker]", "two of its files have the same name", "give them different names")
    return "\n".join(["[Service]", *(f"LoadCredential={file.name}:{file}" for file in files), ""]).encode()


def _named(config: DeviceConfig, folder: Path) -> Iterator[Put]:
    """The files that the device file names beside itself; those of the broker are root's alone."""
    repository = config.repository
    open_to_all = [file for file in (repository.root, repository.ca_file) if file and repository.url]
    open_to_all += [config.commissioning.recording] if config.commissioning.recording else []
    open_to_all += [sensor.device for sensor in config.sensors if sensor.device and (folder / sensor.device).is_file()]
    modes = {**dict.fromkeys(config.broker.files.values(), 0o600), **dict.fromkeys(open_to_all, 0o644)}
    for name, mode in modes.items():
        if not name.startswith("/"):  # else it is read where it lies
            yield Put(f"{CONFIG}/{_inside(name)}", _read(folder / name), mode)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        reason = f"is named by the device file and cannot be read ({error.strerror})"
        raise ConfigError(str(file), reason, "put it there, or change the device file") from error


def _inside(name: str) -> str:
    if ".." in PurePosixPath(name).parts:
        raise ConfigError(name, "lies outside the device file's folder", "put it beside the device file")
    return name
