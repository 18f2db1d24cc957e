"""Sensors that fail in every way that a health rule knows, encoders that do, and clocks that jump."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import structs

from edge import capture
from edge.capture import Capture
from edge.commissioning import Commissioning
from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.faults import Injector
from edge.pipeline import Pipeline
from edge.replay import commission, simulated
from edge.sensors.table import open_sensor
from lineside.clock import NS, SystemClock
from lineside.errors import ReleaseError
from lineside.fusion import Encoded
from lineside.messages import Alarm, Message, Score
from lineside.recording import Recording
from lineside.windows import Samples
from tests.faults.plant import resources, running
from tests.faults.table import Fault, Found
from tests.line_device import DATA, SENSORS, SITE, START_NS, record

VIBRATION = SensorSettings(name="vib0", modality="series", source="simulation")
CONFIG = DeviceConfig(device=DeviceSettings(id="edge-1", site=SITE, station="press"), sensors=[*SENSORS, VIBRATION])
ALONE = 4  # windows until a health rule must have taken a sensor out and told it
Change = Callable[[Samples], Samples]


def injected(kind: str) -> Callable[[], Change]:
    """A fault of the table of faults (edge.faults)."""

    def make() -> Change:
        injector = Injector()
        injector.start(kind, START_NS + 10_000 * NS)
        return injector.apply

    return make


def constant(value: float) -> Callable[[], Change]:
    """Samples that say nothing but one value; of sound, with a little noise on it."""

    def change(samples: Samples) -> Samples:
        data = np.full_like(samples.data, value)
        if samples.modality == "microphone":
            data += np.random.default_rng(samples.start_ns).integers(-20, 20, len(data)).astype(data.dtype)
        return replace(samples, data=data)

    return lambda: change


def holed() -> Change:
    """Four of five blocks never come."""
    return lambda samples: (
        samples if samples.start_ns // (NS // 10) % 5 == 0 else replace(samples, data=samples.data[:0])
    )


def learned(folder: Path) -> tuple[Commissioning, dict[str, Encoder]]:
    """Normal running of the simulated line with the encoders of the tests."""
    encoders = {m: Encoder.load(DATA / f"{m}-1.onnx") for m in ("camera", "microphone")}
    two = structs.replace(CONFIG, sensors=SENSORS)
    return commission(two, Ensemble(encoders), Recording(record(folder / "normal.mcap", two, 45))), encoders


def spoilt(sensor: str, flag: str, make: Callable[[], Change], folder: Path, strikes: int) -> Found:
    """A sensor is spoilt for ten seconds: named, left out of the fusion while it lasts, and back by itself."""
    known, encoders = learned(folder)
    config = CONFIG if sensor == "vib0" else structs.replace(CONFIG, sensors=SENSORS)
    pipeline = Pipeline(config)
    if sensor != "vib0":
        pipeline.ensemble = known.ensemble(encoders, config)
    change, messages = make(), list[Message]()
    begin, end = START_NS + 1000 * NS, START_NS + 1010 * NS
    for samples in simulated(config, Path(), begin - 10 * NS, 40.0):
        now = change(samples) if samples.sensor == sensor and begin <= samples.start_ns < end else samples
        messages += pipeline.push(now)
    alarms = [m for m in messages if isinstance(m, Alarm) and m.kind == "sensor"]
    if [(a.state, a.subject) for a in alarms] != [("raised", sensor), ("cleared", sensor)]:
        return Found(broken=f"sensor alarms were {[(a.state, a.subject) for a in alarms]}")
    if not pipeline.counters.flagged[sensor][flag]:
        return Found(broken=f"no window was flagged {flag}, but {dict(pipeline.counters.flagged[sensor])}")
    scores = [m for m in messages if isinstance(m, Score)]
    inside = [s for s in scores if begin + NS <= s.start_ns < end - NS]
    if sensor != "vib0" and (len(inside) < 12 or any(sensor in s.contributions for s in inside)):
        return Found(
            broken=f"{len(inside)} scores meanwhile, {sensor} in {sum(sensor in s.contributions for s in inside)}"
        )
    after = next((s.end_ns for s in scores if s.start_ns >= end and sensor in s.contributions), None)
    told = f"told after {(alarms[0].time_ns - begin) / NS:.1f} s"
    return Found(back_s=(after - end) / NS if after else (alarms[1].time_ns - end) / NS, told=told)


class Sick(Encoder):
    """An encoder that gives NaN, or fails."""

    def encode(self, batch: np.ndarray) -> Encoded:
        if self.card.space == "fails":
            raise ReleaseError("runtime", self.card.name, "cannot run (out of memory)", "export it again")
        made = super().encode(batch)
        return made._replace(embedding=np.full_like(made.embedding, np.nan))


def senseless(how: str, folder: Path, strikes: int) -> Found:
    """An encoder makes no sense for ten seconds; the other modality scores on."""
    known, encoders = learned(folder)
    config = structs.replace(CONFIG, sensors=SENSORS)
    pipeline = Pipeline(config)
    well = known.ensemble(encoders, config)
    camera = encoders["camera"]
    sick = Sick(structs.replace(camera.card, space=how), camera.spec, "cpu", camera._session)
    begin, end, scores = START_NS + 1000 * NS, START_NS + 1010 * NS, list[Score]()
    for samples in simulated(config, Path(), begin - 10 * NS, 40.0):
        ill = begin <= samples.start_ns < end
        pipeline.ensemble = replace(well, encoders={**encoders, "camera": sick}) if ill else well
        scores += [m for m in pipeline.push(samples) if isinstance(m, Score)]
    inside = [s for s in scores if begin + NS <= s.start_ns < end - 2 * NS]
    if any(s.absent.get("cam0") != "senseless" or not np.isfinite(s.evidence) for s in inside) or len(inside) < 12:
        return Found(broken=f"of {len(inside)} moments not all were scored by the microphone alone")
    after = next(s.start_ns for s in scores if s.start_ns >= end and "cam0" in s.contributions)
    return Found(back_s=(after - end) / NS)


def unplugged(seconds: float, stuck: bool, folder: Path, strikes: int) -> Found:
    """The network camera goes away (or hangs) and comes back; the microphone scores on."""
    with running(folder) as plant:
        slowest = 0.0
        for _ in range(strikes):
            plant.camera.stuck, plant.camera.off = stuck, not stuck
            time.sleep(seconds)
            alone = plant.newest()
            plant.camera.stuck = plant.camera.off = False
            back_s = plant.back_s(20)
            if alone is None or list(alone.contributions) != ["mic0"] or back_s is None:
                return Found(broken="the microphone did not score alone" if back_s else "the camera did not come back")
            slowest = max(slowest, back_s)
        lost, duplicated = plant.account()
    # A whole window of the camera is in the last second.
    return Found(lost, duplicated, slowest, f"{strikes} times, the second of a whole window included")


def replugged(folder: Path, strikes: int) -> Found:
    """A source that fails after its first samples, opened anew in a new process each time."""
    row = SensorSettings(name="vib0", modality="series", source="series", device="rows", rate_hz=1000.0, channels=2)
    (folder / "rows").write_text("1,2\n" * 100 + "broken\n")
    before, pause = resources(), capture.BACKOFF_S
    capture.BACKOFF_S = (0.001, 0.001)
    try:
        out: queue.Queue[Samples] = queue.Queue(10)
        kept = Capture("vib0", lambda: open_sensor(row, SystemClock(), 0, folder, isolated=True), out)
        kept.start()
        for _ in range(strikes):
            out.get(timeout=30)
        kept.stop()
    finally:
        capture.BACKOFF_S = pause
    leaked = [
        f"{name} {now - then:+d}"
        for (name, then), now in zip(before.items(), resources().values(), strict=True)
        if now > then
    ]
    return Found(broken=", ".join(leaked), told=f"{strikes} cycles; " + ", ".join(before))


def wall_set(hours: int, folder: Path, strikes: int) -> Found:
    """The wall clock is set while the agent runs: moments go on evenly, and health tells of it."""
    with running(folder, before_agent=["-m", "tests.faults.jump", str(hours)]) as plant:
        if not plant.told("the wall clock was set by", 40):
            return Found(broken="health does not tell of it")
        back_s = plant.back_s(20, now_ns=plant.newest_ns())
        lost, duplicated = plant.account()
        with plant.store() as store:
            starts = np.array([score.start_ns for score in store.scores("edge-1", limit=100_000)])
    if (steps := np.diff(starts) / NS).max() > 5.0:
        return Found(broken=f"moments have a hole of {steps.max():.1f} s")
    return Found(lost, duplicated, back_s)


NAMED = "named in health and alarm, out of the fusion, back by itself; the rest scores on"
RULES: tuple[tuple[str, str, str, Callable[[], Change]], ...] = (
    ("black picture", "cam0", "black", injected("black")),
    ("frozen picture", "cam0", "frozen", injected("frozen")),
    ("white picture", "cam0", "overexposed", constant(255)),
    ("camera out of focus", "cam0", "defocused", injected("defocused")),
    ("silent microphone", "mic0", "silent", injected("muted")),
    ("clipped microphone", "mic0", "clipped", injected("clipped")),
    ("microphone with DC only", "mic0", "dc", constant(8000)),
    ("sound with holes", "mic0", "gap", holed),
    ("series that stands still", "vib0", "flat", constant(4.2)),
    ("series of NaN", "vib0", "not-a-number", constant(np.nan)),
)
ROWS = (
    *(Fault(name, NAMED, partial(spoilt, sensor, flag, make), 5, slow=False) for name, sensor, flag, make in RULES),
    Fault("NaN from an encoder", NAMED, partial(senseless, "nan"), 5, slow=False),
    Fault("encoder fails while it runs", NAMED, partial(senseless, "fails"), 5, slow=False),
    Fault("network camera unplugged", NAMED, partial(unplugged, 5.0, False), 6, 3),
    Fault("network camera hangs", NAMED, partial(unplugged, 6.0, True), 6, 3),
    Fault(
        "sensor unplugged and plugged in again", "no process, thread, descriptor or memory leaks", replugged, None, 1000
    ),
    Fault("wall clock set +1 h", "moments go on evenly, health tells of it", partial(wall_set, 1), 15),
    Fault("wall clock set -1 h", "moments go on evenly, health tells of it", partial(wall_set, -1), 15),
)
