"""What devices and hub agree on about recordings of alarms: their names, how they travel, what they say of an alarm."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from lineside.channels import Label
from lineside.errors import RecordingError
from lineside.messages import Alarm

NAME = r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z(-[\w.-]{1,60})?\.mcap"  # edge.case
PIECE_BYTES = 128 * 1024  # an alarm that is raised meanwhile waits behind few of them
REQUEST_BYTES = 2 * 1024 * 1024  # what a device sends of one request

NORMAL = "normal"  # the label of an alarm's seconds that a person called not real
INDEX = "labels.json"  # beside the recordings of a labelled set: a list of Labelled


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """What a person said of one alarm: `kind` of the fault, or "" for an alarm that was not real.

    `recording` is the file beside this list that shows it from `start_ns` until `end_ns`, "" where the hub has none;
    `versions` are the encoders that raised it, `limits` the thresholds in force.
    """

    device: str
    key: str
    real: bool
    kind: str
    who: str
    time_ns: int
    why: str = ""
    recording: str = ""
    start_ns: int = 0
    end_ns: int = 0
    alarm: str = ""
    versions: dict[str, str] = {}
    limits: dict[str, float] = {}


def labelled_in(folder: Path) -> list[Labelled]:
    """The list of a labelled set; empty where there is none yet. Raises RecordingError for one that is damaged."""
    try:
        return msgspec.json.decode((folder / INDEX).read_bytes(), type=list[Labelled])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        mend = "delete it: the hub writes it anew with the next label"
        raise RecordingError(str(folder / INDEX), f"cannot be read ({error})", mend) from error


REPLAYED = "labels"  # folder in the repository: what each release makes of the labelled alarms, VERSION.json


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a version would raise a labelled alarm again; None, with the reason, where that cannot be told."""

    device: str
    key: str
    real: bool
    kind: str
    raised: bool | None
    why: str = ""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a version made of all labelled alarms when they were played to it."""

    version: int
    stage: str
    time_ns: int
    normal: str
    alarms: list[Again]

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Real ones raised again, real ones, others no longer raised, others, and those of which that is not known.

        >>> one = Again(device="d", key="k", real=False, kind="", raised=False)
        >>> Replayed(version=7, stage="s", time_ns=0, normal="n.mcap", alarms=[one, one]).counts
        (0, 0, 2, 2, 0)
        """
        real = [each.raised for each in self.alarms if each.real and each.raised is not None]
        other = [each.raised for each in self.alarms if not each.real and each.raised is not None]
        unknown = len(self.alarms) - len(real) - len(other)
        return sum(real), len(real), len(other) - sum(other), len(other), unknown

    @property
    def told(self) -> str:
        """In a sentence."""
        kept, real, gone, other, unknown = self.counts
        return (
            f"of {len(self.alarms)} labelled alarms: {kept} of {real} real ones raised again, "
            f"{gone} of {other} that were not real no longer raised"
            + (f", {unknown} cannot be told" if unknown else "")
        )


def labels(alarms: Iterable[Alarm], sensors: Iterable[str], start_ns: int, end_ns: int) -> dict[str, Label]:
    """What the changes of alarms in a file say of its seconds, by key: not normal, but not confirmed either.

    An alarm of one of `sensors` is of that sensor alone. What was not cleared in the file lasts to its end.
    """
    found: dict[str, Label] = {}
    for alarm in alarms:
        if alarm.key not in found:
            sensor = alarm.subject if alarm.subject in sensors else ""
            told = f"alarm: {alarm.kind} of {alarm.subject}"
            found[alarm.key] = Label(max(alarm.onset_ns, start_ns), end_ns, told, sensor, fault=True, confirmed=False)
        if alarm.state == "cleared":
            found[alarm.key] = _ended(found[alarm.key], alarm.time_ns)
    return found


def _ended(label: Label, end_ns: int) -> Label:
    return Label(label.start_ns, max(label.start_ns, end_ns), label.label, label.sensor, label.fault, label.confirmed)
