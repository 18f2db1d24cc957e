"""An ordinary video file with a sound track, of the simulated line: what a phone held at a machine would give."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from edge.sensors.simulation import line_state, render, sound

RATE_HZ, SOUND_HZ, SEED = 10, 16_000, 5


def write(path: Path, seconds: int) -> Path:
    """Write `seconds` of the line as MPEG-4 video with AAC sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=RATE_HZ)
        video.width, video.height, video.pix_fmt, video.bit_rate = 160, 120, "yuv420p", 800_000
        audio = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        for second in range(seconds):
            for i in range(second * RATE_HZ, (second + 1) * RATE_HZ):
                picture = render(line_state(i / RATE_HZ, SEED, "a"), SEED)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, RATE_HZ)
                container.mux(video.encode(frame))
            block = sound(second * SOUND_HZ, SOUND_HZ, SEED, "a")
            part = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout="mono")
            part.sample_rate, part.pts, part.time_base = SOUND_HZ, second * SOUND_HZ, Fraction(1, SOUND_HZ)
            container.mux(audio.encode(part))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), int(sys.argv[2])))
