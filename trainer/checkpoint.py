"""The folder of a stage: JSON and safetensors only, each file written whole, each hash checked before it is parsed.

stage.json              plan, hashes, counters, preparations, metrics, gates, certificate, ledger
weights.safetensors     every encoder, as `{modality}.{parameter}`
statistics.safetensors  second moments of the heads' inputs, and the heads that the stage began with
bank.safetensors        held-out features by `{stage}/{sensor}/{modality}`, on which later stages measure retention
calibration.safetensors prepared windows for INT8 calibration and parity
log.csv                 one row a step
resume.safetensors      only while the stage is half trained

and, where the plan asks for what they hold:

layers.safetensors      second moments of the inputs of every layer in a trunk, and what moved layers began with
sums.safetensors        what heads are solved from beside their moments
replay.safetensors      the moments that are kept whole
rule.safetensors        what the reference's rule and elastic weight consolidation remember
teacher.safetensors     the momentum teacher and its queues, as the stage ended
optimiser.safetensors   AdamW's moments of every weight that was stepped, `{modality}.{parameter}/{moment}`

and what was measured afterwards (`lineside train certify --against`):

compatibility.json      certificates beside older stages (trainer.compatibility)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse
from safetensors.torch import save as pack
from torch import Tensor, nn

from lineside import features
from lineside.errors import ConfigError, GateError
from lineside.features import Prepare
from lineside.files import sha256, write_atomic
from lineside.release import Certificate, Gate
from trainer import layers
from trainer.data import Dataset, View
from trainer.encoders import Encoder, Encoders
from trainer.evaluate import Measured
from trainer.guide import Guide
from trainer.layers import LayerMoments
from trainer.ledger import StageRow
from trainer.plan import Plan, WindowSettings
from trainer.projection import Moments
from trainer.solved import Sums

ALL = ("weights", "statistics", "bank", "calibration", "layers", "sums", "replay", "rule", "teacher", "optimiser")
WEIGHTS, STATISTICS, BANK, CALIBRATION, LAYERS, SUMS, REPLAY, RULE, TEACHER, OPTIMISER = (
    f"{name}.safetensors" for name in ALL
)
ALWAYS = (WEIGHTS, STATISTICS, BANK, CALIBRATION)
RESUME, LOG, STAGE = "resume.safetensors", "log.csv", "stage.json"
LAST_STEP = 2**62


class Counters(msgspec.Struct, frozen=True):
    """How much a stage saw: moments read, learned from and held out, and steps of the optimiser."""

    moments: int
    learned: int
    held_out: int
    steps: int


class Adapters(msgspec.Struct, frozen=True):
    """The branches of one encoder: their rank, and the identity of the encoder that they stand on."""

    rank: int
    base: str


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a finished stage, except its tensors; `files` holds the SHA-256 of theirs.

    `widths` are those of fixed trunks (0: a learned one), `pairs` the modalities ever trained together, `labels` those
    that heads were solved for, in the order of their anchors, `replay` the stage and label of each replayed moment.
    `adapters` are those of modalities that have any.
    """

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
    widths: dict[str, int]
    pairs: list[tuple[str, str]]
    labels: list[str]
    replay: list[str]
    windows: WindowSettings
    counters: Counters
    bad_windows: dict[str, dict[str, int]]
    warnings: list[str]
    epsilon: float
    capacity: dict[str, float]
    metrics: Measured
    certificate: Certificate
    ledger: list[StageRow]
    adapters: dict[str, Adapters] = msgspec.field(default_factory=dict)

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


@dataclass(frozen=True)
class LayerChange:
    """The same of an old trunk's layers that moved: their matrices when the stage began, and what they had seen."""

    starts: dict[str, Tensor]
    seen: dict[str, LayerMoments]


