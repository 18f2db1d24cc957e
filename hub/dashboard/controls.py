"""What people may do on the pages: acknowledge, silence, take an encoder back; in a demonstration inject faults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nicegui import run, ui

from hub.accounts import NEEDS, Who
from hub.alarms import Action, Event
from hub.dashboard import parts
from hub.dashboard.visit import Visit
from hub.labels import Word
from lineside.clock import NS
from lineside.errors import AccessError, BrokerError, LinesideError
from lineside.messages import EncoderHealth

FAULT_S = 20
SHORT_MS, LONG_MS = 4000, 10_000


@dataclass(frozen=True)
class Fault:
    """One button of the demonstration."""

    kind: str
    text: str
    icon: str
    modality: str


FAULTS = (
    Fault("bearing_noise", "Bearing noise", "graphic_eq", "microphone"),
    Fault("misaligned_part", "Misaligned part", "rotate_90_degrees_cw", "camera"),
    Fault("dirty_lens", "Dirty lens", "blur_on", "camera"),
    Fault("muted", "Mute microphone", "mic_off", "microphone"),
)


def acknowledge(visit: Visit, events: Iterable[Event], why: str = "") -> None:
    """Somebody saw these alarms."""
    for event in events:
        device, key = event.raised.device, event.raised.key
        subject = f"{device} {key}"
        if (who := allowed(visit, "acknowledge", subject)) is None:
            return
        visit.hub.acknowledge(device, key, who.name, why)
        visit.hub.accounts.note(who.name, "acknowledge", subject, "done")


def silence(visit: Visit, event: Event, minutes: float, why: str = "") -> None:
    """Somebody does not want to hear alarms of this subject for a while."""
    hub, alarm = visit.hub, event.raised
    subject = f"{alarm.device} {alarm.subject}"
    if (who := allowed(visit, "silence", subject)) is None:
        return
    hub.silence(alarm.device, alarm.subject, hub.clock.now_ns() + round(minutes * 60 * NS), who.name, why)
    hub.accounts.note(who.name, "silence", subject, f"{minutes:g} min")


def hear(visit: Visit, silenced: Action, why: str = "") -> None:
    """Somebody wants to hear again what a silence is of."""
    hub, subject = visit.hub, f"{silenced.device} {silenced.subject}".strip()
    if (who := allowed(visit, "silence", subject)) is None:
        return
    hub.unsilence(silenced.device, silenced.subject, who.name, why)
    hub.accounts.note(who.name, "silence", subject, "0 min")


async def label(visit: Visit, event: Event, word: Word, kind: str = "", why: str = "") -> None:
    """Somebody says what an alarm was; its recording is brought to what training reads."""
    hub, t, alarm = visit.hub, visit.t, event.raised
    subject = f"{alarm.device} {alarm.key}"
    if (who := allowed(visit, "label", subject)) is None:
        return
    try:
        missing = await run.io_bound(hub.label, alarm.device, alarm.key, word, kind, who.name, why)
    except (LinesideError, OSError) as error:
        hub.accounts.note(who.name, "label", subject, str(error))
        ui.notify(t("Not done: {reason}", reason=error), type="negative", timeout=LONG_MS)
        return
    hub.accounts.note(who.name, "label", subject, f"{word} {kind}".strip())
    if missing:
        told = t("The label is kept, its recording is missing: {reason}", reason=missing)
        ui.notify(told, type="warning", timeout=LONG_MS)


def fetch(visit: Visit, event: Event) -> None:
    """Have the device send the recording of an alarm."""
    hub, alarm = visit.hub, event.raised
    subject = f"{alarm.device} {alarm.recording}"
    if (who := allowed(visit, "evidence", subject)) is None:
        return
    try:
        hub.evidence.ask(alarm)
    except LinesideError as error:
        hub.accounts.note(who.name, "evidence", subject, str(error))
        ui.notify(visit.t("Not done: {reason}", reason=error), type="negative", timeout=LONG_MS)
        return
    hub.accounts.note(who.name, "evidence", subject, "asked")


async def ask(visit: Visit, device: str, op: str, args: dict[str, str], what: str) -> None:
    """Send a request and tell its end on the page, as `what` in the visitor's words; other pages go on meanwhile."""
    hub, t = visit.hub, visit.t
    subject = f"{device} {' '.join(args.values())}"
    if (who := allowed(visit, op, subject)) is None:
        return
    ui.notify(t("{device}: {what} …", device=device, what=what), type="ongoing", timeout=1500)
    page = ui.context.client
    try:
        answer = await run.io_bound(hub.ask, device, op, args)
    except BrokerError as error:
        hub.accounts.note(who.name, op, subject, str(error))
        if not page.is_deleted:
            ui.notify(t("The device could not be asked: {reason}", reason=error), type="negative", timeout=LONG_MS)
        return
    if answer is None:  # the hub is stopping
        return
    hub.accounts.note(who.name, op, subject, answer.status + (f" ({answer.reason})" if answer.reason else ""))
    if page.is_deleted:  # whoever asked has left meanwhile; the audit log knows
        return
    if answer.status == "successful":
        ui.notify(t("{device}: {what}: done", device=device, what=what), type="positive", timeout=SHORT_MS)
    else:
        told = t("{device}: {what}: failed ({reason})", device=device, what=what, reason=answer.reason or answer.status)
        ui.notify(told, type="negative", timeout=LONG_MS)


def only(visit: Visit, action: str, made: ui.button) -> ui.button:
    """A button that does nothing for a visitor whose role is not enough for `action`, and says so."""
    who = visit.visitor.who
    if not who.may(action):
        made.disable()
        told = "Your role is not enough for this; ask somebody with the role {role}"
        made.props["title"] = visit.t(told, role=visit.t(NEEDS[action]))
    return made


def allowed(visit: Visit, action: str, subject: str) -> Who | None:
    """Who acts, None where it may not be: told on the page and in the audit log."""
    try:
        return visit.visitor.must(action)
    except AccessError as error:
        visit.hub.accounts.note(visit.visitor.who.name, action, subject, "refused")
        ui.notify(visit.t("Not allowed: {reason}", reason=error), type="negative", timeout=LONG_MS)
        return None


async def roll_back(visit: Visit, device: str, modality: str, encoder: EncoderHealth) -> None:
    """Take one modality back to its previous encoder, after a question: a glove hits the wrong row easily."""
    t = visit.t
    what = t("roll back {modality}", modality=t(modality))
    with ui.dialog() as dialog, ui.card().classes("l-card"):
        parts.heading(t("Roll back {modality} of {device}?", modality=t(modality), device=device))
        ui.label(f"{encoder.version} → {encoder.previous}").classes("l-mono l-large")
        with ui.element("div").classes("l-actions"):
            parts.button(t("Cancel"), "close", lambda: dialog.submit(False))
            parts.button(t("Roll back now"), "undo", lambda: dialog.submit(True), "danger")
    if await dialog:
        await ask(visit, device, "rollback", {"modality": modality}, what)


def fault_panel(visit: Visit, device: str) -> None:
    """Buttons that disturb the simulated or recorded signal of a device for a while."""
    t = visit.t
    with ui.element("div").classes("l-card l-row"):
        ui.icon("science").classes("l-large")
        parts.heading(t("Try a fault on {device} ({n} s)", device=device, n=FAULT_S))
        for fault in FAULTS:

            async def inject(fault: Fault = fault) -> None:
                args = {"kind": fault.kind, "seconds": str(FAULT_S)}
                await ask(visit, device, "fault", args, t(fault.text))

            only(visit, "fault", parts.button(t(fault.text), fault.icon, inject))
