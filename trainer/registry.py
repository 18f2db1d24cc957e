"""The registry of stand-alone models: no modality enters fusion without one.

A folder: registry.json says of every modality what its model is, how good it is alone, on which data that was measured,
and how sharp its logits are; beside it lies a safetensors file a model, named by its hash. Nothing is parsed before its
hash was checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor

from lineside import features
from lineside.errors import ConfigError
from lineside.features import Prepare
from lineside.files import sha256, write_atomic
from trainer import classifier
from trainer.adapt_plan import LabelledPlan
from trainer.classifier import Classifier, Part
from trainer.labelled import Labelled, data_sha256
from trainer.progress import Progress, silent
from trainer.resampling import Resampling, interval, macro_f1

TABLE = "registry.json"
CONFIDENCE = 0.95
REGISTER = "make the entry with `lineside train register`"


class Metric(msgspec.Struct, frozen=True):
    """How good a model is on held-out windows, with 95 % bootstrap intervals over groups of neighbours."""

    windows: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One modality's stand-alone model: `file` and its hash, how its windows are prepared, and what it says of `names`.

    Logits are divided by `temperature`, fitted on the validation part, before any fusion. `data_sha256` is of the
    windows and labels that it was learned from, chosen and measured on, in the parts `validation` and `held_out`. An
    entry without a metric can be read, so that it can be refused by name.
    """

    file: str
    sha256: str
    names: list[str]
    prepare: Prepare
    prepare_sha256: str
    temperature: float
    data_sha256: str
    validation: float
    held_out: float
    plan_sha256: str
    metric: Metric | None = None


class Table(msgspec.Struct, frozen=True):
    """registry.json: the entry of each modality."""

    entries: dict[str, Entry]


@dataclass(frozen=True)
class Registered:
    """An entry and its model, frozen: in eval mode, and no gradient reaches it."""

    entry: Entry
    model: Classifier


def make(data: Labelled, modality: str, plan: LabelledPlan, progress: Progress = silent) -> Registered:
    """Train, calibrate and measure one modality's stand-alone model."""
    model = classifier.learn_alone(data, modality, plan, progress)
    val, test = (Part.of(data, modality, name) for name in ("val", "test"))
    spec = data.dataset.specs[modality]
    stored = sha256(classifier.to_bytes(model))
    entry = Entry(
        file=f"{modality}-{stored[:12]}.safetensors",
        sha256=stored,
        names=list(data.names),
        prepare=spec,
        prepare_sha256=features.fingerprint(spec),
        temperature=classifier.temperature(classifier.outputs(model, val.windows), val.state),
        data_sha256=data_sha256(data.dataset, modality),
        validation=plan.validation,
        held_out=plan.held_out,
        plan_sha256=plan.sha256,
        metric=measure(model, test, data, len(data.names)),
    )
    return Registered(entry, frozen(model))


def measure(model: Classifier, part: Part, data: Labelled, classes: int) -> Metric:
    """Accuracy and macro-F1 of one modality's windows, with intervals."""
    said = classifier.outputs(model, part.windows).argmax(dim=1).numpy()
    draws, right = Resampling.of(data.groups[part.rows]), (said == part.state).astype(np.float64)
    return Metric(
        len(said),
        float(right.mean()),
        interval(draws.means(right), CONFIDENCE),
        macro_f1(part.state, said, classes),
        interval(draws.macro_f1(part.state, said, classes), CONFIDENCE),
    )


def frozen(model: Classifier) -> Classifier:
    """The model in eval mode, where normalisation keeps its statistics too, without gradients."""
    model.requires_grad_(False)
    return model.eval()


def save(folder: Path, found: Mapping[str, Registered]) -> None:
    """Add entries to a registry, or put them in the place of old ones: models first, the table last."""
    entries = dict(read(folder).entries) if (folder / TABLE).exists() else {}
    for modality, each in found.items():
        write_atomic(folder / each.entry.file, classifier.to_bytes(each.model))
        entries[modality] = each.entry
    text = msgspec.json.format(msgspec.json.encode(Table(entries)), indent=2)
    write_atomic(folder / TABLE, text + b"\n")


def read(folder: Path) -> Table:
    """The table of a registry. Raises ConfigError when there is none, or when it is no table of ours."""
    path = folder / TABLE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Table)
    except OSError as error:
        raise ConfigError(str(folder), "is no registry (it has no registry.json)", REGISTER) from error
    except msgspec.DecodeError as error:
        raise ConfigError(str(path), f"cannot be read ({error})", REGISTER) from error


def load(folder: Path, modalities: Iterable[str]) -> dict[str, Registered]:
    """The registered models of some modalities, as they may enter fusion.

    Raises ConfigError, naming the modality, for one without an entry, an entry without a metric, a file of another
    hash or other weights than the model's, a preparation that is not the one of its hash, and names of states that
    differ between modalities.
    """
    entries = read(folder).entries
    found = {modality: _admitted(folder, modality, entries.get(modality)) for modality in sorted(modalities)}
    kinds = {tuple(each.entry.names) for each in found.values()}
    if len(kinds) > 1:
        told = "; ".join(f"{modality} tells {', '.join(each.entry.names)}" for modality, each in found.items())
        raise ConfigError(str(folder), f"its models tell different states apart ({told})", "register them together")
    return found


def stored_tensors(path: Path, expected: str, mend: str) -> tuple[bytes, dict[str, Tensor]]:
    """A safetensors file and what is in it, read only if its hash is the expected one. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", mend) from error
    if sha256(data) != expected:
        raise ConfigError(str(path), f"is another file than its entry says (hash {sha256(data)[:12]})", mend)
    try:
        return data, parse(data)
    except SafetensorError as error:
        raise ConfigError(str(path), f"is damaged ({error})", mend) from error


def _admitted(folder: Path, modality: str, entry: Entry | None) -> Registered:
    where = f"{modality} in {folder}"
    if entry is None:
        raise ConfigError(where, "has no entry, and no modality enters fusion without one", REGISTER)
    if entry.metric is None or not math.isfinite(entry.metric.accuracy):
        told = "has no metric, so nobody could tell whether fusion keeps its strength"
        raise ConfigError(where, told, REGISTER)
    if not 0 < entry.temperature < math.inf:
        raise ConfigError(where, f"has the temperature {entry.temperature}, which calibrates nothing", REGISTER)
    if features.fingerprint(entry.prepare) != entry.prepare_sha256:
        raise ConfigError(where, "has a preparation that is not the one its model was trained with", REGISTER)
    with torch.random.fork_rng():  # fresh weights are drawn, and then replaced
        model = Classifier(entry.prepare, len(entry.names))
    classifier.load(model, stored_tensors(folder / entry.file, entry.sha256, REGISTER)[1], where)
    return Registered(entry, frozen(model))
