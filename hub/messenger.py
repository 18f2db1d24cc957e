"""Tells people of alarms by the library apprise (webhooks, e-mail, chats), in a thread: nobody waits for it.

Each notice is tried up to three times, and only at those addresses that have not had it. What was told is a row of the
book of actions, so that a hub that begins again tells nothing twice (but for what it was just sending).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from hub import escalation
from hub.actions import Actions
from hub.alarms import Action, What
from hub.chore import Chore
from hub.escalation import Notice, Terms, Weight
from hub.groups import Group
from lineside import config as toml
from lineside.clock import NS, Clock
from lineside.config import Config
from lineside.errors import ConfigError
from lineside.plant import PlantConfig

LOG = logging.getLogger("hub.messenger")
TICK_S = 1.0
PAUSES_S = (5.0, 30.0)  # after the first attempt and after the second
TOLD_NS = 7 * 24 * 3600 * NS  # of what was told longer ago, a group that still calls is told anew


class Target(Config, frozen=True):
    """Somebody to be told: a shift, a person; `urls` are apprise's, as `mailto://…` or `jsons://host/path`."""

    name: str
    urls: list[str]

    def __post_init__(self) -> None:
        if not self.name or not self.urls:
            raise ValueError("a target has a name and at least one URL")


class Targets(Config, frozen=True):
    """The secrets file that `[alarms] notify` names; targets in the order in which an alarm escalates."""

    target: list[Target]

    def __post_init__(self) -> None:
        names = [target.name for target in self.target]
        if not names or len(set(names)) != len(names):
            raise ValueError("there is at least one [[target]], each with a name of its own")


class Address(Protocol):
    """One place to send to; tells whether it took the message."""

    def notify(self, *, title: str, body: str, notify_type: Weight) -> bool: ...


@dataclass
class Counts:
    """What the messenger has done since the hub started; `held` wait for the limit of an hour now."""

    told: int = 0
    retried: int = 0
    failed: int = 0
    held: int = 0


@dataclass
class _Attempt:
    left: list[Address]
    count: int = 0
    next_ns: int = 0


@dataclass
class Messenger(Chore):
    """`groups` looks at the line. Begun without addresses it does nothing."""

    plant: PlantConfig
    addresses: dict[str, list[Address]]
    actions: Actions
    groups: Callable[[], Sequence[Group]]
    clock: Clock
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        super().__init__()
        rules = self.plant.alarms
        spans = round(rules.group_s * NS), round(rules.escalate_min * 60 * NS)
        self._terms = Terms(tuple(self.addresses), *spans, rules.notify_per_hour)
        self._attempts: dict[tuple[str, str, str], _Attempt] = {}

    def start(self) -> None:
        """Begin to tell."""
        if self.addresses:
            super().start()

    def turn(self) -> float:
        """Send what is due now."""
        now_ns = self.clock.now_ns()
        actions = self.actions.since(now_ns - TOLD_NS)
        local = datetime.fromtimestamp(now_ns / NS)
        quiet = self.plant.alarms.is_quiet(local.hour * 60 + local.minute)
        notices, self.counts.held = escalation.due(self.groups(), actions, now_ns, self._terms, quiet=quiet)
        names = {_name(notice): notice for notice in notices}
        self._attempts = {name: one for name, one in self._attempts.items() if name in names}
        for name, notice in names.items():
            attempt = self._attempts.setdefault(name, _Attempt(list(self.addresses[notice.target])))
            if attempt.next_ns <= now_ns and not self.stopping.is_set():
                self._try(notice, attempt, now_ns)
        return TICK_S

    def _try(self, notice: Notice, attempt: _Attempt, now_ns: int) -> None:
        title, body = escalation.words(notice, self.plant.site, self.plant.url)
        attempt.left = [address for address in attempt.left if not _took(address, title, body, notice.weight)]
        attempt.count += 1
        if attempt.left and attempt.count <= len(PAUSES_S):
            self.counts.retried += 1
            attempt.next_ns = now_ns + round(PAUSES_S[attempt.count - 1] * NS)
            return
        if attempt.left:
            self.counts.failed += 1
            LOG.error("%s could not be told of %s", notice.target, title)
        else:
            self.counts.told += 1
        failed = f"{len(attempt.left)} of {len(self.addresses[notice.target])} addresses did not take it"
        self._write(notice, failed if attempt.left else "")

    def _write(self, notice: Notice, failed: str) -> None:
        time_ns = self.clock.now_ns()
        what: What = "notify_failed" if failed else "notify"
        self.actions.add([Action(time_ns, notice.target, what, device, key, failed) for device, key in notice.about])


def _name(notice: Notice) -> tuple[str, str, str]:
    return (notice.target, *notice.about[0])


def _took(address: Address, title: str, body: str, weight: Weight) -> bool:
    try:
        return address.notify(title=title, body=body, notify_type=weight)
    except Exception:  # a plug-in of somebody else's may raise anything
        LOG.exception("an address failed")
        return False


def rehearse(targets: dict[str, list[Address]], site: str) -> dict[str, list[bool]]:
    """Send every address a message that says it is a test; which of them took it."""
    told = f"{site} · test", "A test of `lineside hub notify`: alarms will come here."
    return {name: [_took(address, *told, "info") for address in own] for name, own in targets.items()}


def addresses(plant: PlantConfig, base: Path) -> dict[str, list[Address]]:
    """The addresses of each target, in order; none where the plant file names no file.

    Raises ConfigError for a file that is not as it must be, for a URL that apprise does not know (by its number, for
    it holds a password), and where apprise is not installed.
    """
    if not plant.alarms.notify:
        return {}
    path = base / plant.secrets / plant.alarms.notify
    targets = toml.load(path, Targets)
    try:
        import apprise
    except ImportError as error:
        raise ConfigError("alarms.notify", "needs the library apprise", "pip install 'lineside[notify]'") from error
    asset = apprise.AppriseAsset(app_id="lineside", app_desc="lineside hub", async_mode=False)
    made: dict[str, list[Address]] = {}
    for target in targets.target:
        for number, url in enumerate(target.urls, 1):
            address = apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
            if address is None:
                place = f"{path}: URL {number} of {target.name!r}"
                raise ConfigError(
                    place, "is no address that apprise knows", "give one as mailto://… or jsons://host/path"
                )
            made.setdefault(target.name, []).append(address)
    return made
