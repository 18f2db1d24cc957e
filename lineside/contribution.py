"""How much each sensor says of late: contributions of many windows as a share, a mean and a spread a sensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HALF_LIFE_WINDOWS = 200.0
LEAST_WEIGHT, LEAST_WINDOWS = 0.5, 30  # of a sensor's own windows, before anything is told of it
MOST_STRATA = 64
COLLAPSED = 1.3  # sensors in effect
THERE = 0.5  # availability beyond which a sensor counts as one that is there
SUMS = ("weight", "signed", "size", "square", "present", "heard")


@dataclass(frozen=True)
class Aggregate:
    """One sensor of late.

    `share` is its part of all that was said, for or against, 0 to 1 (NaN where nobody said anything); `signed` and
    `sd` are mean and standard deviation of its contributions (nats) over the windows that it was present in: a mean
    below 0 argues against what all say together; `availability`, 0 to 1, is the part of windows that it was present in.
    """

    share: float
    signed: float
    sd: float
    availability: float


@dataclass(frozen=True)
class Summary:
    """The sensors of one stratum that enough is known of; shares are among these and sum to 1."""

    sensors: dict[str, Aggregate]

    @property
    def effective(self) -> float:
        """As how many sensors that say equally much they count: exp(-sum share ln share); NaN where none has a share.

        >>> halves = {name: Aggregate(0.5, 1.0, 0.0, 1.0) for name in ("cam0", "mic0")}
        >>> round(Summary(halves).effective, 9)
        2.0
        """
        shares = [sensor.share for sensor in self.sensors.values()]
        if not shares or math.isnan(sum(shares)):
            return math.nan
        return math.exp(-sum(share * math.log(share) for share in shares if share > 0))

    @property
    def collapse(self) -> bool:
        """Whether one sensor says nearly all though two or more of them are there (availability beyond THERE)."""
        there = sum(sensor.availability > THERE for sensor in self.sensors.values())
        return there >= 2 and self.effective < COLLAPSED


@dataclass
class Contributions:
    """Contributions of `sensors`, window by window, as sums whose weight halves every `half_life` windows (>= 1).

    Each stratum (name of the station's state) has its own, for one that lasts would hide change in the others. Memory
    is flat: six numbers a sensor and stratum, and of more than MOST_STRATA strata the one not heard of for the longest
    is forgotten; `forgotten` counts these. (contribution.md, section 2, streaming aggregation.)

    Raises ValueError for a half-life below one window.

    >>> heard = Contributions(("cam0", "mic0"), half_life=10)
    >>> for _ in range(50):
    ...     heard.hear({"cam0": 3.0, "mic0": -1.0})
    >>> {name: (round(one.share, 3), round(one.signed, 3)) for name, one in heard.summary().sensors.items()}
    {'cam0': (0.75, 3.0), 'mic0': (0.25, -1.0)}
    """

    sensors: Sequence[str]
    half_life: float = HALF_LIFE_WINDOWS
    forgotten: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.half_life >= 1:
            raise ValueError(f"a half-life of {self.half_life} windows: it must be 1 or more")
        self._keep = 2.0 ** (-1 / self.half_life)
        self._strata: dict[str, Floats] = {}  # sums (SUMS, sensors); the stratum heard of last comes last

    def hear(self, contributions: Mapping[str, float], stratum: str = "") -> None:
        """Take one window's contributions (nats) by sensor.

        A sensor that is not among them, or whose contribution is no finite number, is absent: nothing but its
        availability changes. Raises ValueError for one that is none of `sensors`.
        """
        if unknown := contributions.keys() - set(self.sensors):
            raise ValueError(f"{', '.join(sorted(unknown))}: none of the sensors {', '.join(self.sensors)}")
        phi = np.array([contributions.get(name, math.nan) for name in self.sensors])
        before = self._strata.pop(stratum, None)
        self._strata[stratum] = self._next(np.zeros((len(SUMS), len(phi))) if before is None else before, phi)
        if len(self._strata) > MOST_STRATA:
            del self._strata[next(iter(self._strata))]
            self.forgotten += 1

    def _next(self, sums: Floats, phi: Floats) -> Floats:
        present, one = np.isfinite(phi), np.ones(len(phi))
        said = np.where(present, phi, 0.0)
        news = np.array([present, said, np.abs(said), said * said, present, one])
        keep = np.array([*[np.where(present, self._keep, 1.0)] * 4, *[self._keep * one] * 2])
        return np.asarray(keep * sums + (1 - self._keep) * news)

    def summary(self, stratum: str = "") -> Summary:
        """What is known of a stratum; of each sensor only after LEAST_WINDOWS of its own, and half the full weight.

        An empty one for a stratum never heard of.
        """
        least = max(LEAST_WEIGHT, 1 - self._keep ** (LEAST_WINDOWS - 0.5))  # the weight of k windows is 1 - keep^k
        sums = self._strata.get(stratum, np.zeros((len(SUMS), len(self.sensors))))
        known = [k for k, weight in enumerate(sums[0]) if weight > least]
        weight, total, size, square, present, heard = sums[:, known]
        signed, size = total / weight, size / weight
        sd = np.sqrt(np.maximum(0.0, square / weight - signed**2))
        whole = float(size.sum())
        share = size / whole if whole > 0 else np.full(len(known), math.nan)
        rows = np.stack([share, signed, sd, present / heard], axis=1).tolist()
        return Summary({self.sensors[k]: Aggregate(*row) for k, row in zip(known, rows, strict=True)})

    def strata(self) -> list[str]:
        """The strata heard of, the last one last."""
        return list(self._strata)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a restart would lose."""
        shape = len(self._strata), len(SUMS), len(self.sensors)
        return {
            "sensors": np.array(self.sensors, np.str_),
            "strata": np.array(self.strata(), np.str_),
            "sums": np.array([*self._strata.values()], np.float64).reshape(shape),
            "forgotten": np.array(self.forgotten, np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from `state`, which may be of another half-life.

        Raises ValueError when it is of other sensors or is damaged, and then changes nothing.
        """
        if missing := self.state().keys() - state.keys():
            raise ValueError(f"the state of contributions lacks {', '.join(sorted(missing))}")
        if state["sensors"].tolist() != list(self.sensors):
            raise ValueError(f"contributions are of {state['sensors'].tolist()}, not of {list(self.sensors)}")
        names, sums = state["strata"].tolist(), np.array(state["sums"], np.float64)
        if sums.shape != (len(names), len(SUMS), len(self.sensors)) or not np.isfinite(sums).all():
            raise ValueError("contributions are damaged: not finite sums, one set a stratum")
        self._strata = dict(zip(names, sums, strict=True))
        self.forgotten = int(state["forgotten"])
