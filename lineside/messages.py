"""What travels between device, hub and operator: frozen records with their units.

Every message that a device sends carries `device`, `epoch` (when its outbox was made, ns) and `seq`, which grows by
one for each message of that epoch: the hub can tell a gap from a silence, and stores each message once.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What every message of a device begins with; `epoch` and `seq` are given by its outbox."""

    device: str
    epoch: int = 0
    seq: int = 0


class Embedding(msgspec.Struct, frozen=True, array_like=True):
    """One sensor's unit-norm embedding of one window; `vector` is float16, little-endian."""

    sensor: str
    modality: str
    version: str
    space: str
    vector: bytes


class Embeddings(Message, frozen=True, array_like=True):
    """The embeddings of one moment; a compact binary array on the wire."""

    station: str
    start_ns: int
    end_ns: int
    embeddings: list[Embedding]


class Score(Message, frozen=True):
    """Fused anomaly evidence of one moment (nats), its p-value, and what each sensor contributed to it.

    `contributions` are exact Shapley shares of `evidence` (product words, section 2); `without` is the p-value that
    the moment would have without that sensor; `agreements` are cosines, keyed `sensor+sensor`; `absent` gives the
    reason for each sensor that is not in the fusion; `p_upper` is what the p-value is at most (95 %) where it is too
    small to be counted among normal windows and rests on a fitted tail; `limit` is the p-value at or below which a
    moment is anomalous; `drift` is the evidence of slow change, 0 to 1 (an alarm), by sensor and by pair; `state` is
    what the station said of itself, by whose normal running the moment was judged ("": by all of it); `state_logits`
    are the fused logits of the states and kinds of faults that were learned, as the sensors see them (nats, normalised:
    exp gives probabilities), `state_contributions` what each sensor says for the likeliest (their Shapley values).
    """

    station: str
    start_ns: int
    end_ns: int
    evidence: float
    p_value: Probability
    limit: Probability
    contributions: dict[str, float]
    without: dict[str, Probability]
    agreements: dict[str, float]
    modalities: dict[str, str]
    absent: dict[str, str]
    versions: dict[str, str]
    skew_ms: float
    drift: dict[str, float] = {}
    state: str = ""
    p_upper: Probability | None = None
    state_logits: dict[str, float] = {}
    state_contributions: dict[str, float] = {}


AlarmKind = Literal["anomaly", "drift", "sensor", "device"]
AlarmState = Literal["raised", "cleared"]
AlarmCause = Literal["", "sensor", "process", "undecided"]


class NormalMoment(msgspec.Struct, frozen=True):
    """What one sensor showed in a moment of normal running: when it began, and a small JPEG."""

    start_ns: int
    picture: bytes


class Alarm(Message, frozen=True):
    """A change of an alarm's state. The same `key` names the same event from raise to clear.

    `subject` is the station for an anomaly, the sensor for a sensor alarm, the device for one that the hub raises of it
    (`device`: it is away); for drift a sensor, a pair `a+b`, or the station; `top_sensor` and `top_modality` name the
    largest contribution, empty for the hub's own; `limits` are the thresholds in force;
    `pictures` are small JPEGs by sensor, sent only when the device may send evidence, and `like` by sensor what of
    normal running its encoder finds most like that; `cause` says of a raised alarm
    whether a sensor or the process that it watches is at fault (edge.triage). `effect` is the size of a drift in
    standard deviations of what drifted, 0 where its spread changed; `trace` is its course in the same, in equal spans
    from before the onset. `recording` is the file in the device's folder `evidence` that keeps what it saw and heard
    around the alarm, empty where it keeps none.
    """

    station: str
    key: str
    kind: AlarmKind
    state: AlarmState
    subject: str
    top_sensor: str
    top_modality: str
    onset_ns: int
    time_ns: int
    p_value: Probability
    evidence: float
    contributions: dict[str, float]
    versions: dict[str, str]
    limits: dict[str, float]
    text: str
    pictures: dict[str, bytes] = {}
    like: dict[str, NormalMoment] = {}
    cause: AlarmCause = ""
    effect: float = 0.0
    trace: list[float] = []
    recording: str = ""

    def plain(self) -> Alarm:
        """The same without pictures."""
        return msgspec.structs.replace(self, pictures={}, like={})


class SensorHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One sensor as the agent sees it; `problem` is empty while all is well, else reason and mend.

    `flags` are of its last window, `flagged` counts its windows by flag (those that never came as `absent`), `restarts`
    how often it was opened anew. `rate_hz` is what it really gives (0 before it is known), `offset_ms` and `drift_ppm`
    how far its own clock has fallen behind the device's since it was opened, and how fast, None without such a clock.
    """

    modality: str
    windows: int
    dropped_samples: int
    flags: list[str]
    problem: str
    flagged: dict[str, int] = {}
    restarts: int = 0
    rate_hz: float = 0.0
    offset_ms: float | None = None
    drift_ppm: float | None = None


class EncoderHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The encoder in use for one modality, the one to fall back to, and the runtime that really executes it."""

    version: str
    previous: str
    sha256: str
    space: str
    provider: str


