"""Cameras through OpenCV: device, file, RTSP or HTTP stream, GStreamer string."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# FFmpeg inside OpenCV writes to stderr on its own; this variable is its only switch, and is read at the first open.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.config import SensorSettings
from edge.sensors.inbox import Inbox
from edge.sensors.pace import Pace
from edge.sensors.stamps import Stamps
from lineside.clock import NS, Clock
from lineside.errors import SensorError
from lineside.windows import Samples, Timing

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # one line of ours instead of OpenCV's many
Frame = NDArray[np.uint8]
DOCTOR = "is it plugged in and free? run `lineside edge doctor`"
QUEUE_FRAMES = 8


class Camera:
    """A live camera: frames are stamped as well as their source allows (edge.sensors.stamps).

    At most `rate_hz` frames a second are taken, all of them where it is 0; the rate that samples carry is then the
    measured one. Frames are scaled to `width` and `height` where these are given. RTSP goes over TCP (OpenCV's rule).
    """

    def __init__(self, settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> None:
        self._settings, self._clock = settings, clock
        self._inbox: Inbox[tuple[int, Timing | None, Frame]] = Inbox(settings.name, QUEUE_FRAMES)

    @property
    def dropped(self) -> int:
        """Frames that came while the reader was too far behind."""
        return self._inbox.dropped

    def samples(self) -> Iterator[Samples]:
        settings = self._settings
        threading.Thread(target=self._grab, name=f"grab-{settings.name}", daemon=True).start()
        arrivals: deque[int] = deque(maxlen=32)
        for stamp_ns, timing, frame in self._inbox.items(settings.stall_s, 2 * settings.stall_s + 5, DOCTOR):
            arrivals.append(stamp_ns)
            rate_hz = settings.rate_hz or _measured(arrivals)
            yield replace(_one(settings, stamp_ns, rate_hz, frame), timing=timing)

    def close(self) -> None:
        self._inbox.close()

    def _grab(self) -> None:
        """Read frames until closed, in a thread: a driver may hang in a read for longer than anybody wants to wait."""
        try:
            capture = _open_live(self._settings)
        except SensorError as error:
            self._inbox.fail(error)
            return
        thinned = Thinned(self._settings.rate_hz)
        stamps = Stamps("://" not in self._settings.device, round(self._settings.latency_ms * 1e6))
        while not self._inbox.closed:
            came, frame = capture.read()
            now_ns, monotonic_ns = self._clock.now_ns(), time.monotonic_ns()
            if not came:
                self._inbox.fail(SensorError(self._settings.name, "the camera stopped giving frames", DOCTOR))
                break
            stamp_ns = stamps.place(round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6), now_ns, monotonic_ns)
            if thinned.takes(stamp_ns):
                self._inbox.put((stamp_ns, stamps.timing, frame))
        capture.release()


class CameraFile:
    """A video file played as a camera, in real time by its own time stamps, once; its first frame is at `origin_ns`."""

    def __init__(self, settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> None:
        self._settings, self._origin_ns = settings, origin_ns
        self._path = base / settings.device
        self._pace = Pace(clock)
        self.dropped = 0

    def samples(self) -> Iterator[Samples]:
        name = self._settings.name
        if not self._path.is_file():
            raise SensorError(
                name, f"cannot open {self._path} (no such file)", "give a video file, URL or camera index"
            )
        capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        rate_hz = capture.get(cv2.CAP_PROP_FPS)
        if not capture.isOpened() or not rate_hz > 0:
            raise SensorError(name, f"cannot read {self._path} as video", "give a file that a video player can show")
        thinned = Thinned(self._settings.rate_hz)
        rate_hz = min(rate_hz, self._settings.rate_hz or rate_hz)
        for stamp_ns, frame in self._frames(capture):
            if thinned.takes(stamp_ns):
                if not self._pace.wait(stamp_ns):
                    break
                yield _one(self._settings, stamp_ns, rate_hz, frame)
        capture.release()

    def close(self) -> None:
        self._pace.close()

    def _frames(self, capture: Any) -> Iterator[tuple[int, Frame]]:
        """Every frame with its own time, which always rises."""
        last_ns = self._origin_ns - 1
        while (taken := capture.read())[0]:
            stamp_ns = self._origin_ns + round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            last_ns = max(stamp_ns, last_ns + 1)
            yield last_ns, taken[1]


def camera(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Camera | CameraFile:
    """The camera that `settings.device` names: everything that is no index, device, URL or pipeline is a file."""
    device = settings.device
    live = device.isdigit() or not device or "!" in device or "://" in device or device.startswith("/dev/")
    return (Camera if live else CameraFile)(settings, clock, origin_ns, base)


class Thinned:
    """Takes every frame that is due at `rate_hz` (0: all), however irregularly frames come."""

    def __init__(self, rate_hz: float) -> None:
        self._period_ns = round(NS / rate_hz) if rate_hz > 0 else 0
        self._due_ns: int | None = None

    def takes(self, stamp_ns: int) -> bool:
        """Whether the frame of this time is due; an eighth of a period too early still is."""
        if self._due_ns is None or abs(stamp_ns - self._due_ns) > 4 * self._period_ns:
            self._due_ns = stamp_ns
        if stamp_ns < self._due_ns - self._period_ns // 8:
            return False
        self._due_ns += self._period_ns
        return True


def _open_live(settings: SensorSettings) -> Any:
    """An opened VideoCapture. Raises SensorError with what is missing."""
    device, wait_ms = settings.device or "0", int(settings.stall_s * 1000)
    if "!" in device:
        if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
            mend = "use JetPack's OpenCV (venv with --system-site-packages)"
            raise SensorError(settings.name, "this OpenCV has no GStreamer", mend)
        return _opened(settings, "the GStreamer pipeline", cv2.VideoCapture(device, cv2.CAP_GSTREAMER))
    if "://" in device:
        waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait_ms]
        return _opened(settings, _without_password(device), cv2.VideoCapture(device, cv2.CAP_FFMPEG, waits))
    if sys.platform != "linux":
        return _opened(settings, f"camera {device}", cv2.VideoCapture(int(device)))
    path = f"/dev/video{device}" if device.isdigit() else device
    if not Path(path).exists():
        raise SensorError(settings.name, f"cannot open {path} (no such device)", DOCTOR)
    return _opened(settings, path, cv2.VideoCapture(path, cv2.CAP_V4L2))


def _opened(settings: SensorSettings, what: str, capture: Any) -> Any:
    if not capture.isOpened():
        raise SensorError(settings.name, f"cannot open {what}", DOCTOR)
    wishes = (
        (cv2.CAP_PROP_FRAME_WIDTH, settings.width),
        (cv2.CAP_PROP_FRAME_HEIGHT, settings.height),
        (cv2.CAP_PROP_FPS, settings.rate_hz),
        (cv2.CAP_PROP_BUFFERSIZE, 1),  # the newest frame, not the oldest that waits
    )
    for wish, value in wishes:
        if value and "://" not in settings.device:
            capture.set(wish, value)
    return capture


def _one(settings: SensorSettings, stamp_ns: int, rate_hz: float, frame: Frame) -> Samples:
    picture = cv2.cvtColor(_fitted(frame, settings.width, settings.height), cv2.COLOR_BGR2RGB)
    stamps = np.array([stamp_ns], np.int64)
    return Samples(settings.name, "camera", stamp_ns, rate_hz, picture[None], stamps)


def _fitted(frame: Frame, width: int, height: int) -> Frame:
    """Scaled to the size asked for; one of the two alone keeps the shape of the picture."""
    tall, wide = frame.shape[:2]
    width, height = (
        width or (round(wide * height / tall) if height else wide),
        height or (round(tall * width / wide) if width else tall),
    )
    if (wide, tall) == (width, height):
        return frame
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _measured(arrivals: deque[int]) -> float:
    """Frames a second of the last arrivals; 1 until there are two."""
    if len(arrivals) < 2:
        return 1.0
    return (len(arrivals) - 1) * NS / max(1, arrivals[-1] - arrivals[0])


def _without_password(url: str) -> str:
    """A URL as it may stand in a log: without user and password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
