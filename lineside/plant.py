"""The plant file: what hub and deploy must agree on (one TOML file for a line)."""

from __future__ import annotations

import re

from lineside.config import Config
from lineside.mqtt import BrokerConfig
from lineside.topics import Writer
from lineside.windows import MODALITIES

ROLES: tuple[Writer, ...] = ("hub", "operator")


def is_loopback(host: str) -> bool:
    """Whether an address stays on this machine."""
    return host in {"localhost", "::1"} or host.startswith("127.")


class BrokerProcess(Config, frozen=True):
    """The mosquitto that the hub starts and watches as its child; `listen` stays on loopback unless told otherwise.

    With `cert_file` and `key_file` the listener is TLS. Queue limits are explicit: mosquitto drops silently at them.
    """

    managed: bool = True
    listen: str = "127.0.0.1"
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
            raise ValueError("listening beyond loopback needs cert_file and key_file")


class HubSettings(Config, frozen=True):
    """The hub's own address and store; `demo` shows the panel that injects faults."""

    host: str = "127.0.0.1"
    port: int = 8080
    database: str = "sqlite:///hub.db"
    demo: bool = False

    def __post_init__(self) -> None:
        if not is_loopback(self.host):
            raise ValueError("the dashboard has no login yet, so it listens on loopback only (127.0.0.1)")


class PlantConfig(Config, frozen=True):
    """One line: its site name, its devices, its broker, its hub and the folder of its release repository.

    `secrets` holds one password file a broker user: `hub.password`, `operator.password`, `{device}.password`.
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

    def __post_init__(self) -> None:
        for name in (self.site, *self.devices):
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
                raise ValueError(f"{name!r} is no name for a topic: use a-z, 0-9, '.', '_', '-'")
        if reserved := set(ROLES) & set(self.devices):
            raise ValueError(f"{reserved.pop()!r} is a broker user of the plant itself, choose another device name")
        if unknown := set(self.modalities) - set(MODALITIES):
            raise ValueError(f"unknown modality {unknown.pop()!r}, known are {', '.join(MODALITIES)}")

    @property
    def users(self) -> tuple[str, ...]:
        """Everybody who has a place on the line's broker: the hub, the operator and each device."""
        return (*ROLES, *self.devices)

    def password_file(self, user: str) -> str:
        """Where a broker user's password stands, seen from the plant file's folder."""
        return f"{self.secrets}/{user}.password"

    def connection(self, user: str) -> BrokerConfig:
        """How one of the plant's broker users (`hub`, `operator` or a device) reaches the broker."""
        return BrokerConfig(
            host=self.broker.listen,
            port=self.broker.port,
            username=user,
            password_file=self.password_file(user),
            ca_file=self.broker.ca_file,
        )
