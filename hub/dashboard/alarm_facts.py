"""Why an alarm was raised: contributions, what it would be without each sensor, its cause, normal moments like it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nicegui import ui

from hub import nearest
from hub.alarms import Action, Event
from hub.dashboard import parts, style
from hub.dashboard.language import NONE, Language
from hub.dashboard.parts import Table
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.nearest import Nearest
from hub.ran import Ran, look_up
from lineside.errors import LinesideError
from lineside.evidence import Again, Replayed
from lineside.messages import Alarm, Score

CAUSE = re.compile(r"(?P<text>.*) \(cause: (?P<blamed>[^;]*); (?P<why>.*)\)", re.DOTALL)
ACTS = {
    "raise": "raised",
    "clear": "cleared",
    "acknowledge": "acknowledged",
    "silence": "silenced",
    "unsilence": "silence ended",
    "notify": "told",
    "notify_failed": "could not be told",
    "label": "labelled",
}


@dataclass(frozen=True)
class Facts:
    """All that the hub's store says of one alarm; `unknown` is why it is not known what ran."""

    score: Score | None
    like: Nearest
    ran: list[Ran]
    unknown: str
    again: tuple[Replayed, Again] | None
    history: list[Action]


def gather(hub: Hub, event: Event) -> Facts:
    """Look it all up; for a thread, as it reads some thousand rows."""
    alarm, engine = event.raised, hub.store.engine
    score = nearest.raised_by(engine, alarm)
    try:
        ran, unknown = look_up(hub.store, hub.pins.problem, alarm=alarm.key), ""
    except LinesideError as error:
        ran, unknown = [], str(error)
    like = nearest.nearest(engine, alarm, score)
    again = hub.replays.of(alarm.device, event.keys)
    return Facts(score, like, ran, unknown, again, hub.history(alarm.device, alarm.key))


def split_cause(text: str) -> tuple[str, str]:
    """What happened, and why the device blames whom it blames (edge.triage).

    >>> split_cause("press is unlike normal (cause: mic0 itself; its floor fell)")
    ('press is unlike normal', 'its floor fell')
    >>> split_cause("mic0: no sound")
    ('mic0: no sound', '')
    """
    found = CAUSE.fullmatch(text)
    return (found["text"], found["why"]) if found else (text, "")


def contributions(t: Language, alarm: Alarm, score: Score | None, modalities: dict[str, str]) -> None:
    """A bar for each sensor, and what the moment would be without it."""
    score = score if alarm.contributions else None
    shares = score.contributions if score else alarm.contributions
    with ui.element("section").classes("l-card"):
        parts.heading(t("Contribution of each sensor (nats)"))
        if not shares:
            own = t("An alarm of the sensor itself: nothing was weighed.")
            ui.label(t("The hub's own alarm: the device is away.") if alarm.kind == "device" else own).classes("l-soft")
            return
        most = max(1e-9, *(abs(value) for value in shares.values()))
        with ui.element("div").classes("l-share"):
            for sensor in sorted(shares, key=lambda name: -shares[name]):
                parts.modality(modalities.get(sensor, ""), sensor)
                with ui.element("div").classes("l-bar"):
                    kind = style.modality_class(modalities.get(sensor, ""))
                    ui.element("div").classes(kind).style(f"width: {max(0.0, shares[sensor]) / most:.1%}")
                ui.label(t.number(shares[sensor], 2)).classes("l-mono")
                if score is not None and sensor in score.without:
                    ui.label(_without(t, sensor, modalities.get(sensor, ""), score)).classes("l-without")
        if score is None:
            ui.label(t("The moment that raised it is no longer at the hub: without is not known.")).classes("l-soft")


def _without(t: Language, sensor: str, kind: str, score: Score) -> str:
    p = score.without[sensor]
    told = t("ordinary") if p > score.limit else t("strange all the same")
    named = f"{sensor} ({t(kind)})" if kind else sensor
    return t(
        "Without {sensor} p would be {p} instead of {now}: {told}",
        sensor=named,
        p=f"{p:.2g}",
        now=f"{score.p_value:.2g}",
        told=told,
    )


def cause(t: Language, alarm: Alarm) -> None:
    """Sensor or process, with the device's reason."""
    why = split_cause(alarm.text)[1]
    with ui.element("section").classes("l-card"):
        parts.heading(t("Sensor or process?"))
        if not alarm.cause:
            ui.label(t("The device did not say.")).classes("l-soft")
            return
        icon = {"sensor": "sensors_off", "process": "precision_manufacturing"}.get(alarm.cause, "help")
        parts.tag(t(style.CAUSES[alarm.cause]), icon, "warn" if alarm.cause == "sensor" else "bad")
        parts.said(t, why or NONE)


