"""A device that is away raises an alarm: the hub's own, for the device itself cannot.

It is a message as devices send them, stored beside theirs under numbering 0, which no device uses: so it has states,
acknowledgement, escalation and a place in every list and export as any other. A device that a person ended (`stopped`)
raises none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import sqlalchemy as sa

from hub import tables
from hub.chore import Chore
from hub.ingest import Presence
from hub.store import Store
from lineside import wire
from lineside.clock import NS, Clock
from lineside.messages import Alarm

TICK_S = 2.0
EPOCH = 0
MEND = "check its power and its network, then `systemctl status lineside-uplink` on it"


class Absence(Chore):
    """Watches devices' last words; `after_s` 0: watches nothing."""

    def __init__(
        self, store: Store, presence: Callable[[], Mapping[str, Presence]], after_s: float, clock: Clock
    ) -> None:
        super().__init__()
        self._store, self._presence, self._clock = store, presence, clock
        self._after_ns, self._after_s = round(after_s * NS), after_s
        self._last: dict[str, Alarm | None] = {}

    def start(self) -> None:
        """Begin in the background, where there is something to watch for."""
        if self._after_ns:
            super().start()

    def turn(self) -> float:
        """Raise and clear what is due now. Raises SQLAlchemyError; then the next turn does it."""
        now_ns = self._clock.now_ns()
        due = [(device, self._due(device, word, now_ns)) for device, word in dict(self._presence()).items()]
        if told := [(device, alarm) for device, alarm in due if alarm is not None]:
            self._store.add([tables.row("alarm", alarm, wire.encode(alarm), now_ns) for _, alarm in told])
            self._last.update(told)
        return TICK_S

    def _due(self, device: str, now: Presence, now_ns: int) -> Alarm | None:
        last = self._before(device)
        raised = last is not None and last.state == "raised"
        if now.word != "offline":
            return _cleared(last, now_ns) if raised and last is not None else None
        if raised or now_ns - now.since_ns < self._after_ns:
            return None
        return self._raised(device, last.seq + 1 if last else 1, now.since_ns, now_ns)

    def _before(self, device: str) -> Alarm | None:
        """The last of these alarms of a device, also of a hub before this one."""
        if device not in self._last:
            c = tables.ALARMS.c
            query = sa.select(c.body).where(c.device == device, c.epoch == EPOCH).order_by(c.seq.desc()).limit(1)
            with self._store.engine.connect() as connection:
                body = connection.execute(query).scalar()
            self._last[device] = wire.decode("alarm", body) if body is not None else None
        return self._last[device]

    def _raised(self, device: str, seq: int, since_ns: int, now_ns: int) -> Alarm:
        health = self._store.latest_health([device]).get(device)
        return Alarm(
            device=device,
            epoch=EPOCH,
            seq=seq,
            station=health.station if health else device,
            key=f"{device}/device/{since_ns}",
            kind="device",
            state="raised",
            subject=device,
            top_sensor="",
            top_modality="",
            onset_ns=since_ns,
            time_ns=now_ns,
            p_value=1.0,
            evidence=0.0,
            contributions={},
            versions={},
            limits={"offline_s": self._after_s},
            text=f"{device} has been offline for {(now_ns - since_ns) / NS:.0f} s: {MEND}",
        )


def _cleared(last: Alarm, now_ns: int) -> Alarm:
    return msgspec.structs.replace(
        last, seq=last.seq + 1, state="cleared", time_ns=now_ns, text=f"{last.device} is back"
    )
