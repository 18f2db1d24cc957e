"""The folder of a stage: JSON and safetensors only, each file written whole, each hash checked before it is parsed.

stage.json              plan, hashes, counters, preparations, metrics, gates, certificate
weights.safetensors     every encoder, as `{modality}.{parameter}`
statistics.safetensors  second moments of the heads' inputs, and the heads that the stage began with
bank.safetensors        held-out features by `{stage}/{sensor}/{modality}`, on which later stages measure retention
calibration.safetensors prepared windows for INT8 calibration and parity
log.csv                 one row a step
resume.safetensors      only while the stage is half trained
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse
from safetensors.torch import save as pack
from torch import Tensor, nn

from lineside import features
from lineside.errors import ConfigError, GateError
from lineside.features import Prepare
from lineside.files import sha256, write_atomic
from lineside.release import Certificate
from trainer.encoders import Encoder, Encoders
from trainer.evaluate import Measured
from trainer.plan import Plan, WindowSettings
from trainer.projection import Moments

WEIGHTS, STATISTICS, BANK, CALIBRATION = (
    f"{name}.safetensors" for name in ("weights", "statistics", "bank", "calibration")
)
RESUME, LOG, STAGE = "resume.safetensors", "log.csv", "stage.json"


class Counters(msgspec.Struct, frozen=True):
    """How much a stage saw: moments read, learned from and held out, and steps of the optimiser."""

    moments: int
    learned: int
    held_out: int
    steps: int


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a finished stage, except its tensors; `files` holds the SHA-256 of theirs."""

    stage: int
    parent: str
    space: str
    plan: Plan
    plan_sha256: str
    data_sha256: str
    files: dict[str, str]
    prepare: dict[str, Prepare]
    prepare_sha256: dict[str, str]
    sensors: dict[str, str]
    windows: WindowSettings
    counters: Counters
    bad_windows: dict[str, dict[str, int]]
    warnings: list[str]
    capacity: dict[str, float]
    metrics: Measured
    certificate: Certificate

    @property
    def name(self) -> str:
        """Name of exactly these weights, `stage-2-1f0c6a77`."""
        return f"stage-{self.stage}-{self.files[WEIGHTS][:8]}"

    @property
    def passed(self) -> bool:
        """Whether every gate let it through."""
        return all(gate.passed for gate in self.certificate.gates)


@dataclass(frozen=True)
class Change:
    """What the certificate needs of one old modality: its head when the stage began, and what it had seen by then."""

    start: Tensor  # (dim, f+1)
    seen: Moments


@dataclass
class Tensors:
    """The tensors of a stage folder; `changes` is empty for a first stage, `bank` see above."""

    encoders: Encoders
    seen: dict[str, Moments] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    bank: dict[str, Tensor] = field(default_factory=dict)
    calibration: dict[str, Tensor] = field(default_factory=dict)


def save_tensors(folder: Path, tensors: Tensors) -> dict[str, str]:
    """Write all tensors; gives the SHA-256 of each file."""
    statistics: dict[str, Tensor] = {}
    for modality, seen in tensors.seen.items():
        statistics |= _moments_out(f"{modality}/seen", seen)
    for modality, change in tensors.changes.items():
        statistics |= _moments_out(f"{modality}/before", change.seen) | {f"{modality}/start": change.start}
    files = {
        WEIGHTS: _contiguous(tensors.encoders.state_dict()),
        STATISTICS: statistics,
        BANK: tensors.bank,
        CALIBRATION: tensors.calibration,
    }
    hashes = {}
    for name, content in files.items():
        data = pack(content)
        write_atomic(folder / name, data)
        hashes[name] = sha256(data)
    return hashes


def save_stage(folder: Path, stage: Stage) -> None:
    """Write stage.json, the last file of a stage, and forget how to resume it."""
    write_atomic(folder / STAGE, msgspec.json.format(msgspec.json.encode(stage), indent=2) + b"\n")
    (folder / RESUME).unlink(missing_ok=True)


def load_stage(folder: Path) -> Stage:
    """Read stage.json. Raises ConfigError when the folder is no finished stage."""
    path = folder / STAGE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stage)
    except OSError as error:
        told = "is no finished stage (it has no stage.json)"
        raise ConfigError(str(folder), told, "train it with `lineside train stage`") from error
    except msgspec.DecodeError as error:
        raise ConfigError(str(path), f"cannot be read ({error})", "train the stage again") from error