def normal(t: Language, alarm: Alarm, modalities: dict[str, str], now_ns: int) -> None:
    """What each sensor showed, beside what of normal running its encoder finds most like it, as the device sent it."""
    if not alarm.like:
        return
    with ui.element("section").classes("l-card"):
        parts.heading(t("Beside normal running"))
        for sensor, near in sorted(alarm.like.items()):
            kind = modalities.get(sensor, "")
            parts.modality(kind, f"{sensor} ({t(kind)})" if kind else sensor)
            then = t("normal, {time}", time=t.moment(near.start_ns, now_ns))
            with ui.element("div").classes("l-beside"):
                for picture, told in ((alarm.pictures.get(sensor), t("in the alarm")), (near.picture, then)):
                    if picture:
                        with ui.element("figure"):
                            parts.picture(picture, f"{sensor}: {told}")
                            ui.label(told).classes("l-soft")
        ui.label(t("Of all normal running that the device learned, what its encoders find most like it.")).classes(
            "l-soft"
        )


def like(t: Language, found: Nearest, modalities: dict[str, str], now_ns: int) -> None:
    """Normal moments that were most like the one that raised it, as each sensor's encoder sees them."""
    with ui.element("section").classes("l-card"):
        parts.heading(t("Nearest normal moments before"))
        if not found.by_sensor or not any(found.by_sensor.values()):
            ui.label(t("The hub keeps no embedding of this moment, or of a normal one before it.")).classes("l-soft")
            return
        rows = [
            (sensor, near.start_ns, near.cosine) for sensor, every in sorted(found.by_sensor.items()) for near in every
        ]
        table = Table("", [t("Sensor"), t("Moment"), t("Similarity (cosine)")], "auto 1fr auto")

        def draw(sensor: str, start_ns: int, cosine: float) -> None:
            parts.modality(modalities.get(sensor, ""), sensor)
            ui.label(t.moment(start_ns, now_ns))
            ui.label(t.number(cosine, 3)).classes("l-mono")

        table.show(rows, draw)
        ui.label(t("Of {n} normal moments, by the embeddings that the hub keeps.", n=t.number(found.looked))).classes(
            "l-soft"
        )


def in_force(visit: Visit, facts: Facts, alarm: Alarm) -> None:
    """Which encoders and thresholds made this alarm, and what the newest release makes of it."""
    t = visit.t
    with ui.element("section").classes("l-card"):
        parts.heading(t("Versions and thresholds in force"))
        told = {row.modality: row for row in facts.ran}
        rows = [(kind, alarm.versions.get(kind, NONE), told.get(kind)) for kind in sorted({*alarm.versions, *told})]
        table = Table("", [t("Modality"), t("Version"), "SHA-256", t("Signed by the device")], "auto auto auto auto")

        def draw(kind: str, version: str, ran: Ran | None) -> None:
            parts.modality(kind, t(kind))
            ui.label(version).classes("l-mono")
            ui.label(ran.sha256[:12] if ran else NONE).classes("l-mono")
            verified = bool(ran and ran.verified)
            parts.tag(
                t("yes") if verified else t("no"), "verified" if verified else "help", "good" if verified else "off"
            )

        table.show(rows, draw)
        if facts.unknown:
            parts.said(t, facts.unknown, "l-soft")
        ui.label(_limits(t, alarm)).classes("l-strong")
        if facts.again is not None:
            parts.said(t, _again(t, *facts.again))


def _limits(t: Language, alarm: Alarm) -> str:
    limits = alarm.limits
    if {"p_limit", "raise_count", "of"} <= set(limits):
        count, of = f"{limits['raise_count']:g}", f"{limits['of']:g}"
        return t("p ≤ {p} in {n} of {of} moments", p=f"{limits['p_limit']:g}", n=count, of=of)
    if "false_alarm_days" in limits:
        return t("one false alarm in {n} days on average", n=f"{limits['false_alarm_days']:g}")
    if "sensor_count" in limits:
        return t("{n} windows in a row that are not well", n=f"{limits['sensor_count']:g}")
    if "offline_s" in limits:
        return t("offline for more than {span}", span=t.span(limits["offline_s"]))
    return ", ".join(f"{name} {value:g}" for name, value in sorted(limits.items())) or NONE


def _again(t: Language, found: Replayed, again: Again) -> str:
    if again.raised is None:
        reason = again.why
        return t("Whether version {n} would raise it cannot be told: {reason}", n=found.version, reason=reason)
    if again.raised:
        return t("Version {n} would raise it again.", n=found.version)
    return t("Version {n} would no longer raise it.", n=found.version)


def history(t: Language, done: list[Action], now_ns: int) -> None:
    """Who did what, when and why."""
    with ui.element("section").classes("l-card"):
        parts.heading(t("What was done"))
        table = Table("", [t("When"), t("What"), t("Who"), t("Why")], "auto auto auto 1fr")

        def draw(action: Action) -> None:
            ui.label(t.moment(action.time_ns, now_ns))
            ui.label(t(ACTS[action.what])).classes("l-strong")
            ui.label(action.who)
            parts.said(t, split_cause(action.why)[0] or NONE, "l-soft")

        table.show([(action,) for action in done], draw)
