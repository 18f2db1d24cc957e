"""The six steps of the loop: each raises LinesideError when it does not hold, and notes what it measured."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import Any

from msgspec import convert

from demo.dashboard import Dashboard
from demo.labelled import Labelled
from demo.plan import DEVICE, SITE, Line, device_file, plant_tables, stage_file, write
from demo.processes import Processes
from lineside.clock import NS, SystemClock
from lineside.config import load
from lineside.errors import LinesideError
from lineside.fusion import MIN_MOMENTS
from lineside.operator import Operator, check
from lineside.plant import PlantConfig
from lineside.recording import Label, Recording
from lineside.release import Gate

# Kinds of alarm that answer to a fault: one that is weak and lasts is told as drift of the station.
ANSWERS = {"anomaly": ("anomaly", "drift"), "sensor": ("sensor",)}

# Fault to inject, and what its alarm must say: the kind of alarm and the modality on top.
FAULTS = (
    ("bearing_noise", "anomaly", "microphone"),
    ("misaligned_part", "anomaly", "camera"),
    ("dirty_lens", "anomaly", "camera"),
    ("muted", "sensor", "microphone"),
)
NORMAL_S, NEW_S, COMMISSIONING_S, LIVE_S, FIRST_SHARE = 400.0, 150.0, 120.0, 60.0, 0.65
SHORT_S = 45.0
CALM_S = 120.0  # weak evidence fades in a minute or two

Part = tuple[Path, float, float]
MARK = ".made-by-lineside-demo"


class Loop:
    """One demo in one folder. `measured` collects what the JSON line reports."""

    def __init__(self, folder: Path, port: int, recording: Path | None, live: bool) -> None:
        self._folder, self._port, self._source, self._live = folder, port, recording, live
        self._began = time.monotonic()
        self._mqtt_port = free_port()
        self._line = Line("live" if live else "simulation", {"cam0": "camera", "mic0": "microphone"})
        self._labelled = Labelled()
        self._to_certify_on: Part = (Path(), 0.0, 0.0)
        self._clock = SystemClock()
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = Processes(folder)
        self.dashboard = Dashboard(port, self.processes.ended)
        self.measured: dict[str, Any] = {"seed": 1}

    @property
    def _plant(self) -> str:
        return str(self._folder / "plant.toml")

    @property
    def _key(self) -> str:
        return str(self._folder / "keys" / "targets.pem")

    def record(self) -> None:
        """1. A line is recorded."""
        normal = self._folder / "recordings" / "normal.mcap"
        if self._source is not None:
            read = self.processes.call("edge", "record", "--from", str(self._source), "--out", str(normal))
            self._labelled = Labelled.of(normal, Recording(normal).about.hop_s)
            self._line = _line_of(normal, self._labelled.normal_s)
            self.measured["import_warnings"] = read["warnings"]
            stages = _parts(normal, self._labelled.cut_s(FIRST_SHARE), read["seconds"])
        elif self._live:
            read = self._record("device.toml", normal, LIVE_S)
            if set(read["samples"]) != set(self._line.sensors):
                raise LinesideError("--live", "; ".join(read["warnings"]), "it wants a camera and a microphone")
            stages = _parts(normal, FIRST_SHARE * LIVE_S, LIVE_S)
        else:
            stages = self._record_simulation(normal)
        unseen = (normal.with_name("commissioning.mcap"), 0.0, 0.0)
        self._to_certify_on = unseen if self._line.kind == "simulation" else stages[-1]
        for number, (recording, from_s, to_s) in enumerate(stages, start=1):
            text = stage_file(number, self._line, str(recording), from_s, to_s)
            write(self._folder / f"stage-{number}.toml", text)
        ports, from_s = (self._mqtt_port, self._port), self._labelled.from_s
        text = device_file(self._line, *ports, seed=2, recording=str(normal), from_s=from_s)
        write(self._folder / "device.toml", text)

    def _record_simulation(self, normal: Path) -> list[Part]:
        """What is trained on, what is new, and what the device learns normal from: three runs, and none is watched."""
        new = normal.with_name("new.mcap")
        self._record("product-a.toml", normal, NORMAL_S)
        self._record("product-b.toml", new, NEW_S, product="b")
        self._record("commissioning.toml", normal.with_name("commissioning.mcap"), COMMISSIONING_S, seed=3)
        return [(normal, 0.0, NORMAL_S), (new, 0.0, NEW_S)]

    def _record(self, config: str, out: Path, seconds: float, product: str = "a", seed: int = 1) -> dict[str, Any]:
        text = device_file(self._line, self._mqtt_port, self._port, product=product, seed=seed)
        file = str(write(self._folder / config, text))
        words = ["edge", "record", "--config", file, "--seconds", str(seconds), "--out", str(out)]
        return self.processes.call(*words, *([] if self._live else ["--fast"]))

    def train(self) -> None:
        """2. The trainer runs stage 1, then stage 2 with what is new; gates pass; a certificate is written."""
        for number in (1, 2):
            stage = self.processes.call("train", "stage", str(self._folder / f"stage-{number}.toml"))
            if not stage["passed"]:
                raise LinesideError(f"stage {number}", f"gates {stage['gates']}", "train on more of normal running")
            gates = {gate["name"]: round(gate["value"], 4) for gate in stage["gates"]}
            self.measured[f"stage_{number}"] = {"gates": gates, "embedding_drift": stage["embedding_drift"]}
        self._certify()

    def _certify(self) -> None:
        """Stage 2 beside stage 1, so that a device may mix them; on moments that stage 2 did not learn from.

        A few dozen moments of anybody's recording may fail a gate, which is then waived by name; the line's may not.
        """
        old, new = (str(self._folder / f"stages/{number}") for number in (1, 2))
        recording, from_s, to_s = self._to_certify_on
        part = ("--recording", str(recording), "--from-s", str(from_s), "--to-s", str(to_s))
        strict = self._line.kind == "simulation"
        beside = self.processes.call("train", "certify", new, "--against", old, *part, judged=strict)
        [found] = (each for name, each in beside.items() if name.startswith("beside "))
        self.measured["mixes"] = {" + ".join(mix["new"]) or "nothing": mix["flips"]["value"] for mix in found["mixes"]}
        self.measured["waived"] = [gate["name"] for gate in found["gates"] if not convert(gate, Gate).passed]

    def export(self) -> None:
        """3. One ONNX file a modality, verified against PyTorch; signed and published."""
        self.processes.call(
            *("deploy", "init", str(self._folder), "--site", SITE, "--device", DEVICE, "--demo"),
            *("--mqtt-port", str(self._mqtt_port), "--hub-port", str(self._port)),
            *(f"--modality={modality}" for modality in sorted(set(self._line.sensors.values()))),
        )
        with Path(self._plant).open("a") as file:
            file.write(plant_tables(self._line))
        signed = ("--reason", "a short recording, to try and not to use", "--by", "demo", "--key", self._key)
        for gate in self.measured["waived"]:
            self.processes.call("export", "waive", str(self._folder / "stages/2"), "--gate", gate, *signed)
        parity = {}
        for number in (1, 2):
            stage, folder = str(self._folder / f"stages/{number}"), str(self._folder / "bundles")
            built = self.processes.call("export", "build", stage, "--out", folder, "--precision", "fp32")
            parity |= {Path(file["file"]).name: file["parity"]["max_difference"] for file in built["files"]}
        self.measured["parity_max_difference"] = parity
        self._publish(*(f"{modality}-1.onnx" for modality in sorted(set(self._line.sensors.values()))))

    def watch(self) -> None:
        """4. The agent fetches, verifies, tests itself, learns normal, scores, and streams over a real broker."""
        self.processes.start("hub", "run", "--config", self._plant)
        self.dashboard.wait("hub", 60, lambda: bool(self.dashboard.get("/api/status")))
        self.processes.start("edge", "run", "--config", str(self._folder / "device.toml"))
        wanted = dict.fromkeys(sorted(set(self._line.sensors.values())), "1")
        self.dashboard.wait("encoders in use", 60, lambda: self._versions() == wanted)
        since = self._clock.now_ns()
        self.dashboard.wait("scores", 60, lambda: len(self._scores(since)) >= 8)
        self._wait_calm("calm before the first fault")
        self.measured["versions_before"] = self._versions()

    def fault(self) -> None:
        """5. Faults come; the alarm names the right modality; a muted microphone leaves the rest scoring."""
        alarms = [self._labelled_fault(fault) for fault in self._labelled.faults]
        alarms += [self._injected_fault(*row) for row in self._to_inject()]
        self.measured["alarms"] = alarms
        wrong = [alarm for alarm in alarms if alarm["expected"] not in ("", alarm["top_modality"])]
        if wrong:
            told = ", ".join(f"{alarm['fault']} blamed on {alarm['top_modality']}" for alarm in wrong)
            raise LinesideError("alarms", told, "look at the contributions on the dashboard")

    def change(self) -> None:
        """6. A new camera encoder is rolled out and rolled back alone; the microphone's stream loses no window."""
        began = self._clock.now_ns()
        before = self._versions()
        if "camera" not in before:
            raise LinesideError("rollback", "the line has no camera whose encoder could change", "record one with it")
        self._publish("camera-2.onnx")
        self._deploy("rollout", "start", "--modality", "camera")
        during = self._wait_version("2")
        self.dashboard.wait("scores by camera 2", 30, lambda: self._scored_by("2", began))
        self._deploy("rollback", "--modality", "camera")
        after = self._wait_version(before["camera"])
        back = self._clock.now_ns()
        self.dashboard.wait("scores after the rollback", 30, lambda: self._scores(back))
        self.measured["versions"] = {"before": before, "rolled_out": during, "rolled_back": after}
        others = {m for m in before if m != "camera"}
        self.measured["windows_lost_in_change"] = {m: self._lost(m, began) for m in sorted(others)}
        self._count()
        moved = {m for m in others if not before[m] == during[m] == after[m]}
        if moved or any(self.measured["windows_lost_in_change"].values()):
            raise LinesideError("rollback", f"touched {moved or others} too", "see edge-run.log")

    def stop(self) -> None:
        """Stop everything that the demo started."""
        self.processes.stop()

    def _publish(self, *names: str) -> None:
        files = (str(self._folder / "bundles" / name) for name in names)
        self.processes.call("deploy", "publish", "--config", self._plant, *files)

    def _deploy(self, *words: str) -> None:
        self.processes.call("deploy", *words, "--config", self._plant)

    def _versions(self) -> dict[str, str]:
        versions: dict[str, str] = self.dashboard.device(DEVICE).get("versions", {})
        return versions

    def _wait_version(self, camera: str) -> dict[str, str]:
        return self.dashboard.wait(
            f"camera {camera} on the dashboard",
            30,
            lambda: versions if (versions := self._versions()).get("camera") == camera else None,
        )

    def _scores(self, since_ns: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.dashboard.get("/api/scores", device=DEVICE, since_ns=since_ns)
        return found

    def _scored_by(self, camera: str, since_ns: int) -> bool:
        return any(score["versions"].get("camera") == camera for score in self._scores(since_ns))

    def _active(self) -> list[dict[str, Any]]:
        return [alarm for alarm in self.dashboard.alarms(0) if alarm["state"].startswith("ACTIVE")]

    def _wait_calm(self, what: str, seconds: float = CALM_S) -> None:
        self.dashboard.wait(what, seconds, lambda: not self._active())

    def _to_inject(self) -> list[tuple[str, str, str]]:
        """The rows of FAULTS for this line: what its recording has labels for need not be injected but for `muted`.

        A recording of anything need not show a part that could lie askew: that fault is for the simulated line alone.
        """
        rows = [row for row in FAULTS if row[2] in self._line.sensors.values()]
        if self._labelled.faults:
            return [row for row in rows if row[1] == "sensor"]
        return [row for row in rows if row[0] != "misaligned_part" or self._line.kind == "simulation"]

    def _injected_fault(self, kind: str, alarm_kind: str, expected: str) -> dict[str, Any]:
        began = self._clock.now_ns()
        self._command("fault", {"kind": kind, "seconds": "60"})
        told = self._alarm(kind, alarm_kind, expected, began, 60)
        if alarm_kind == "sensor":
            rest = sorted(name for name, modality in self._line.sensors.items() if modality != expected)
            self.dashboard.wait("scores without the sensor", 20, lambda: self._only(rest))
        self._command("fault", {"kind": kind, "seconds": "0"})
        self._wait_calm(f"calm after {kind}")
        return told

    def _labelled_fault(self, fault: Label) -> dict[str, Any]:
        health, now = self.dashboard.device(DEVICE)["health"], self._clock.now_ns()
        began = self._labelled.next_ns(fault, health["time_ns"] - round(health["uptime_s"] * NS), now)
        seconds = (fault.end_ns - fault.start_ns) / NS
        expected = self._line.sensors.get(fault.sensor, "")
        told = self._alarm(fault.label, "anomaly", expected, began, (began - now) / NS + seconds)
        self._wait_calm(f"calm after {fault.label}", seconds + CALM_S)
        return told

    def _alarm(self, fault: str, kind: str, expected: str, began: int, wait_s: float) -> dict[str, Any]:
        """The alarm that answers to a fault that begins at `began`, once it is on the dashboard."""

        def raised() -> dict[str, Any] | None:
            news = [a for a in self.dashboard.alarms(began) if a["raised_ns"] >= began and a["kind"] in ANSWERS[kind]]
            return news[0] if news else None

        alarm = self.dashboard.wait(f"alarm of {fault}", wait_s, raised)
        seconds = (self._clock.now_ns() - began) / NS
        self.measured.setdefault("first_alarm_s", round(time.monotonic() - self._began, 1))
        return {
            "fault": fault,
            "expected": expected,
            "kind": alarm["kind"],
            "top_modality": alarm["top_modality"],
            "seconds": round(seconds, 1),
            "evidence": bool(alarm["pictures"]),
        }

    def _only(self, sensors: list[str]) -> bool:
        """The newest score is of just these sensors."""
        scores = self._scores(self._clock.now_ns() - 3 * NS)
        return bool(scores) and sorted(scores[-1]["contributions"]) == sensors

    def _command(self, op: str, args: dict[str, str]) -> None:
        plant = load(Path(self._plant), PlantConfig)
        with Operator(plant.connection("operator"), self._folder, SITE, self._clock) as operator:
            check(operator.ask([DEVICE], op, args, 15.0), op, "see edge-run.log")

    def _lost(self, modality: str, since_ns: int) -> int:
        """Windows missing between the first and the last stored one of a modality, by its own hop."""
        starts: list[int] = self.dashboard.get("/api/windows", device=DEVICE, modality=modality, since_ns=since_ns)
        if not starts:
            raise LinesideError(f"{modality} windows", "none were stored", "see edge-run.log")
        hop = round(self._line.hop_s * NS)
        return (starts[-1] - starts[0]) // hop + 1 - len(starts)

    def _count(self) -> None:
        """Everything that the device had embedded by its last account is stored, and no number is missing."""
        health = self.dashboard.device(DEVICE)["health"]
        modalities = sorted(set(self._line.sensors.values()))
        stored = sum(len(self.dashboard.get("/api/windows", device=DEVICE, modality=m)) for m in modalities)
        gaps = self.dashboard.get("/api/gaps", device=DEVICE)
        self.measured |= {"windows_in": health["windows"], "windows_embedded": health["embedded"]}
        self.measured |= {"windows_stored": stored, "sequence_gaps": gaps}
        if stored < health["embedded"] or gaps:
            told = f"{stored} of {health['embedded']} windows are there, missing numbers {gaps}"
            raise LinesideError("stored windows", told, "see hub-run.log")


def _parts(recording: Path, cut_s: float, seconds: float) -> list[Part]:
    """The first part of a recording to begin with, the rest as what is new."""
    return [(recording, 0.0, cut_s), (recording, cut_s, round(seconds, 1))]


def _line_of(recording: Path, seconds: float) -> Line:
    """The line of a recording with `seconds` of normal running; a short one is cut into windows more closely.

    Raises LinesideError when even then they are too few.
    """
    about = Recording(recording).about
    hop_s = about.hop_s / 2 if about.hop_s < about.length_s and seconds < SHORT_S else about.hop_s
    least_s = about.length_s + 1.25 * MIN_MOMENTS * hop_s
    if seconds < least_s:
        told = f"holds {seconds:.0f} s of normal running"
        raise LinesideError("recording", told, f"give one with at least {least_s:.0f} s")
    return Line("recording", about.sensors, about.length_s, hop_s)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fresh(folder: Path) -> Path:
    """An empty folder in the place of what an earlier demo left; any other folder that is not empty stays as it is.

    Raises LinesideError for such a one.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise LinesideError(str(folder), "is not empty, and no demo made it", "name another one with --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder
