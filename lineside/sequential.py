"""Evidence that lasts: many windows, each a little strange, against a bound on false alarms."""

from __future__ import annotations

POWER, CAP = 0.5, 3.0
_CAPPED_BELOW: float = (CAP / POWER) ** (1 / (POWER - 1))
_MEAN: float = CAP * _CAPPED_BELOW + 1 - _CAPPED_BELOW**POWER  # of the capped e-value for a uniform p


def e_value(p: float) -> float:
    """The e-value POWER * p^(POWER - 1), capped and divided by its mean: 1 on average for a uniform p.

    (Vovk and Wang, E-values: calibration, combination and applications, 2021, section 2.) The cap keeps one window,
    be it ever so strange, from an alarm: that is for the rule that counts windows.

    >>> round(e_value(1e-9), 2), round(e_value(0.25), 2), round(e_value(1.0), 2)
    (3.27, 1.09, 0.55)
    """
    return min(CAP, POWER * float(p ** (POWER - 1))) / _MEAN


def shiryaev_roberts(before: float, p: float, run_length: float) -> float:
    """The next value of the e-detector R = (R + 1) * e, which starts at 0 and is an alarm at `run_length`.

    R minus the number of windows is a supermartingale wherever p-values are valid given the past, so that false
    alarms are at least `run_length` windows apart on average (Shin, Ramdas and Rinaldo, E-detectors, 2023, theorem
    2.4). Windows that share samples break that, and a line whose rhythm makes strange windows follow each other; so
    does, a little, one calibration set that all p-values come from: the shorter it was, the more.

    >>> value, count = 0.0, 0
    >>> while value < 1e6:
    ...     value, count = shiryaev_roberts(value, 0.05, 1e6), count + 1
    >>> count
    15
    """
    return min(run_length, (before + 1) * e_value(p))
