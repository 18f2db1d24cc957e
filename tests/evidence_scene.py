"""A recording of an alarm as a device keeps it, on the simulated line."""

from __future__ import annotations

from pathlib import Path

from edge.case import stamp
from edge.config import DeviceConfig, DeviceSettings
from edge.replay import simulated
from lineside.channels import block
from lineside.clock import NS
from lineside.evidence import labels
from lineside.messages import Alarm
from lineside.recording import About, Recorder
from tests.line_device import MODALITIES, SENSORS, SITE

START_NS = 1_700_000_000 * NS
NAME = f"{stamp(START_NS + 5 * NS)}-anomaly-press.mcap"


def alarm(key: str = "k1", state: str = "raised", **more: object) -> Alarm:
    """Raised five seconds after the beginning of the recording."""
    time_ns = START_NS + 5 * NS
    told = {"device": "edge-1", "station": "press", "kind": "anomaly", "subject": "press", "recording": NAME, **more}
    return Alarm(
        key=key, state=state, top_sensor="mic0", top_modality="microphone", onset_ns=time_ns - NS, time_ns=time_ns,
        p_value=1e-4, evidence=9.0, contributions={"mic0": 7.0, "cam0": 2.0}, versions={"microphone": "1"},
        limits={"p_limit": 0.01, "raise_count": 5, "of": 6}, text="press is unlike normal", **told,
    )  # fmt: skip


def recording(path: Path, *alarms: Alarm, seconds: float = 8.0) -> Path:
    """Seconds of the simulated line with these alarms in it (one, where none is given), and their labels."""
    alarms = alarms or (alarm(),)
    settings = DeviceSettings(id="edge-1", site=SITE, station="press")
    device = DeviceConfig(device=settings, sensors=SENSORS)
    with Recorder(path, About(station="press", source="edge-1", sensors=MODALITIES), sound="flac") as recorder:
        for samples in simulated(device, Path(), START_NS, seconds):
            recorder.write(samples)
        for each in alarms:
            recorder.append(block("/alarms", each.time_ns, each.time_ns, each))
        for label in labels(alarms, MODALITIES, START_NS, START_NS + round(seconds * NS)).values():
            recorder.label(label)
    return path
