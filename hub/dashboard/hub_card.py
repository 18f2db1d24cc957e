"""The hub's own numbers: what came in since it started, and what of it is not well."""

from __future__ import annotations

from nicegui import ui

from hub.dashboard import parts
from hub.dashboard.visit import Visit
from hub.watch import Line

# Names of hub.ingest.Counts, the phrase, and whether it is only told when there is any.
NUMBERS: tuple[tuple[str, str, bool], ...] = (
    ("stored", "messages stored", False),
    ("waiting", "messages wait to be stored", False),
    ("duplicates", "messages sent twice, stored once", True),
    ("refused", "refused: no messages of ours", True),
    ("queue_full", "put off: a device floods", True),
    ("ahead", "from a clock that runs ahead", True),
    ("commit_failed", "not committed, sent again", True),
)


MOST = 5  # devices that are named


class HubCard:
    """One line a number."""

    def __init__(self, visit: Visit) -> None:
        self._t = visit.t
        self._table = parts.Table(self._t("The hub since it started"), (), "auto 1fr")

    def show(self, line: Line) -> None:
        """Drawn anew when a number changed."""
        told = [
            (line.ingest.get(name, 0), phrase, _by_device(line.blamed.get(name, {}))) for name, phrase, _ in NUMBERS
        ]
        shown = [row for row, (_, _, if_any) in zip(told, NUMBERS, strict=True) if row[0] or not if_any]
        self._table.show(shown, self._row)

    def _row(self, number: int, phrase: str, devices: tuple[str, ...]) -> None:
        ui.label(self._t.number(number)).classes("l-mono l-strong")
        with ui.element("div"):
            ui.label(self._t(phrase))
            for device in devices:
                ui.label(device).classes("l-soft").props("lang=en")


def _by_device(counts: dict[str, int]) -> tuple[str, ...]:
    """Which devices are the cause, the worst first."""
    return tuple(f"{device}: {counts[device]}" for device in sorted(counts, key=lambda name: -counts[name])[:MOST])
