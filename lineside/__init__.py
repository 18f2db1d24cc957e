"""Words and sums that all parts share: no torch, no hardware, no part imported."""

__version__ = "0.1.0"