@dataclass(frozen=True)
class Replay:
    """Moments that are kept whole: inputs (n, *shape) and presence (n,) by sensor, and `{stage}/{label}` of each."""

    inputs: dict[str, Tensor]
    present: dict[str, Tensor]
    keys: list[str]

    def only(self, rows: list[int]) -> Replay:
        """Those of some rows, in their order."""
        inputs, present = ({name: x[rows] for name, x in part.items()} for part in (self.inputs, self.present))
        return Replay(inputs, present, [self.keys[row] for row in rows])

    def after(self, old: Replay | None) -> Replay:
        """With `old` moments before these; a sensor that one of them lacks is absent there."""
        if old is None:
            return self
        inputs, present = {}, {}
        for name in self.inputs.keys() | old.inputs.keys():
            like = (self if name in self.inputs else old).inputs[name]
            parts = [part.inputs.get(name, like.new_zeros(len(part.keys), *like.shape[1:])) for part in (old, self)]
            shown = [part.present.get(name, torch.zeros(len(part.keys), dtype=torch.bool)) for part in (old, self)]
            inputs[name], present[name] = torch.cat(parts), torch.cat(shown)
        return Replay(inputs, present, [*old.keys, *self.keys])

    def dataset(self, like: Dataset) -> Dataset:
        """As a dataset of the sensors of `like`."""
        views = {}
        for sensor, view in like.views.items():
            nothing = np.zeros((len(self.keys), *view.inputs.shape[1:]), view.inputs.dtype)
            inputs = self.inputs[sensor].numpy() if sensor in self.inputs else nothing
            present = self.present[sensor].numpy() if sensor in self.present else np.zeros(len(self.keys), np.bool_)
            views[sensor] = View(view.modality, inputs, present)
        none = np.zeros(len(self.keys), np.int64)
        labels = np.array([key.partition("/")[2] for key in self.keys], np.str_)
        return Dataset(views, like.specs, none, none - 1, like.length_ns, like.hop_ns, {}, [], labels)


def replay_from(dataset: Dataset, rows: NDArray[np.int64], stage: int) -> Replay:
    """The moments `rows` of a dataset, kept whole."""
    names = dataset.labels[rows].tolist() if len(dataset.labels) else [""] * len(rows)
    return Replay(
        {sensor: torch.from_numpy(view.inputs[rows]) for sensor, view in dataset.views.items()},
        {sensor: torch.from_numpy(view.present[rows]) for sensor, view in dataset.views.items()},
        [f"{stage}/{name}" for name in names],
    )


@dataclass
class Tensors:
    """The tensors of a stage folder; `changes` is empty for a first stage, `bank` see above."""

    encoders: Encoders
    seen: dict[str, Moments] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    bank: dict[str, Tensor] = field(default_factory=dict)
    calibration: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, LayerMoments]] = field(default_factory=dict)
    layer_changes: dict[str, LayerChange] = field(default_factory=dict)
    sums: Sums = field(default_factory=Sums)
    replay: Replay | None = None
    rule: dict[str, Tensor] = field(default_factory=dict)
    guide: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] = field(default_factory=dict)


