"""Normal running as sets of encoders see it: learned once for each set, the latest kept at hand.

What takes long when encoders change is to learn normal running with them: to encode all of it, and to fit it. A set
that was in use a while ago, or that a rollback would lead to, is switched to without either.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from lineside.fusion import Encoded

FITS_KEPT = 6  # some megabytes each: without encoders
ROWS_KEPT = 4  # encoders whose view of all moments is kept: of 2400 moments and 1664 features that is 20 MB
Name = tuple[str, int, str, str]
Mix = frozenset[Name]


class Learned:
    """Fits of one commissioning; another one makes all of them void. May be asked by several threads."""

    def __init__(self, config: DeviceConfig) -> None:
        self._config = config
        self._of: Commissioning | None = None
        self._fits: dict[Mix, Ensemble] = {}
        self._rows: dict[Name, dict[str, Encoded]] = {}
        self._lock = threading.Lock()

    def knows(self, encoders: Mapping[str, Encoder], commissioning: Commissioning) -> bool:
        """Whether `ensemble` would be quick."""
        return commissioning is self._of and mix(encoders) in self._fits

    def ensemble(self, encoders: Mapping[str, Encoder], commissioning: Commissioning) -> Ensemble:
        """As Commissioning.ensemble. Raises LinesideError as that does."""
        with self._lock:
            self._begin(commissioning)
            if (fit := self._fits.get(mix(encoders))) is not None:
                return replace(fit, encoders=encoders)
            kept = [self._rows.get(_name(encoder), {}) for encoder in encoders.values()]
        try:
            rows = commissioning.encoded(encoders, {sensor: one for each in kept for sensor, one in each.items()})
            ensemble = commissioning.ensemble(encoders, self._config, rows)
        finally:
            commissioning.rest()
        with self._lock:
            if commissioning is self._of:
                self._keep(encoders, commissioning, ensemble, rows)
        return ensemble

    def _begin(self, commissioning: Commissioning) -> None:
        if commissioning is not self._of:
            self._of, self._fits, self._rows = commissioning, {}, {}

    def _keep(
        self,
        encoders: Mapping[str, Encoder],
        commissioning: Commissioning,
        ensemble: Ensemble,
        rows: Mapping[str, Encoded],
    ) -> None:
        self._fits[mix(encoders)] = replace(ensemble, encoders={})
        for modality, encoder in encoders.items():
            seen = {sensor: one for sensor, one in rows.items() if commissioning.modalities[sensor] == modality}
            self._rows.pop(_name(encoder), None)
            self._rows[_name(encoder)] = seen
        self._fits = dict([*self._fits.items()][-FITS_KEPT:])
        self._rows = dict([*self._rows.items()][-ROWS_KEPT:])


def mix(encoders: Mapping[str, Encoder]) -> Mix:
    """What tells one set of encoders from another."""
    return frozenset(_name(encoder) for encoder in encoders.values())


def _name(encoder: Encoder) -> Name:
    card = encoder.card
    return card.modality, card.version, card.precision, card.encoder
