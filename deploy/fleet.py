"""What every device runs beside what it is to run: reports and pointers in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from deploy.repository import Pointed
from lineside.operator import Report
from lineside.pins import Pins

State = Literal["as pointed", "differs", "no encoder", "not published", "no report"]


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One device as it tells of itself; `status` is `unknown` for one that never did."""

    device: str
    status: str
    station: str = ""
    agent: str = ""
    uptime_s: float = 0.0
    problems: list[str] = []


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One modality on one device: what runs, what it would go back to, and what the repository points it at.

    `phase` and `reason` are how far it is in a rollout. `verified` is whether the device has signed that; `doubt` says
    why not, and then what runs is what its health says.
    """

    device: str
    modality: str
    running: str
    previous: str
    pointed: str
    state: State
    phase: str = ""
    reason: str = ""
    verified: bool = False
    doubt: str = ""

    @property
    def line(self) -> str:
        """The row for people."""
        runs = (
            f"runs {self.running or '-'} (before: {self.previous or '-'}), pointed {self.pointed or '-'}: {self.state}"
        )
        phase = f"; {self.phase}{f' ({self.reason})' if self.reason else ''}" if self.phase else ""
        return f"{self.device}  {self.modality}  {runs}{phase}; {'verified' if self.verified else self.doubt}"


def devices(names: Sequence[str], reports: Mapping[str, Report]) -> list[DeviceRow]:
    """A row for each device of the plant file, and for each that reports without standing in it."""
    return [_device(reports.get(name, Report(name, "unknown", None))) for name in _all(names, reports)]


def versions(
    names: Sequence[str],
    modalities: Sequence[str],
    reports: Mapping[str, Report],
    pointed: Mapping[str, Pointed],
    pins: Pins,
) -> list[VersionRow]:
    """A row for each device and modality; encoders are told apart by SHA-256, not by what they are called."""
    rows = []
    for device in _all(names, reports):
        report = reports.get(device, Report(device, "unknown", None))
        doubt = pins.problem(device, report.manifest) if report.manifest else "no manifest"
        rows += [_version(report, modality, pointed.get(modality), doubt) for modality in modalities]
    return rows


def _all(names: Sequence[str], reports: Mapping[str, Report]) -> list[str]:
    return [*names, *sorted(set(reports) - set(names))]


def _device(report: Report) -> DeviceRow:
    if (health := report.health) is None:
        return DeviceRow(device=report.device, status=report.status)
    return DeviceRow(
        device=report.device,
        status=report.status,
        station=health.station,
        agent=health.agent,
        uptime_s=health.uptime_s,
        problems=health.problems,
    )


def _version(report: Report, modality: str, pointed: Pointed | None, doubt: str) -> VersionRow:
    encoder = report.health.encoders.get(modality) if report.health else None
    signed = report.manifest.encoders.get(modality) if report.manifest and not doubt else None
    runs, sha256 = str(signed.version) if signed else "", signed.sha256 if signed else ""
    previous = str(signed.previous_version or "") if signed else ""
    if signed is None and encoder is not None:
        runs, sha256, previous = encoder.version, encoder.sha256, encoder.previous
    version, files = pointed.wanted(report.device) if pointed else (0, {})
    state: State = "as pointed"
    if report.health is None and signed is None:
        state = "no report"
    elif not runs:
        state = "no encoder"
    elif pointed is None:
        state = "not published"
    elif sha256 not in files.values():
        state = "differs"
    return VersionRow(
        device=report.device,
        modality=modality,
        running=runs,
        previous=previous,
        pointed=str(version or ""),
        state=state,
        phase=signed.phase if signed else "",
        reason=signed.reason if signed else "",
        verified=signed is not None,
        doubt=doubt if signed is None else "",
    )
