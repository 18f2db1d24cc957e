"""The files that the demo writes: what a person would write for a line of one station."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SITE, DEVICE, STATION = "demo", "edge-1", "press-1"


@dataclass(frozen=True)
class Line:
    """Where the samples of the line come from.

    `kind` is `simulation`, `recording` or `live`; `sensors` maps sensor names to modalities; `length_s` and `hop_s`
    are the windows that suit it.
    """

    kind: str
    sensors: dict[str, str]
    length_s: float = 1.0
    hop_s: float = 0.5


def device_file(
    line: Line,
    mqtt_port: int,
    hub_port: int,
    product: str = "a",
    seed: int = 1,
    recording: str = "",
    from_s: float = 0.0,
) -> str:
    """The device file (TOML): `recording` is replayed from `from_s` on; `seed` is the simulated line's run."""
    sources = {
        "simulation": f'source = "simulation"\nproduct = "{product}"\nseed = {seed}',
        "recording": f'source = "replay"\ndevice = "{recording}"\nfrom_s = {from_s}',
    }
    sensors = "".join(_sensor(name, modality, sources.get(line.kind)) for name, modality in line.sensors.items())
    return f"""\
[device]
id = "{DEVICE}"
site = "{SITE}"
station = "{STATION}"
state_dir = "{DEVICE}"
evidence = true
allow_fault_injection = true

[evidence]
send = "request"

[windows]
length_s = {line.length_s}
hop_s = {line.hop_s}

[commissioning]
recording = "recordings/{"commissioning" if line.kind == "simulation" else "normal"}.mcap"

[broker]
port = {mqtt_port}
username = "{DEVICE}"
password_file = "secrets/{DEVICE}.password"

[repository]
url = "http://127.0.0.1:{hub_port}/repository"
root = "repository/metadata/1.root.json"
{sensors}"""


def _sensor(name: str, modality: str, source: str | None) -> str:
    live = f'source = "{modality}"\ndevice = "{"0" if modality == "camera" else ""}"'
    return f'\n[[sensors]]\nname = "{name}"\nmodality = "{modality}"\n{source or live}\n'


def stage_file(stage: int, line: Line, recording: str, from_s: float, to_s: float) -> str:
    """The training plan (TOML) of one stage: from `from_s` to `to_s` of a recording."""
    batches = max(1.0, 0.8 * (to_s - from_s) / line.hop_s / BATCH)  # a fifth is held out
    return f"""\
out = "stages/{stage}"
batch = {BATCH}
epochs = {max(2, round(STEPS[stage] / batches))}
{_second(line) if stage > 1 else "" if _continuous(line) else EVENTS}
[gates]
{GATES if line.kind == "simulation" else LENIENT}
[windows]
length_s = {line.length_s}
hop_s = {line.hop_s}

[[recordings]]
path = "{recording}"
from_s = {from_s}
to_s = {to_s}
"""


BATCH = 32
STEPS = {1: 240, 2: 120}
EVENTS = "\n[defects]\nown = 1.0\ntogether = 0.6\n"

# A few dozen held-out moments cannot tell a retention loss of one point from chance: a loss of five is what the gate
# refuses. Picture and sound of anybody's recording need not tell of each other, nor change at all: there, retrieval
# and spread are measured but refuse nothing.
GATES = "retention_loss = 0.05\n"
LENIENT = GATES + "retrieval_times_chance = 0\nspread = 1.0\n"


def plant_tables(line: Line) -> str:
    """How the plant brings a new version to its one device: soon, and without a person; each fault is its own alarm.

    Twenty moments tell shares in steps of a twentieth; of anybody's recording, with few moments to learn from, sensors
    need not go on agreeing as they did. Faults are injected one upon the other: an alarm that comes again is a new one.
    """
    strict = line.kind == "simulation"
    return f"""
[rollout]
approve = false
soak_min = 0
ring_h = 0.15

[rollout.terms]
shadow_s = 10
probation_s = 10
patience_s = 240
anomalies = 0.2
agreement = {0.5 if strict else 2.0}
contribution = {0.5 if strict else 1.0}

[alarms]
hysteresis_s = 0
"""


def _continuous(line: Line) -> bool:
    """A machine that goes through few states again and again, not a row of events (whose windows do not overlap)."""
    return line.hop_s < line.length_s


def _second(line: Line) -> str:
    """The second stage moves heads alone: what the trunk knows of defects stays.

    A second product needs more room than a later part of the same recording.
    """
    budget = "" if line.kind == "simulation" else "\n[protection]\ndrift_budget = 0.01\n"
    return f"""\
parent = "stages/1"

[defects]
own = 0
together = 0
{budget}"""


def write(path: Path, text: str) -> Path:
    """Write one of the demo's files and give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
