"""Each request is done once, however often its retained message comes."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from lineside.messages import Command

REMEMBERED = 256


class Requests:
    """The latest requests by id, and what was last reported of each."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, Command] = OrderedDict()

    def take(self, request: Command) -> Command | None:
        """None for a new one, which is to be done now; else what was last said of it, to be said again.

        A request is retained until its report replaces it, so it comes again with every connection, and also after its
        report when a broker that was killed has lost that.

        >>> requests, asked = Requests(), Command(id="7f", op="update")
        >>> requests.take(asked), requests.take(asked).status
        (None, 'init')
        """
        said = self._said.get(request.id)
        if said is None:
            self.said(request)
        return said

    def said(self, report: Command) -> None:
        """Remember the latest report."""
        self._said[report.id] = report
        self._said.move_to_end(report.id)
        while len(self._said) > REMEMBERED:
            self._said.popitem(last=False)


def finished(command: Command, reason: str = "") -> Command:
    """The command's last status: successful without a reason, failed with one."""
    return msgspec.structs.replace(command, status="failed" if reason else "successful", reason=reason)
