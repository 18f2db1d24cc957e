"""The plant file: what hub and deploy must agree on (one TOML file for a line)."""

from __future__ import annotations

import re
import socket

import msgspec

from lineside.config import Config
from lineside.mqtt import BrokerConfig
from lineside.targets import Terms
from lineside.topics import Writer
from lineside.windows import MODALITIES

ROLES: tuple[Writer, ...] = ("hub", "operator")
HOUR = r"(?:[01]\d|2[0-3]):[0-5]\d"
HOME_ASSISTANT = "homeassistant"  # its user on the broker, where it is told of the line
EVERY_ADDRESS = ("0.0.0.0", "::")


def is_loopback(host: str) -> bool:
    """Whether an address stays on this machine."""
    return host in {"localhost", "::1"} or host.startswith("127.")


class BrokerProcess(Config, frozen=True):
    """The mosquitto that the hub starts and watches as its child; `listen` stays on loopback unless told otherwise.

    With `cert_file` and `key_file` the listener is TLS. `host` is the name or address by which it is reached, where
    that is not `listen`. Queue limits are explicit: mosquitto drops silently at them.
    """

    managed: bool = True
    listen: str = "127.0.0.1"
    host: str = ""
    port: int = 1883
    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    max_queued_messages: int = 20_000
    max_packet_bytes: int = 1_048_576

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file belong together")
        if not self.cert_file and not is_loopback(self.listen):
            raise ValueError("listening beyond loopback needs cert_file and key_file (`lineside deploy init --tls`)")
        if self.listen in EVERY_ADDRESS and not self.host:
            raise ValueError("listening on every address needs `host`, by which devices reach the broker")

    @property
    def name(self) -> str:
        """By which name or address the broker is reached."""
        return self.host or self.listen


class KeepDays(Config, frozen=True):
    """For how many days the hub keeps each kind of message after it came.

    Of scores a row a minute stays for good. Tombstones stay, which say what numbers were lost, and so do open alarms.
    `evidence` are recordings of alarms that devices sent; those with a label stay as long as the label says so.
    """

    embedding: float = 14.0
    score: float = 180.0
    alarm: float = 3650.0
    health: float = 30.0
    manifest: float = 3650.0
    evidence: float = 30.0

    def __post_init__(self) -> None:
        if any(days <= 0 for days in msgspec.structs.astuple(self)):
            raise ValueError("keep_days are more than 0")


