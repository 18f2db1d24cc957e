"""Microphones through PortAudio (sounddevice)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.config import SensorSettings
from edge.sensors.inbox import Inbox
from edge.sensors.pace import BLOCK_S
from edge.sensors.timeline import Counted
from lineside.clock import NS, Clock
from lineside.errors import SensorError
from lineside.windows import Samples

RATE_HZ = 16_000.0
QUEUE_BLOCKS = 50
PLUG = "is it plugged in and not muted? run `lineside edge doctor`"
Block = tuple[int, bool, NDArray[np.int16]]


class Microphone:
    """One PortAudio input: 16-bit mono blocks of 0.1 s, with the time at which the converter took the first sample.

    What follows a loss is flagged `gap`.
    """

    def __init__(self, settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> None:
        self._settings, self._clock = settings, clock
        self._rate_hz = settings.rate_hz or RATE_HZ
        self._block = round(self._rate_hz * BLOCK_S)
        self._inbox: Inbox[Block] = Inbox(settings.name, QUEUE_BLOCKS)
        self._lost = False

    @property
    def dropped(self) -> int:
        """Samples that came while the reader was too far behind."""
        return self._inbox.dropped * self._block

    def samples(self) -> Iterator[Samples]:
        name, stall_s = self._settings.name, self._settings.stall_s
        timeline = Counted(self._rate_hz)
        with self._stream():
            for measured_ns, lost, sound in self._inbox.items(stall_s, stall_s, PLUG):
                start_ns, jumped = timeline.place(measured_ns, len(sound))
                flags = frozenset({"gap"} if lost or jumped else ())
                yield Samples(name, "microphone", start_ns, self._rate_hz, sound, None, flags, timeline.timing)

    def close(self) -> None:
        self._inbox.close()

    def _stream(self) -> Any:
        """An input stream, not yet started. Raises SensorError naming what is missing."""
        sounddevice = _portaudio(self._settings.name)
        device = self._settings.device
        try:
            return sounddevice.InputStream(
                device=(int(device) if device.isdigit() else device) or None if device else None,
                samplerate=self._rate_hz,
                channels=1,
                dtype="int16",
                blocksize=self._block,
                callback=self._heard,
                finished_callback=self._finished,
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            known = [d["name"] for d in sounddevice.query_devices() if d["max_input_channels"] > 0]
            have = f"inputs are {', '.join(known)}" if known else "this machine has no sound input"
            reason = f"cannot open {device or 'the default input'} at {self._rate_hz:g} Hz ({_first_line(error)})"
            raise SensorError(self._settings.name, reason, f"{have}; run `lineside edge doctor`") from error

    def _heard(self, sound: NDArray[np.int16], count: int, time: Any, status: Any) -> None:
        """PortAudio's callback: as short as can be, on its own thread."""
        age_s = time.currentTime - time.inputBufferAdcTime
        if not 0 < age_s < 2:  # some drivers give no capture time: the block has just ended then
            age_s = count / self._rate_hz
        measured_ns = self._clock.now_ns() - round((age_s + self._settings.latency_ms / 1e3) * NS)
        lost = self._lost or bool(status.input_overflow)
        self._lost = not self._inbox.put((measured_ns, lost, sound[:, 0].copy()))

    def _finished(self) -> None:
        self._inbox.fail(SensorError(self._settings.name, "the sound input went away", PLUG))


def _portaudio(sensor: str) -> Any:
    try:
        import sounddevice
    except (OSError, ImportError) as error:
        mend = "run `apt-get install libportaudio2`"
        raise SensorError(sensor, f"sound input is not installed ({_first_line(error)})", mend) from error
    return sounddevice


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