def load_tensors(folder: Path, stage: Stage) -> Tensors:
    """Read a stage's tensors. Raises ConfigError when a file is missing or is not the one that was written."""
    encoders = build(stage.prepare, stage.plan.dim)
    encoders.load_state_dict(_checked(folder, stage, WEIGHTS))
    statistics = _checked(folder, stage, STATISTICS)
    seen = {name: _moments_in(f"{name}/seen", statistics) for name in stage.prepare}
    changes = {
        name: Change(statistics[f"{name}/start"], _moments_in(f"{name}/before", statistics))
        for name in stage.prepare
        if f"{name}/start" in statistics
    }
    return Tensors(encoders, seen, changes, _checked(folder, stage, BANK), _checked(folder, stage, CALIBRATION))


def build(specs: Mapping[str, Prepare], dim: int) -> Encoders:
    """One fresh encoder a modality."""
    return Encoders({name: Encoder(specs[name], dim) for name in sorted(specs)})


def fingerprints(specs: Mapping[str, Prepare]) -> dict[str, str]:
    """Hash of each modality's preparation."""
    return {name: features.fingerprint(spec) for name, spec in specs.items()}


def must_pass(stage: Stage, folder: Path) -> None:
    """Raises GateError naming the first failed gate, its number and its limit."""
    for gate in stage.certificate.gates:
        if not gate.passed:
            bound = "at most" if gate.at_most else "at least"
            told = f"gate `{gate.name}` is {gate.value:.4g}, must be {bound} {gate.limit:.4g}"
            mend = "train it again with more or better recordings, or change [gates] or [protection] in its plan"
            raise GateError(f"{stage.name} in {folder}", told, mend)


def save_progress(
    folder: Path, identity: str, step: int, encoders: nn.Module, optimiser: torch.optim.Optimizer, log: list[list[str]]
) -> None:
    """Write all that a half-trained stage needs to go on: one file, so that no two can disagree."""
    tensors = {f"model/{name}": tensor for name, tensor in encoders.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": value for name, value in state.items()}
    write_log(folder, log)
    write_atomic(folder / RESUME, pack(_contiguous(tensors), {"identity": identity, "step": str(step)}))


def resume(folder: Path, identity: str, encoders: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Bring model and optimiser back to where a half-trained stage stopped; gives its next step, 0 for a new one.

    `identity` names plan, data and parent. Raises ConfigError when the folder holds another stage's half.
    """
    path = folder / RESUME
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        tensors = parse(path.read_bytes())
    except SafetensorError as error:
        raise ConfigError(str(path), f"is damaged ({error})", "delete it to train the stage anew") from error
    if about.get("identity") != identity:
        told = "is of another plan, parent or recording"
        raise ConfigError(str(path), told, "choose another `out`, or delete this folder to begin anew")
    encoders.load_state_dict(_under("model/", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimiser/", tensors).items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(about["step"])


def write_log(folder: Path, rows: list[list[str]]) -> None:
    """Write log.csv."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(folder / LOG, text.getvalue().encode())


def read_log(folder: Path, steps: int) -> list[list[str]]:
    """The rows of log.csv, header included, of the first `steps` steps."""
    if not steps or not (folder / LOG).exists():
        return []
    with (folder / LOG).open(newline="") as file:
        rows = list(csv.reader(file))
    return [*rows[:1], *(row for row in rows[1:] if int(row[0]) < steps)]


def _checked(folder: Path, stage: Stage, name: str) -> dict[str, Tensor]:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        told = f"cannot be read ({error.strerror})"
        raise ConfigError(str(folder / name), told, "restore the stage folder or train it again") from error
    if sha256(data) != stage.files[name]:
        told = "is not the file that the stage wrote (its hash differs)"
        raise ConfigError(str(folder / name), told, "restore the stage folder or train it again")
    return parse(data)


def _moments_out(prefix: str, moments: Moments) -> dict[str, Tensor]:
    return {f"{prefix}/second": moments.second, f"{prefix}/count": torch.tensor(moments.count)}


def _moments_in(prefix: str, tensors: Mapping[str, Tensor]) -> Moments:
    return Moments(tensors[f"{prefix}/second"], int(tensors[f"{prefix}/count"]))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
