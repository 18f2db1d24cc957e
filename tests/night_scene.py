"""A line whose commands are played by a few lines of Python on real files: nights in milliseconds, cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lineside import config
from lineside.clock import NS, SimulatedClock
from lineside.files import write_atomic
from lineside.recording import About, Label, Recorder
from lineside.release import Certificate, Gate
from lineside.targets import Candidate, Pointer
from lineside.windows import Samples
from trainer.children import Answer
from trainer.desk import Desk
from trainer.night_plan import NightPlan
from trainer.plan import Plan

DAY_NS = 86_400 * NS
FROM_NS = 46_000 * DAY_NS  # later than any file of today
PLAN = """
plan = "stage.toml"
recordings = ["recordings"]
labelled = ["labelled"]
settled_min = 0
plant = "plant/plant.toml"
release = "canary"
keep_stages = 2
[minutes]
pump = 1.0
"""


def record(path: Path, minutes: float, day: int, *, fault: bool = False) -> Path:
    """A pump's pressure, ten rows a second; `fault` labels its last tenth."""
    rng = np.random.default_rng(day)
    begin, seconds = day * DAY_NS, round(minutes * 60)
    with Recorder(path, About(station="s1", sensors={"pump0": "series"}, hop_s=0.25)) as recorder:
        for second in range(seconds):
            data = rng.normal(size=(10, 1)).astype(np.float32)
            recorder.write(Samples("pump0", "series", begin + second * NS, 10.0, data))
        if fault:
            start = begin + round(0.9 * seconds) * NS
            recorder.label(Label(start, begin + seconds * NS, "leak", fault=True))
    return path


class Line:
    """One line in a folder: `desk` is where its nights work, `gates` what the next stage's gate measures."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.clock = folder, SimulatedClock(FROM_NS)
        self.fails: dict[str, int] = {}  # the exit code of a command, by its first two words
        for name in ("recordings", "labelled", "plant"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "stage.toml").write_text("epochs = 2\n")
        plan = config.loads(PLAN.replace("pump", "series"), NightPlan)
        self.desk = Desk(msgspec.structs.replace(plan, **changes), folder, self.call, self.clock)
        self.repository = folder / "plant" / "repository.json"

    def first_stage(self) -> None:
        """What a person has trained, and what is in use."""
        self._save_stage(self.desk.stage(1), 0.0)
        self._point({"series": Pointer(version=1, targets={})})

    @property
    def pointers(self) -> dict[str, Pointer]:
        if not self.repository.exists():
            return {}
        return msgspec.json.decode(self.repository.read_bytes(), type=dict[str, Pointer])

    def approve(self) -> None:
        """The rollout's end: the candidate becomes the version."""
        self._point({name: self._after(pointer) for name, pointer in self.pointers.items()})

    def abort(self) -> None:
        self._point({name: msgspec.structs.replace(p, candidate=None) for name, p in self.pointers.items()})

    def asked(self, *words: str) -> int:
        """How often a command was given, by its first words; told on disk, as this process may be killed."""
        log = self.folder / "asked.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        return sum(line.startswith(" ".join(words)) for line in lines)

    def call(self, words: Sequence[str], log: Path) -> Answer:
        """In the place of trainer.children.call."""
        with (self.folder / "asked.txt").open("a") as file:
            file.write(" ".join(words) + "\n")
        if code := self.fails.get(" ".join(words[:2]), 0):
            return Answer(code, None, f"{words[1]}: failed by the test")
        play: dict[str, Callable[[Sequence[str]], Answer]] = {
            "train stage": self._train,
            "train certify": self._certify,
            "export build": self._export,
            "deploy pointers": lambda _: Answer(0, msgspec.to_builtins(self.pointers), ""),
            "deploy status": lambda _: Answer(0, [{"device": "edge-1", "running": "1", "previous": ""}], ""),
            "deploy publish": self._publish,
            "deploy rollout": self._rollout,
        }
        return play[" ".join(words[:2])](words)

    def _train(self, words: Sequence[str]) -> Answer:
        plan = config.load(Path(words[2]), Plan)
        out = Path(plan.out)
        assert (Path(plan.parent) / "stage.json").exists()
        assert all(Path(part.path).exists() for part in plan.recordings)
        drift = 0.2 if (self.folder / "worse").exists() else 0.01
        if not (out / "stage.json").exists():
            write_atomic(out / "weights", b"half", 0o644)
            self._save_stage(out, drift)
        gates = [{**msgspec.to_builtins(_gate(drift)), "passed": drift <= 0.05}]
        told = {"name": f"stage-{out.name}-0123abcd", "gates": gates, "embedding_drift": {"series": drift}}
        return Answer(0 if drift <= 0.05 else 6, told, "" if drift <= 0.05 else "gate `embedding drift series`")

    def _certify(self, words: Sequence[str]) -> Answer:
        assert all(Path(word).exists() for word in words[2:] if not word.startswith("--"))
        return Answer(0, {"name": Path(words[2]).name}, "")

    def _export(self, words: Sequence[str]) -> Answer:
        out, version = Path(words[words.index("--out") + 1]), words[words.index("--version") + 1]
        files = [out / f"series-{version}{kind}.onnx" for kind in ("", ".int8")]
        for file in files:
            write_atomic(file, b"an encoder")
        return Answer(0, {"files": [{"file": str(file)} for file in files]}, "")

    def _publish(self, words: Sequence[str]) -> Answer:
        assert len(words[4:]) == 2
        assert all(Path(file).read_bytes() == b"an encoder" for file in words[4:])
        write_atomic(self.folder / "plant" / "published", Path(words[4]).name.encode())
        return Answer(0, [], "")

    def _rollout(self, words: Sequence[str]) -> Answer:
        pointer = self.pointers["series"]
        if pointer.candidate:
            return Answer(1, None, "series: a rollout is on its way")
        version = int((self.folder / "plant" / "published").read_text().split("-")[1].split(".")[0])
        candidate = Candidate(rollout=f"r{version}", version=version, targets={}, devices=["edge-1"])
        self._point({"series": msgspec.structs.replace(pointer, candidate=candidate)})
        return Answer(0, {}, "")

    def _after(self, pointer: Pointer) -> Pointer:
        assert pointer.candidate is not None
        return Pointer(version=pointer.candidate.version, targets={}, history=[*pointer.history, pointer.version])

    def _point(self, pointers: dict[str, Pointer]) -> None:
        write_atomic(self.repository, msgspec.json.encode(pointers))

    def _save_stage(self, out: Path, drift: float) -> None:
        proof = Certificate(stage=1, parent="", embedding_drift={}, similarity_drift={}, gates=[_gate(drift)])
        write_atomic(out / "stage.json", json.dumps({"certificate": msgspec.to_builtins(proof)}).encode())


def _gate(drift: float) -> Gate:
    return Gate("embedding drift series", drift, 0.05, True)