class Contribution(msgspec.Struct, frozen=True):
    """What a sensor has said of late (lineside.contribution.Aggregate): `signed` and `sd` in nats, the rest 0 to 1."""

    share: float
    signed: float
    sd: float
    availability: float


class Health(Message, frozen=True, kw_only=True):
    """The device's own account of itself; counters count since the agent started.

    Of `windows` that were cut, `embedded` were well and had an encoder; only those are sent. `drift` says how far the
    watch for slow change is: still learning what is ordinary, or watching. `contributions` is by sensor, in the
    station's present state, empty until enough is known; `effective_sensors` is as how many equal ones they count.
    `sensitivity` says in sentences how well faults are seen, with all sensors and without some of them; `degraded` says
    which sensors are out of the fusion now, why, and how well faults are seen by those that are left. `recording` is
    whether the device keeps all that it sees and hears on its own disk. `dropped` is `dropped_messages` by reason
    (edge.outbox). `making` says which encoder is made ready meanwhile, for which runtime, and how far that is.
    """

    station: str
    agent: str
    time_ns: int
    uptime_s: float
    state: str
    sensors: dict[str, SensorHealth]
    encoders: dict[str, EncoderHealth]
    making: str = ""
    windows: int
    embedded: int = 0
    moments: int
    scores: int
    drift: str = ""
    contributions: dict[str, Contribution] = {}
    effective_sensors: float | None = None
    sensitivity: list[str] = []
    degraded: str = ""
    outbox_messages: int
    outbox_bytes: int
    dropped_messages: int
    recording: bool = False
    dropped: dict[str, int] = {}
    problems: list[str]


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Some bytes of a recording that the hub asked a device for: `data` lies at `offset`.

    `size` (bytes) and `sha256` are of the whole file, the same in every piece of it.
    """

    device: str
    recording: str
    size: int
    sha256: str
    offset: int
    data: bytes


Phase = Literal["steady", "waiting", "fetching", "building", "proving", "shadow", "probation", "failed"]


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What runs for one modality since when, what `rollback` would go to, and how far the device is in a rollout.

    `rollout` and `candidate` (a version) are those that it was asked to take last, empty and 0 before the first one:
    it has taken them when `phase` is `steady` and `version` is that of the candidate. `reason` says why it waits or
    failed; `measured` is what shadow and probation measured, by the name of the limit (lineside.targets.Terms).
    """

    version: int
    sha256: str
    precision: str
    since_ns: int
    previous_version: int = 0
    previous_sha256: str = ""
    rollout: str = ""
    candidate: int = 0
    phase: Phase = "steady"
    reason: str = ""
    measured: dict[str, float] = {}


class Manifest(Message, frozen=True, kw_only=True):
    """The device's signed word on what it runs, by modality: Uptane's vehicle version manifest (Standard, 5.4.2.1.1).

    Sent at every change. `key` is the public half of the device's own Ed25519 key (hexadecimal), which never leaves
    it; `signature` is of lineside.manifest.said (hexadecimal, RFC 8032).
    """

    station: str
    time_ns: int
    agent: str
    encoders: dict[str, Installed]
    key: str = ""
    signature: str = ""


class Tombstone(Message, frozen=True):
    """Accounts for messages that the outbox lost or had to drop: their numbers as ranges, both ends included.

    They are of the tombstone's own epoch, or of `of_epoch`, an earlier one whose file was damaged. A message among them
    that arrives after all is none the worse for it.
    """

    ranges: list[tuple[int, int]]
    reason: str
    time_ns: int
    of_epoch: int = 0


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """The hub's word that it has committed these ranges of sequence numbers (both ends included) of one epoch.

    A broker's PUBACK is not storage: a device forgets a message only when it finds its number here.
    """

    device: str
    epoch: int
    ranges: list[tuple[int, int]]


class StationState(msgspec.Struct, frozen=True):
    """What a station, or a gateway to its PLC, says of itself: a product, `idle`; 0 for `since_ns` means since now."""

    state: str
    since_ns: int = 0


CommandStatus = Literal["init", "executing", "successful", "failed"]


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a device and its progress, retained on the request's own topic until the asker clears it.

    The asker owns `init`; the device owns every later status.
    """

    id: str
    op: str
    args: dict[str, str] = {}
    status: CommandStatus = "init"
    reason: str = ""
