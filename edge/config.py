"""The device file: one TOML file that says what one agent watches, where it reports and when it raises an alarm."""

from __future__ import annotations

import re
from typing import Literal

from edge.hours import Hours
from lineside.config import Config
from lineside.mqtt import BrokerConfig

SourceKind = Literal["camera", "microphone", "series", "replay", "simulation"]
Modality = Literal["camera", "microphone", "series"]
DetectorKind = Literal["e-detector", "adwin", "page-hinkley", "kswin"]
RuntimeName = Literal["auto", "tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda", "onnxruntime-cpu"]


class DeviceSettings(Config, frozen=True):
    """Who this device is; `state_dir` keeps outbox, slots and commissioning (relative to the file's folder).

    `isolated` gives each sensor that has a driver a process of its own, which is killed when it hangs.

    `runtime` executes the encoders: a row of edge.runtimes.RUNTIMES, or the first of them that works here (`auto`).

    `states` are what the station tells of itself on the topic `state` (products, `idle`, `runs`): each is learned by
    itself at commissioning, and what is normal in one is no alarm in it. Without them all running is one.
    """

    id: str
    site: str
    station: str
    state_dir: str = "state"
    evidence: bool = False
    allow_fault_injection: bool = False
    isolated: bool = True
    runtime: RuntimeName = "auto"
    states: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.states)) != len(self.states) or "" in self.states:
            raise ValueError("states are different names, none of them empty")
        for name in (self.id, self.site):
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
                raise ValueError(f"{name!r} is no name for a topic: use a-z, 0-9, '.', '_', '-'")


class SensorSettings(Config, frozen=True):
    """One sensor: `source` is a row of edge.sensors.table.SENSORS, `device` what it opens.

    camera: index (`0`), file, RTSP/HTTP URL or GStreamer string. microphone: name or number of a PortAudio device
    (empty: the default one). series: a CSV file or named pipe with one row a sample. replay: an MCAP recording, with
    `recorded` naming the sensor in it, `from_s` where to begin and `loop` to begin again at its end. simulation: no
    device; `product` and `seed` choose the simulated line's run. `latency_ms` is what passes between capture and
    arrival and is told by no driver; after `stall_s` without a sample the sensor is opened anew.
    """

    name: str
    modality: Modality
    source: SourceKind
    device: str = ""
    rate_hz: float = 0.0
    channels: int = 1
    width: int = 0
    height: int = 0
    recorded: str = ""
    from_s: float = 0.0
    loop: bool = True
    product: str = "a"
    seed: int = 1
    stall_s: float = 5.0
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        own = {"camera": "camera", "microphone": "microphone", "series": "series"}.get(self.source)
        if own is not None and own != self.modality:
            raise ValueError(f"source {self.source!r} gives modality {own!r}, not {self.modality!r}")
        if self.source in {"series", "replay"} and not self.device:
            raise ValueError(f"source {self.source!r} needs `device`, the file to read")
        if self.from_s < 0:
            raise ValueError("from_s must be 0 or above")
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", self.name):
            raise ValueError(f"{self.name!r} is no sensor name: use a-z, 0-9, '_', '-', a letter first")


class WindowSettings(Config, frozen=True):
    """Length and hop of windows, in seconds."""

    length_s: float = 1.0
    hop_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.hop_s <= self.length_s:
            raise ValueError("hop_s must be above 0 and at most length_s")


class CommissioningSettings(Config, frozen=True):
    """What `normal` is learned from: a recording, or the first `minutes` of live running."""

    recording: str = ""
    minutes: float = 5.0
    coreset: int = 128


class AlarmSettings(Config, frozen=True):
    """An anomaly alarm is raised when `raise_count` of the last `of` moments have p <= `p_limit`.

    It is cleared after `clear_count` moments in a row above `p_clear`. Weaker evidence that lasts (lineside.sequential)
    raises a drift alarm of the station; it is cleared when that evidence has also faded. One of a sensor or a pair is
    raised when what a sensor contributes, how it agrees with another, or its embeddings have slowly changed
    (lineside.drift); it stays until the device is commissioned again. What is ordinary for it is learned in the first
    `learn_hours` after commissioning, which should span all that the line goes through in a day. Both together are
    aimed at one false alarm in `false_alarm_days` on average. `drift_detector` is a row of edge.detectors.DETECTORS:
    only the e-detector keeps that budget by construction, the others (river's, extra `evaluation`) are there to be
    compared with. A sensor alarm is raised after `sensor_count` flagged or missing windows in a row and cleared after
    as many good ones.
    """

    p_limit: float = 0.01
    raise_count: int = 5
    of: int = 6
    p_clear: float = 0.05
    clear_count: int = 6
    false_alarm_days: float = 30.0
    learn_hours: float = 24.0
    sensor_count: int = 3
    drift_detector: DetectorKind = "e-detector"

    def __post_init__(self) -> None:
        if not 0 < self.p_limit <= self.p_clear < 1:
            raise ValueError("p_limit must be above 0 and at most p_clear, p_clear below 1")
        if not 1 <= self.raise_count <= self.of:
            raise ValueError("raise_count must be at least 1 and at most `of`")
        if not 0 < self.false_alarm_days < 10_000:
            raise ValueError("false_alarm_days must be above 0 and below 10000")
        if not 0 < self.learn_hours <= 1_000:
            raise ValueError("learn_hours must be above 0 and at most 1000")

    @property
    def days_each(self) -> float:
        """Days in which lasting evidence, or drift, may give one false alarm: the budget is halved between them."""
        return 2 * self.false_alarm_days