def save(folder: Path, stage: Stage, tensors: Tensors) -> Stage:
    """Write a whole stage, stage.json last, and forget how to resume it; gives it with its files' hashes and space."""
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
        LAYERS: _layers_out(tensors),
        SUMS: _sums_out(tensors.sums),
        REPLAY: _replay_out(tensors.replay),
        RULE: _contiguous(tensors.rule),
        TEACHER: _contiguous(tensors.guide),
        OPTIMISER: _contiguous(tensors.optimiser),
    }
    hashes = {}
    for name, content in files.items():
        if content or name in ALWAYS:
            data = pack(content)
            write_atomic(folder / name, data)
            hashes[name] = sha256(data)
    space = stage.space or f"s-{hashes[WEIGHTS][:12]}"
    prints = {name: features.fingerprint(spec) for name, spec in stage.prepare.items()}
    stage = structs.replace(stage, files=hashes, space=space, prepare_sha256=prints)
    write_atomic(folder / STAGE, msgspec.json.format(msgspec.json.encode(stage), indent=2) + b"\n")
    (folder / RESUME).unlink(missing_ok=True)
    return stage


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
    """Read a stage's tensors.

    Raises ConfigError when a file is missing or is not the one that was written, and for adapters on another encoder
    than the one that they learned on.
    """
    ranks = {name: each.rank for name, each in stage.adapters.items()}
    encoders = build(stage.prepare, stage.plan.dim, stage.widths, ranks)
    encoders.load_state_dict(_checked(folder, stage, WEIGHTS))
    for name, each in stage.adapters.items():
        if (found := identity(stage.prepare[name], encoders[name].base())) != each.base:
            told = f"the adapters of {name} learned on encoder {each.base}, and stand on {found}"
            raise ConfigError(str(folder), told, "restore the stage folder or train it again")
    statistics = _checked(folder, stage, STATISTICS)
    seen = {name: _moments_in(f"{name}/seen", statistics) for name in stage.prepare}
    changes = {
        name: Change(statistics[f"{name}/start"], _moments_in(f"{name}/before", statistics))
        for name in stage.prepare
        if f"{name}/start" in statistics
    }
    stored = {name: _checked(folder, stage, name) if name in stage.files else {} for name in (LAYERS, SUMS, REPLAY)}
    seen_layers, layer_changes = _layers_in(stored[LAYERS], stage)
    return Tensors(
        encoders,
        seen,
        changes,
        _checked(folder, stage, BANK),
        _checked(folder, stage, CALIBRATION),
        seen_layers,
        layer_changes,
        _sums_in(stored[SUMS], stage.labels),
        _replay_in(stored[REPLAY], stage.replay),
        _checked(folder, stage, RULE) if RULE in stage.files else {},
        _checked(folder, stage, TEACHER) if TEACHER in stage.files else {},
        _checked(folder, stage, OPTIMISER) if OPTIMISER in stage.files else {},
    )


def identities(stage: Stage, encoders: Encoders) -> dict[str, str]:
    """What each encoder is known by wherever it goes, by modality."""
    return {name: identity(stage.prepare[name], encoders[name]) for name in sorted(stage.prepare)}


def identity(spec: Prepare, encoder: Encoder) -> str:
    """A hash of preparation and weights, 16 digits."""
    return sha256(features.fingerprint(spec).encode() + pack(_contiguous(encoder.state_dict())))[:16]


def build(specs: Mapping[str, Prepare], dim: int, widths: Mapping[str, int], ranks: Mapping[str, int]) -> Encoders:
    """One fresh encoder a modality, with a fixed trunk or with adapters where `widths` or `ranks` say more than 0."""
    encoders = Encoders({name: Encoder(specs[name], dim, widths.get(name, 0)) for name in sorted(specs)})
    for name, rank in ranks.items():
        encoders[name].adapt(rank)
    return encoders


def must_pass(stage: Stage, folder: Path) -> None:
    """Raises GateError naming the first failed gate, its number and its limit."""
    mend = "train it again with more or better recordings, or change [gates] or [protection] in its plan"
    must_hold(stage.certificate.gates, f"{stage.name} in {folder}", mend)


def must_hold(gates: Sequence[Gate], thing: str, mend: str) -> None:
    """Raises GateError naming the first failed gate of a thing, its number and its limit."""
    for gate in gates:
        if not gate.passed:
            bound = "at most" if gate.at_most else "at least"
            raise GateError(thing, f"gate `{gate.name}` is {gate.value:.4g}, must be {bound} {gate.limit:.4g}", mend)


def save_progress(
    folder: Path,
    identity: str,
    step: int,
    encoders: nn.Module,
    optimiser: torch.optim.Optimizer,
    guide: Guide | None,
    log: list[list[str]],
) -> None:
    """Write all that a half-trained stage needs to go on: one file, so that no two can disagree."""
    tensors = {f"model/{name}": tensor for name, tensor in encoders.state_dict().items()}
    tensors |= {f"optimiser/{name}": tensor for name, tensor in stepped(encoders, optimiser).items()}
    if guide is not None:
        tensors |= {f"guide/{name}": tensor for name, tensor in guide.state().items()}
    write_log(folder, log)
    write_atomic(folder / RESUME, pack(_contiguous(tensors), {"identity": identity, "step": str(step)}))


