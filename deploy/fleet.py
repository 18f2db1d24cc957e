"""What every device runs beside what it is to run. Pure: reports and pointers in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from deploy.repository import Pointed
from lineside.operator import Report

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
    """One modality on one device: what runs, what it would go back to, and what the repository points at."""

    device: str
    modality: str
    running: str
    previous: str
    pointed: str
    state: State


def devices(names: Sequence[str], reports: Mapping[str, Report]) -> list[DeviceRow]:
    """A row for each device of the plant file, and for each that reports without standing in it."""
    return [_device(reports.get(name, Report(name, "unknown", None))) for name in _all(names, reports)]


def versions(
    names: Sequence[str],
    modalities: Sequence[str],
    reports: Mapping[str, Report],
    pointed: Mapping[str, Pointed],
) -> list[VersionRow]:
    """A row for each device and modality; encoders are told apart by SHA-256, not by what they are called."""
    return [
        _version(device, modality, reports.get(device), pointed.get(modality))
        for device in _all(names, reports)
        for modality in modalities
    ]


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


def _version(device: str, modality: str, report: Report | None, pointed: Pointed | None) -> VersionRow:
    health = report.health if report else None
    encoder = health.encoders.get(modality) if health else None
    state: State = "as pointed"
    if health is None:
        state = "no report"
    elif encoder is None:
        state = "no encoder"
    elif pointed is None:
        state = "not published"
    elif encoder.sha256 not in pointed.sha256.values():
        state = "differs"
    return VersionRow(
        device=device,
        modality=modality,
        running=encoder.version if encoder else "",
        previous=encoder.previous if encoder else "",
        pointed=str(pointed.version) if pointed else "",
        state=state,
    )
