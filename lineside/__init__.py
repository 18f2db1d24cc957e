"""Words and sums that all parts share: no torch, no hardware, no part imported."""

__version__ = "0.1.0"
BUILT = "2026-11-22"  # no clock of a machine that runs this can rightly show an earlier day; set with each version
