"""What pages are built of. Every colour comes with an icon and a word; what is touched is 48 px large or more."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from nicegui import ui

from hub.dashboard import style
from hub.dashboard.language import NONE, Language
from hub.labels import Said, Word

WITHIN = re.compile(r"\([^)]*\)")  # what is in brackets: minmax(120px, 1fr) is one width

Look = Literal["solid", "outline", "danger", "flat"]
LABELS: dict[Word, str] = {"real": "Real", "not real": "Not real"}


def tag(text: str, icon: str, tone: str, *, solid: bool = False) -> ui.element:
    """A state in words, icon and colour."""
    with ui.element("div").classes(f"l-tag tone-{tone} {'solid' if solid else ''}") as made:
        ui.icon(icon)
        ui.label(text)
    return made


def label(t: Language, said: Said) -> None:
    """What somebody said that an alarm was."""
    word = t("real: {kind}", kind=said.kind) if said.kind else t(LABELS[said.word])
    tag(word, "label", "bad" if said.word == "real" else "good")


def modality(kind: str, text: str) -> None:
    """A modality's icon in its colour, with words beside it."""
    with ui.element("div").classes(f"l-mod {style.modality_class(kind)}"):
        ui.icon(style.MODALITIES[kind].icon if kind in style.MODALITIES else "sensors")
        ui.label(text)


def presence(t: Language, device: str, word: str) -> None:
    """A device, and whether it is there."""
    with ui.element("div").classes("l-row"):
        ui.label(device)
        tag(t(word), *(("cloud_done", "good") if word == "online" else ("cloud_off", "off")))


def button(text: str, icon: str, on_click: Callable[[], Any] | None = None, look: Look = "outline") -> ui.button:
    """A button with words."""
    made = ui.button(text, icon=icon, on_click=on_click, color=None)
    return made.props("unelevated no-caps").classes(f"l-button l-{look}")


def icon_button(icon: str, name: str, on_click: Callable[[], Any] | None = None) -> ui.button:
    """A button without words; `name` is what a screen reader says."""
    made = ui.button(icon=icon, on_click=on_click, color=None).props("unelevated no-caps")
    made.props["aria-label"] = made.props["title"] = name
    return made.classes("l-button l-flat")


def link(text: str, target: str, icon: str = "", classes: str = "l-button l-flat") -> ui.element:
    """A real link, which a browser can open in another tab."""
    with ui.element("a").classes(classes) as made:
        made.props["href"] = target
        if icon:
            ui.icon(icon)
        if text:
            ui.label(text)
    return made


def said(t: Language, text: str, classes: str = "") -> ui.label:
    """A sentence of a device or a rule; where it cannot be translated it is marked as English, for screen readers."""
    told = t.sentence(text)
    made = ui.label(told).classes(classes)
    if t.code != "en" and told == text and text not in ("", NONE):
        made.props["lang"] = "en"
    return made


def picture(jpeg: bytes, sensor: str) -> ui.element:
    """A small picture that came with a message."""
    made = ui.element("img").props(f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"')
    made.props["alt"] = made.props["title"] = sensor
    return made


def command(t: Language, text: str) -> None:
    """A command to be typed elsewhere; one touch marks all of it."""
    made = ui.element("code").classes("l-command")
    made.props["title"] = t("touch to mark it, then copy")
    with made:
        ui.label(text)


def grid(widths: str) -> ui.element:
    """Rows of as many cells as there are widths; where they find no room, all but the first cell of a row scroll."""
    columns = len(WITHIN.sub("", widths).split())
    with ui.element("div").classes("l-scroll"):
        made = ui.element("div").classes(f"l-grid l-of-{columns}")
    return made.style(f"--columns: {columns}; grid-template-columns: {widths}")


class Table:
    """A card of rows under a head, drawn anew only when a row changed."""

    def __init__(self, title: str, head: Sequence[str], widths: str, *, empty: str = NONE) -> None:
        self._head, self._empty = head, empty
        with ui.column().classes("l-card"):
            if title:
                heading(title)
            self._grid = grid(widths)
        self._shown: object = None

    def show(self, rows: Sequence[tuple[Any, ...]], draw: Callable[..., None]) -> None:
        """Draw each row by `draw(*row)`, which makes one element a column."""
        if rows == self._shown:
            return
        self._shown = rows
        self._grid.clear()
        with self._grid:
            for word in self._head:
                ui.label(word).classes("l-th")
            for row in rows:
                draw(*row)
            if not rows:
                ui.label(self._empty).classes("l-soft").style("grid-column: 1 / -1")


def heading(text: str) -> ui.element:
    """The title of a card."""
    with ui.element("h2").classes("l-title") as made:
        ui.label(text)
    return made


class ShareBar:
    """Each sensor's part of the positive contributions, as a bar with words.

    Its pieces stay while the sensors are the same: of fifty stations that change twice a second only widths travel.
    """

    def __init__(self, t: Language, classes: str = "") -> None:
        self._t = t
        self._bar = ui.element("div").classes(f"l-bar {classes}").props("role=img")
        self._pieces: dict[str, tuple[ui.element, ui.label]] = {}
        self._shown: object = None

    def show(self, contributions: dict[str, float], modalities: dict[str, str]) -> None:
        """Whole hundredths: smaller changes are nothing that an eye could see."""
        total = sum(max(0.0, value) for value in contributions.values())
        order = sorted(contributions, key=lambda name: (modalities.get(name, "other"), name))
        parts = {name: round(100 * max(0.0, contributions[name]) / total) if total else 0 for name in order}
        if parts == self._shown:
            return
        self._shown = parts
        if list(self._pieces) != order:
            self._make(order, modalities)
        for name, (piece, label) in self._pieces.items():
            piece.style(replace=f"width: {parts[name]}%")
            label.text = f"{name} {self._t.number(parts[name])} %" if parts[name] > style.ROOM_FOR_WORDS else ""
        self._bar.props["aria-label"] = ", ".join(f"{name} {part} %" for name, part in parts.items())

    def _make(self, order: Sequence[str], modalities: dict[str, str]) -> None:
        self._bar.clear()
        self._pieces = {}
        with self._bar:
            for name in order:
                with ui.element("div").classes(style.modality_class(modalities.get(name, ""))) as piece:
                    self._pieces[name] = (piece, ui.label(""))
