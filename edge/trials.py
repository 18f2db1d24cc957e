"""Shadow and probation of a change: two ensembles on the same moments, and what the limits say of it."""

from __future__ import annotations

import logging
from collections.abc import Collection

from edge.change import Broken, Change, Done, Outcome, Waits
from edge.changeover import Changeover
from edge.comparison import SURE, VERY_SURE, Comparison
from edge.ensemble import Ensemble
from edge.shadow import Shadow
from lineside.clock import NS
from lineside.errors import LinesideError

log = logging.getLogger(__name__)
SENSELESS = 3  # windows that new encoders may make no sense of
OF_MOMENTS = 0.5  # of those that the time holds have to be judged by both


class Trials:
    """Watches a change. In shadow the new ensemble judges beside the old one, in probation the old beside the new."""

    def __init__(self, changeover: Changeover) -> None:
        self._changeover = changeover
        self._shadow: Shadow | None = None
        self._changed: tuple[str, ...] = ()
        self._senseless_before = 0

    def shadow(self, change: Change, proven: Ensemble) -> None:
        """Let what was proven judge beside what is in use; a device that does not judge yet has nothing to compare."""
        self.stop()
        self._changed = (*change.choices,)
        running = self._changeover.pipeline.ensemble
        if (
            change.terms.shadow_s > 0
            and proven.normal is not None
            and running is not None
            and running.normal is not None
        ):
            self._begin(proven, older=False)

    def probation(self, change: Change) -> None:
        """Let what was in use before judge beside what is in use now, if that can be had."""
        self.stop()
        self._changed = (*change.choices,)
        self._senseless_before = self._senseless()
        if change.terms.probation_s <= 0 or self._changeover.commissioning is None:
            return
        try:
            self._begin(self._changeover.before(self._changed), older=True)
        except LinesideError as error:
            log.warning("probation without comparison: %s", error)

    def stop(self) -> None:
        """Compare no more."""
        self._changeover.pipeline.beside = None
        if self._shadow is not None:
            self._shadow.stop()
            self._shadow = None

    @property
    def measured(self) -> dict[str, float]:
        """What was measured so far, by the name of the limit."""
        return self._shadow.comparison.measured if self._shadow else {}

    def outcome(self, change: Change, now_ns: int) -> Outcome:
        """What shadow or probation has come to by now."""
        probation = change.phase == "probation"
        lasts_s = change.terms.probation_s if probation else change.terms.shadow_s
        over = now_ns - change.since_ns >= lasts_s * NS
        if breach := self._breach(change, over):
            return Broken(f"{change.phase}: {breach}", self.measured)
        if self._shadow is None:
            return Waits() if probation and not over else Done()
        if not over:
            return Waits()
        wanted = OF_MOMENTS * lasts_s / self._changeover.config.windows.hop_s
        if (seen := self._shadow.comparison.moments) < wanted:
            return Waits(self._why_few())
        log.info("%s: %d moments compared, %d dropped", change.phase, seen, self._shadow.dropped)
        return Done(self.measured)

    def _begin(self, ensemble: Ensemble, older: bool) -> None:
        pipeline, config = self._changeover.pipeline, self._changeover.config
        overlap = config.windows.length_s / config.windows.hop_s
        changed = frozenset(self._changed)
        comparison = Comparison(pipeline.modalities, changed, config.alarm.p_limit, overlap)
        self._shadow = pipeline.beside = Shadow(ensemble, comparison, older)

    def _breach(self, change: Change, over: bool) -> str:
        running = self._changeover.health()
        if change.phase == "probation":
            gone = [m for m, choice in change.choices.items() if running[m].sha256 != choice.sha256]
            if gone:
                return (
                    f"{', '.join(gone)} could not be used after a start ({self._changeover.problem or 'see the log'})"
                )
            senseless = self._senseless() - self._senseless_before
        else:
            senseless = self._shadow.senseless if self._shadow else 0
        if senseless >= SENSELESS:
            return f"senseless in {senseless} windows, limit {SENSELESS}"
        return self._shadow.comparison.breach(change.terms, SURE if over else VERY_SURE) if self._shadow else ""

    def _senseless(self) -> int:
        """Windows of the changed modalities so far that their encoders made no sense of."""
        counted = self._changeover.pipeline.counters.flagged
        return sum(counted[name]["senseless"] for name in self._sensors(self._changed) if name in counted)

    def _sensors(self, modalities: Collection[str]) -> list[str]:
        return [name for name, kind in self._changeover.pipeline.modalities.items() if kind in modalities]

    def _why_few(self) -> str:
        assert self._shadow is not None  # whoever compares has one
        out = self._changeover.pipeline.out
        away = [name for name in self._sensors(self._changed) if name in out]
        slow = ["the device is too slow for both encoders"] if self._shadow.dropped else []
        return ": ".join(["too few moments were compared", *(f"{name} is out" for name in away), *slow])