def resume(
    folder: Path, identity: str, encoders: nn.Module, optimiser: torch.optim.Optimizer, guide: Guide | None
) -> int:
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
    step_on(encoders, optimiser, _under("optimiser/", tensors))
    if guide is not None:
        guide.restore(_under("guide/", tensors))
    return int(about["step"])


def stepped(encoders: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser knows of each weight that it has stepped, `{parameter}/{moment}`."""
    names = {weight: name for name, weight in encoders.named_parameters()}
    return {f"{names[w]}/{key}": value for w, state in optimiser.state.items() for key, value in state.items()}


def step_on(encoders: nn.Module, optimiser: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Bring the optimiser back to what `stepped` gave, where a weight still moves and still has that shape."""
    for name, weight in encoders.named_parameters():
        known = _under(f"{name}/", moments)
        if weight.requires_grad and known and known["exp_avg"].shape == weight.shape:
            # Copies: AdamW steps them in place. Its count of steps stays on the CPU.
            optimiser.state[weight] = {
                key: value.clone() if key == "step" else value.to(weight, copy=True) for key, value in known.items()
            }


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


def logged_terms(folder: Path) -> list[tuple[str, float]]:
    """Every term of every step in log.csv, by its name there."""
    told = [row[3].split() for row in read_log(folder, LAST_STEP)[1:]]
    pairs = [word.rpartition("=") for words in told for word in words]
    return [(name, float(value)) for name, _, value in pairs]


def _layers_out(tensors: Tensors) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for modality, seen in tensors.layers.items():
        flat |= layers.to_tensors(f"{modality}/seen", seen)
    for modality, change in tensors.layer_changes.items():
        moved = {name: change.seen[name] for name in change.starts if name in change.seen}
        flat |= layers.to_tensors(f"{modality}/before", moved)
        flat |= {f"{modality}/start/{name}": start for name, start in change.starts.items()}
    return flat


def _layers_in(
    tensors: Mapping[str, Tensor], stage: Stage
) -> tuple[dict[str, dict[str, LayerMoments]], dict[str, LayerChange]]:
    seen = {name: layers.from_tensors(f"{name}/seen", tensors) for name in stage.prepare}
    changes = {
        name: LayerChange(_under(f"{name}/start/", tensors), layers.from_tensors(f"{name}/before", tensors))
        for name in stage.prepare
    }
    kept = {name: change for name, change in changes.items() if change.starts}
    return {name: found for name, found in seen.items() if found}, kept


def _sums_out(sums: Sums) -> dict[str, Tensor]:
    labelled = {f"label/{modality}": rows for modality, rows in sums.by_label.items()}
    crossed = {f"pair/{a}+{b}": x for (a, b), x in sums.crossed.items()}
    counts = {f"count/{a}+{b}": torch.tensor(count) for (a, b), count in sums.counts.items()}
    return labelled | crossed | counts


def _sums_in(tensors: Mapping[str, Tensor], labels: list[str]) -> Sums:
    pairs = {tuple(name.split("+")): x for name, x in _under("pair/", tensors).items()}
    counts = {tuple(name.split("+")): int(x) for name, x in _under("count/", tensors).items()}
    return Sums(tuple(labels), _under("label/", tensors), pairs, counts)  # type: ignore[arg-type]


def _replay_out(replay: Replay | None) -> dict[str, Tensor]:
    if replay is None:
        return {}
    inputs = {f"inputs/{sensor}": x for sensor, x in replay.inputs.items()}
    return _contiguous(inputs | {f"present/{sensor}": x for sensor, x in replay.present.items()})


def _replay_in(tensors: Mapping[str, Tensor], keys: list[str]) -> Replay | None:
    return Replay(_under("inputs/", tensors), _under("present/", tensors), keys) if tensors else None


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
    return {f"{prefix}/second": moments.second.clone(), f"{prefix}/count": torch.tensor(moments.count)}


def _moments_in(prefix: str, tensors: Mapping[str, Tensor]) -> Moments:
    return Moments(tensors[f"{prefix}/second"], int(tensors[f"{prefix}/count"]))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
