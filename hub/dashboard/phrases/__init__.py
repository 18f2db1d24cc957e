"""Every phrase that the pages show, English to Japanese, one table a page. Tests hold each phrase to have both."""

from __future__ import annotations

from hub.dashboard.phrases import alarm, fleet, line, past, releases, shell, station

TABLES: dict[str, dict[str, str]] = {
    "shell": shell.JAPANESE,
    "line": line.JAPANESE,
    "alarm": alarm.JAPANESE,
    "past": past.JAPANESE,
    "station": station.JAPANESE,
    "releases": releases.JAPANESE,
    "fleet": fleet.JAPANESE,
}
JAPANESE = {english: japanese for table in TABLES.values() for english, japanese in table.items()}