class RepositorySettings(Config, frozen=True):
    """The signed repository: its URL, the trusted first root (a file), how often to look for news, and which files.

    `precision` is of the encoders that this device takes; a version that was not published in it is refused. `ca_file`
    has the certificate that an https URL is checked against (`lineside deploy init --tls` makes one). `window` are the
    hours of the device's local time in which it may begin a change ("22:00-05:00"; empty: at any time).
    """

    url: str = ""
    root: str = "root.json"
    poll_s: float = 300.0
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    ca_file: str = ""
    window: str = ""

    def __post_init__(self) -> None:
        Hours.parse(self.window)


class OutboxSettings(Config, frozen=True):
    """Bounds of the outbox; beyond them embeddings are dropped first, then scores and health, never alarms.

    `max_days` counts the days that the agent ran. At most `window` messages are under way, fewer while the hub takes
    longer than usual; what it has not acknowledged for `resend_s` is sent again. What has piled up is sent at
    `drain_per_s` messages a second, alarms before it and at once.
    """

    max_mb: float = 256.0
    max_days: float = 14.0
    window: int = 512
    resend_s: float = 5.0
    drain_per_s: float = 200.0

    def __post_init__(self) -> None:
        if not 0 < self.max_mb <= 100_000 or not 0 < self.max_days <= 3_650:
            raise ValueError("max_mb must be above 0 and at most 100000, max_days above 0 and at most 3650")
        if not 1 <= self.window <= 10_000:
            raise ValueError("window must be 1 to 10000")
        if not 0 < self.resend_s <= 3_600 or not 1 <= self.drain_per_s <= 100_000:
            raise ValueError("resend_s must be above 0 and at most 3600, drain_per_s 1 to 100000")


class EvidenceSettings(Config, frozen=True):
    """What is kept on the device's own disk of what its sensors saw and heard; it never leaves by itself.

    Each alarm keeps `before_s` and `after_s` around it in `state_dir`/evidence, bounded by `max_mb`; 0 and 0 keep
    nothing. The seconds before are held in memory, in at most `memory_mb`. `record_all` keeps everything in
    `state_dir`/recordings, bounded by `max_mb_all` (0: not even when an operator asks for it). The oldest files go
    first. Both stop while the disk has less than `keep_free_mb` (or [outbox] max_mb, if that is more) free: alarms come
    before evidence. With `send` "request" the hub may ask for the file of an alarm, and gets it at `send_kb_s` at most,
    when nothing else is to be sent; recordings of everything never leave.
    """

    before_s: float = 10.0
    after_s: float = 10.0
    max_mb: float = 1024.0
    memory_mb: float = 64.0
    keep_free_mb: float = 512.0
    record_all: bool = False
    max_mb_all: float = 8192.0
    send: Literal["never", "request"] = "never"
    send_kb_s: float = 1000.0

    def __post_init__(self) -> None:
        if not (0 <= self.before_s <= 600 and 0 <= self.after_s <= 600):
            raise ValueError("before_s and after_s must be 0 to 600")
        if not (self.max_mb >= 1 and self.memory_mb >= 1 and self.keep_free_mb >= 0):
            raise ValueError("max_mb and memory_mb must be at least 1, keep_free_mb 0 or above")
        if self.max_mb_all and not self.max_mb_all >= 2:
            raise ValueError("max_mb_all must be 0 or at least 2")
        if self.record_all and not self.max_mb_all:
            raise ValueError("record_all needs max_mb_all above 0")
        if not 1 <= self.send_kb_s <= 1_000_000:
            raise ValueError("send_kb_s must be 1 to 1000000")

    @property
    def around(self) -> bool:
        """Whether anything is kept around alarms."""
        return self.before_s + self.after_s > 0


class MetricsSettings(Config, frozen=True):
    """Where Prometheus may read the agent's metrics over HTTP; port 0: nowhere. Who can reach `host` can read them."""

    port: int = 0
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError("port must be 0 (off) to 65535")


class DeviceConfig(Config, frozen=True):
    """The whole device file."""

    device: DeviceSettings
    sensors: list[SensorSettings]
    broker: BrokerConfig = BrokerConfig()
    repository: RepositorySettings = RepositorySettings()
    windows: WindowSettings = WindowSettings()
    commissioning: CommissioningSettings = CommissioningSettings()
    alarm: AlarmSettings = AlarmSettings()
    outbox: OutboxSettings = OutboxSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    metrics: MetricsSettings = MetricsSettings()

    def __post_init__(self) -> None:
        names = [sensor.name for sensor in self.sensors]
        if not names:
            raise ValueError("at least one sensor is needed")
        if len(set(names)) != len(names):
            raise ValueError("two sensors have the same name")

    @property
    def keep_free_bytes(self) -> int:
        """Bytes of the disk that evidence leaves alone: alarms come first, so never less than the outbox may take."""
        return round(max(self.evidence.keep_free_mb, self.outbox.max_mb) * 1e6)
