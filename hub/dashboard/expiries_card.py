"""What is signed for a time, and how much of it is left."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from hub.dashboard import parts
from hub.dashboard.visit import Visit
from hub.expiries import Expiry

LEVELS: dict[str, tuple[str, str, str]] = {
    "fresh": ("holds", "verified", "good"),
    "warning": ("more than half gone", "schedule", "warn"),
    "alarm": ("ends now", "error", "bad"),
}


class ExpiriesCard:
    """Roles of the repository and certificates, what ends first on top."""

    def __init__(self, visit: Visit) -> None:
        self._t = t = visit.t
        head = [t(word) for word in ("Signature or certificate", "Ends", "Left", "State")]
        widths = "minmax(150px, auto) auto auto minmax(150px, 1fr)"
        self._table = parts.Table(t("Signatures and certificates"), head, widths, empty=t("nothing is signed yet"))

    def show(self, found: Sequence[Expiry]) -> None:
        """Rows whose hours have changed are drawn anew."""
        self._table.show([(each.what, each.ends_ns, round(each.left_days, 1), each.level) for each in found], self._row)

    def _row(self, what: str, ends_ns: int, left_days: float, level: str) -> None:
        t = self._t
        ui.label(what).classes("l-mono")
        ui.label(t.day(ends_ns))
        ui.label(t.span(left_days * 86_400) if left_days > 0 else t("ended")).classes("l-mono")
        text, icon, tone = LEVELS[level]
        parts.tag(t(text), icon, tone)
