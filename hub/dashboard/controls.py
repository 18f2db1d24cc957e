"""What people may do on the page: acknowledge an alarm, take an encoder back, and in a demonstration inject a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nicegui import run, ui

from hub.accounts import Who
from hub.alarms import Event
from hub.dashboard.gate import Visitor
from hub.line import Hub
from lineside.clock import NS
from lineside.errors import AccessError, BrokerError
from lineside.messages import EncoderHealth

FAULT_S = 20


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


def acknowledge(hub: Hub, visitor: Visitor, event: Event) -> None:
    """Somebody saw an alarm."""
    device, key = event.raised.device, event.raised.key
    subject = f"{device} {key}"
    if (who := _allowed(hub, visitor, "acknowledge", subject)) is not None:
        hub.acknowledge(device, key, who.name)
        hub.accounts.note(who.name, "acknowledge", subject, "done")


def silence(hub: Hub, visitor: Visitor, event: Event, minutes: float) -> None:
    """Somebody does not want to hear alarms of this subject for a while, or wants to hear them again (0)."""
    alarm, until_ns = event.raised, hub.clock.now_ns() + round(minutes * 60 * NS)
    subject = f"{alarm.device} {alarm.subject}"
    if (who := _allowed(hub, visitor, "silence", subject)) is None:
        return
    if minutes:
        hub.silence(alarm.device, alarm.subject, until_ns, who.name)
    elif event.silence is not None:
        hub.unsilence(alarm.device, event.silence.subject, who.name)
    hub.accounts.note(who.name, "silence", subject, f"{minutes:g} min")


async def ask(hub: Hub, visitor: Visitor, device: str, op: str, args: dict[str, str]) -> None:
    """Send a request and tell its end on the page; other pages go on meanwhile."""
    told = f"{device}: {op} {' '.join(args.values())}"
    subject = f"{device} {' '.join(args.values())}"
    if (who := _allowed(hub, visitor, op, subject)) is None:
        return
    ui.notify(f"{told} …", type="ongoing", timeout=1500)
    try:
        answer = await run.io_bound(hub.ask, device, op, args)
    except BrokerError as error:
        hub.accounts.note(who.name, op, subject, str(error))
        ui.notify(str(error), type="negative", timeout=10_000)
        return
    if answer is None:  # the hub is stopping
        return
    well = answer.status == "successful"
    end = answer.status + (f" ({answer.reason})" if answer.reason else "")
    hub.accounts.note(who.name, op, subject, end)
    ui.notify(f"{told}: {end}", type="positive" if well else "negative", timeout=4000 if well else 10_000)


def _allowed(hub: Hub, visitor: Visitor, action: str, subject: str) -> Who | None:
    """Who acts, None where it may not be: told on the page and in the audit log."""
    try:
        return visitor.must(action)
    except AccessError as error:
        hub.accounts.note(visitor.who.name, action, subject, "refused")
        ui.notify(str(error), type="negative", timeout=10_000)
        return None


async def roll_back(hub: Hub, visitor: Visitor, device: str, modality: str, encoder: EncoderHealth) -> None:
    """Take one modality back to its previous encoder, after a question: a glove hits the wrong row easily."""
    with ui.dialog() as dialog, ui.card():
        ui.label(f"Take {modality} of {device} back?").classes("text-xl font-bold")
        ui.label(f"{encoder.version} → {encoder.previous}").classes("l-mono text-lg")
        with ui.row().classes("w-full justify-end gap-3"):
            ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("outline no-caps").classes("l-touch")
            ui.button("Roll back now", icon="undo", on_click=lambda: dialog.submit(True)).props(
                "unelevated no-caps color=negative"
            ).classes("l-touch")
    if await dialog:
        await ask(hub, visitor, device, "rollback", {"modality": modality})


def fault_panel(hub: Hub, visitor: Visitor, device: Callable[[], str]) -> None:
    """Buttons that disturb the simulated or recorded signal of the chosen device for a while."""
    with ui.row().classes("l-card items-center"):
        ui.icon("science").classes("text-2xl")
        ui.label(f"Try a fault ({FAULT_S} s)").classes("l-title")
        for fault in FAULTS:

            async def inject(kind: str = fault.kind) -> None:
                await ask(hub, visitor, device(), "fault", {"kind": kind, "seconds": str(FAULT_S)})

            button = ui.button(fault.text, icon=fault.icon, on_click=inject)
            button.props("outline no-caps").classes("l-touch")