class HubSettings(Config, frozen=True):
    """The hub's own address and store; `demo` shows the panel that injects faults.

    With `login` everybody needs a name and a password (`lineside hub user add`), and a session that was idle for
    `session_hours` ends; beyond loopback it must be so, and over HTTPS. `names` are further names that the hub answers
    to, as those of a proxy before it. With `home_assistant` the hub announces devices and their state over MQTT
    discovery, to a broker user of its own that reads nothing else.

    With `evidence` people may have a device send the recording of an alarm, where its device file allows that too: one
    of `evidence_file_mb` at most, all together `evidence_mb`, the oldest go first. Recordings of alarms with a label
    are kept besides in the folder `labelled`, where training finds them.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    database: str = "sqlite:///hub.db"
    demo: bool = False
    login: bool = False
    session_hours: float = 12.0
    cert_file: str = ""
    key_file: str = ""
    names: tuple[str, ...] = ()
    keep_days: KeepDays = KeepDays()
    home_assistant: bool = False
    evidence: bool = False
    evidence_mb: float = 4096.0
    evidence_file_mb: float = 256.0
    labelled: str = "labelled"

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file belong together")
        if not 0 < self.evidence_file_mb <= self.evidence_mb <= 10_000_000:
            raise ValueError("evidence_file_mb is above 0 and at most evidence_mb, that at most 10000000")
        if not self.session_hours > 0:
            raise ValueError("session_hours must be above 0")
        if (not is_loopback(self.host) or self.names) and not self.login:
            raise ValueError("beyond loopback the dashboard needs login = true")
        if not is_loopback(self.host) and not self.cert_file:
            raise ValueError("beyond loopback the dashboard needs cert_file and key_file")

    @property
    def url(self) -> str:
        """Where people find it."""
        return f"http{'s' if self.cert_file else ''}://{self.host}:{self.port}"


class AlarmRules(Config, frozen=True):
    """What the hub does with the alarms that devices report.

    One that is raised again within `hysteresis_s` of its end is the same event, which flaps. Onsets within `group_s`
    are one group, of which one message is sent to the first target of the file `notify` (in the folder `secrets`, for
    its URLs hold passwords); nobody acknowledges it for `escalate_min`: to the next one. A target gets at most
    `notify_per_hour`, and none in the `quiet_hours` ("22:00-06:00", the hub's local time). Stations in a state of
    `maintenance` raise no anomaly and drift; `operators` share the alarms of the line, in shifts of `shift_hours`. A
    device that is away for `offline_s` (0: however long) raises an alarm of its own.
    """

    hysteresis_s: float = 60.0
    group_s: float = 15.0
    escalate_min: float = 15.0
    notify: str = ""
    notify_per_hour: int = 20
    quiet_hours: str = ""
    maintenance: tuple[str, ...] = ("maintenance",)
    offline_s: float = 60.0
    operators: int = 1
    shift_hours: float = 8.0

    def __post_init__(self) -> None:
        if not (0 <= self.hysteresis_s <= 3600 and 0 <= self.group_s <= 600):
            raise ValueError("hysteresis_s is 0 to 3600, group_s 0 to 600")
        if not (0 < self.escalate_min <= 1440 and 0 < self.shift_hours <= 24):
            raise ValueError("escalate_min is above 0 and at most 1440, shift_hours above 0 and at most 24")
        if not 0 <= self.offline_s <= 86_400:
            raise ValueError("offline_s is 0 to 86400")
        if self.notify_per_hour < 1 or self.operators < 1:
            raise ValueError("notify_per_hour and operators are at least 1")
        if re.search(r"[/\\:]", self.notify):
            raise ValueError("notify is the name of a file in the folder `secrets`, no path and no URL")
        if self.quiet_hours and not re.fullmatch(rf"{HOUR}-{HOUR}", self.quiet_hours):
            raise ValueError('quiet_hours are as "22:00-06:00"')
        if not self.notify and self.quiet_hours:
            raise ValueError("quiet_hours without notify: there is nothing to keep quiet")

    def is_quiet(self, minute: int) -> bool:
        """Whether a minute of the local day lies in the quiet hours, which may go over midnight.

        >>> rules = AlarmRules(notify="notify.toml", quiet_hours="22:00-06:00")
        >>> rules.is_quiet(23 * 60), rules.is_quiet(6 * 60), AlarmRules().is_quiet(0)
        (True, False, False)
        """
        if not self.quiet_hours:
            return False
        first, last = (int(each[:2]) * 60 + int(each[3:]) for each in self.quiet_hours.split("-"))
        return first <= minute < last if first <= last else not last <= minute < first


class TrustSettings(Config, frozen=True):
    """Who signs the repository and for how long, in days; `root_threshold` of `root_keys` must sign a new root.

    `offline_days` is the longest that plant server and devices are planned to be apart. A timestamp holds twice that at
    least, so that nobody is alarmed by it, and no longer than needed: so long can old state be shown as new.
    """

    root_keys: int = 3
    root_threshold: int = 2
    offline_days: int = 3
    timestamp_days: int = 7
    snapshot_days: int = 30
    modality_days: int = 365
    targets_days: int = 365
    root_days: int = 365

    def __post_init__(self) -> None:
        if not 1 <= self.root_threshold <= self.root_keys <= 9:
            raise ValueError("root_threshold must be 1 to root_keys, root_keys at most 9")
        if self.offline_days < 0 or self.timestamp_days < max(1, 2 * self.offline_days):
            raise ValueError("timestamp_days must be at least twice offline_days, and at least 1")
        if not self.timestamp_days <= self.snapshot_days <= self.modality_days <= 3650:
            raise ValueError("timestamp_days, snapshot_days and modality_days may only grow in this order, to 3650")
        if not self.modality_days <= self.targets_days <= self.root_days <= 3650:
            raise ValueError("modality_days, targets_days and root_days may only grow in this order, to 3650")

    def days(self, role: str) -> int:
        """For how long a role is signed; every role but the four of the specification is a modality's.

        >>> TrustSettings().days("timestamp"), TrustSettings().days("camera")
        (7, 365)
        """
        own = {"root": self.root_days, "targets": self.targets_days}
        own |= {"snapshot": self.snapshot_days, "timestamp": self.timestamp_days}
        return own.get(role, self.modality_days)


class RolloutTerms(Terms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a candidate proves itself on each device, as the plant wants it unless a rollout says otherwise."""

    def __post_init__(self) -> None:
        if self.shadow_s < 0 or self.probation_s < 0 or min(self.anomalies, self.agreement, self.contribution) < 0:
            raise ValueError("shadow_s, probation_s and the limits are not below 0")
        if self.patience_s <= max(self.shadow_s, self.probation_s):
            raise ValueError("patience_s bounds every phase, so it is longer than shadow_s and probation_s")


class RolloutSettings(Config, frozen=True):
    """In which rings a new version comes to devices, and what stops it.

    `canary` are the devices of the first ring (default: the plant's first device), `percents` of all devices, by lot,
    those of the rings after it. A ring is done when its devices have taken the version and were watched for `soak_min`;
    then `approve` makes the next one wait for a person, at most `patience_h`. Up to the share `failures` of the devices
    may fail, up to the share `away` of a ring may be offline, and after `ring_h` those that are offline hold nobody up:
    they catch up by themselves. A problem that a device did not have before and has for `unwell_min` is a failure.
    """

    canary: tuple[str, ...] = ()
    percents: tuple[float, ...] = (10.0, 50.0, 100.0)
    approve: bool = True
    soak_min: float = 10.0
    failures: float = 0.0
    away: float = 0.0
    ring_h: float = 24.0
    patience_h: float = 168.0
    unwell_min: float = 5.0
    terms: RolloutTerms = RolloutTerms()

    def __post_init__(self) -> None:
        rising = tuple(sorted(set(self.percents))) == self.percents
        if not self.percents or not rising or self.percents[0] <= 0 or self.percents[-1] != 100:
            raise ValueError("percents rise from above 0 to 100")
        if not (0 <= self.failures < 1 and 0 <= self.away <= 1):
            raise ValueError("failures and away are shares, from 0 to 1")
        if self.soak_min < 0 or self.unwell_min < 0 or self.patience_h <= 0:
            raise ValueError("soak_min and unwell_min are not below 0, patience_h is above 0")
        if self.ring_h * 3600 <= self.terms.shadow_s + self.terms.probation_s:
            raise ValueError("ring_h must hold shadow_s and probation_s")


class PlantConfig(Config, frozen=True):
    """One line: its site name, its devices, its broker, its hub and the folder of its release repository.

    `secrets` holds one password file a broker user: `hub.password`, `operator.password`, `{device}.password`, and the
    public key that each device was first seen with, `{device}.pub`.
    Relative paths start from the plant file's folder.
    """

    site: str
    devices: list[str]
    modalities: tuple[str, ...] = ("camera", "microphone")
    secrets: str = "secrets"
    keys: str = "keys"
    repository: str = "repository"
    state: str = "state"
    broker: BrokerProcess = BrokerProcess()
    hub: HubSettings = HubSettings()
    trust: TrustSettings = TrustSettings()
    rollout: RolloutSettings = RolloutSettings()
    alarms: AlarmRules = AlarmRules()

    def __post_init__(self) -> None:
        for name in (self.site, *self.devices):
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
                raise ValueError(f"{name!r} is no name for a topic: use a-z, 0-9, '.', '_', '-'")
        if reserved := {*ROLES, HOME_ASSISTANT} & set(self.devices):
            raise ValueError(f"{reserved.pop()!r} is a broker user of the plant itself, choose another device name")
        if unknown := set(self.modalities) - set(MODALITIES):
            raise ValueError(f"unknown modality {unknown.pop()!r}, known are {', '.join(MODALITIES)}")
        if strange := set(self.rollout.canary) - set(self.devices):
            raise ValueError(f"the canary {strange.pop()!r} is no device of the plant")

    @property
    def users(self) -> tuple[str, ...]:
        """Everybody who has a place on the line's broker: hub, operator, each device; Home Assistant where it is on."""
        return (*ROLES, *self.devices, *([HOME_ASSISTANT] if self.hub.home_assistant else []))

    @property
    def url(self) -> str:
        """Where people find the hub from elsewhere: by a name of this machine where it listens on every address."""
        if self.hub.host not in EVERY_ADDRESS:
            return self.hub.url
        own = [*self.hub.names, self.broker.host if self.broker.managed else "", socket.gethostname()]
        name = next((each for each in own if each and not is_loopback(each)), "localhost")
        return msgspec.structs.replace(self.hub, host=f"[{name}]" if ":" in name else name).url

    def password_file(self, user: str) -> str:
        """Where a broker user's password stands, seen from the plant file's folder."""
        return f"{self.secrets}/{user}.password"

    def connection(self, user: str) -> BrokerConfig:
        """How one of the plant's broker users (`hub`, `operator` or a device) reaches the broker."""
        return BrokerConfig(
            host=self.broker.name,
            port=self.broker.port,
            username=user,
            password_file=self.password_file(user),
            ca_file=self.broker.ca_file,
        )
