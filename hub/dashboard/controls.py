"""What the operator may ask of a device: take an encoder back, and in a demonstration inject a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nicegui import run, ui

from hub.line import Hub
from lineside.errors import BrokerError
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


async def ask(hub: Hub, device: str, op: str, args: dict[str, str]) -> None:
    """Send a request and tell its end on the page; other pages go on meanwhile."""
    told = f"{device}: {op} {' '.join(args.values())}"
    ui.notify(f"{told} …", type="ongoing", timeout=1500)
    try:
        answer = await run.io_bound(hub.ask, device, op, args)
    except BrokerError as error:
        ui.notify(str(error), type="negative", timeout=10_000)
        return
    if answer is None:  # the hub is stopping
        return
    well = answer.status == "successful"
    text = f"{told}: {answer.status}" + (f" ({answer.reason})" if answer.reason else "")
    ui.notify(text, type="positive" if well else "negative", timeout=4000 if well else 10_000)


async def roll_back(hub: Hub, device: str, modality: str, encoder: EncoderHealth) -> None:
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
        await ask(hub, device, "rollback", {"modality": modality})


def fault_panel(hub: Hub, device: Callable[[], str]) -> None:
    """Buttons that disturb the simulated or recorded signal of the chosen device for a while."""
    with ui.row().classes("l-card items-center"):
        ui.icon("science").classes("text-2xl")
        ui.label(f"Try a fault ({FAULT_S} s)").classes("l-title")
        for fault in FAULTS:

            async def inject(kind: str = fault.kind) -> None:
                await ask(hub, device(), "fault", {"kind": kind, "seconds": str(FAULT_S)})

            button = ui.button(fault.text, icon=fault.icon, on_click=inject)
            button.props("outline no-caps").classes("l-touch")
