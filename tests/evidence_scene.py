"""A recording of an alarm as a device keeps it, on the simulated line."""

from __future__ import annotations

from pathlib import Path

from edge.case import stamp
from edge.config import DeviceConfig, DeviceSettings
from edge.faults import Injector
from edge.replay import simulated
from lineside.channels import block
from lineside.clock import NS
from lineside.evidence import labels
from lineside.messages import Alarm
from lineside.recording import About, Recorder
from lineside.windows import Cutter, Window
from tests.line_device import MODALITIES, SENSORS, SITE

START_NS = 1_700_000_000 * NS
RAISED_S = 5


def name(start_ns: int = START_NS) -> str:
    """What the device calls the recording of an alarm that was raised RAISED_S after `start_ns`."""
    return f"{stamp(start_ns + RAISED_S * NS)}-anomaly-press.mcap"


NAME = name()


def alarm(key: str = "k1", state: str = "raised", *, start_ns: int = START_NS, **more: object) -> Alarm:
    """Raised RAISED_S after `start_ns`, which is the beginning of the recording."""
    time_ns = start_ns + RAISED_S * NS
    told = {
        "device": "edge-1", "station": "press", "kind": "anomaly", "subject": "press", "recording": name(start_ns),
        "versions": {"microphone": "1"}, "text": "press is unlike normal",
        "contributions": {"mic0": 7.0, "cam0": 2.0}, **more,
    }  # fmt: skip
    return Alarm(
        key=key, state=state, top_sensor="mic0", top_modality="microphone", onset_ns=time_ns - NS, time_ns=time_ns,
        p_value=1e-4, evidence=9.0, limits={"p_limit": 0.01, "raise_count": 5, "of": 6}, **told,
    )  # fmt: skip


def windows(fault: str = "") -> dict[str, Window]:
    """A second of each sensor of the simulated line, all of it with a `fault`."""
    device, injector = (
        DeviceConfig(device=DeviceSettings(id="edge-1", site=SITE, station="press"), sensors=SENSORS),
        Injector(),
    )
    cutters = {name: Cutter(NS, NS) for name in MODALITIES}
    found: dict[str, Window] = {}
    if fault:
        injector.start(fault, START_NS + 3600 * NS)
    for samples in simulated(device, Path(), START_NS, 4.0):
        for window in cutters[samples.sensor].push(injector.apply(samples)):
            found[window.sensor] = window
    return found


def recording(path: Path, *alarms: Alarm, seconds: float = 8.0, start_ns: int = START_NS, fault: str = "") -> Path:
    """Seconds of the simulated line with these alarms in it (one, where none is given), and their labels.

    A `fault` (edge.faults) begins one second before the alarm.
    """
    alarms = alarms or (alarm(start_ns=start_ns),)
    settings = DeviceSettings(id="edge-1", site=SITE, station="press")
    device, injector = DeviceConfig(device=settings, sensors=SENSORS), Injector()
    with Recorder(path, About(station="press", source="edge-1", sensors=MODALITIES), sound="flac") as recorder:
        for samples in simulated(device, Path(), start_ns, seconds):
            if fault and samples.start_ns >= start_ns + (RAISED_S - 1) * NS:
                injector.start(fault, start_ns + 3600 * NS)
                fault = ""
            recorder.write(injector.apply(samples))
        for each in alarms:
            recorder.append(block("/alarms", each.time_ns, each.time_ns, each))
        for label in labels(alarms, MODALITIES, start_ns, start_ns + round(seconds * NS)).values():
            recorder.label(label)
    return path
