"""What mosquitto reads, as text made from the plant file: configuration, access list, users.

Limits are explicit because mosquitto drops silently at its own (1000 queued messages; state saved every 30 minutes;
`max_queued_messages 0` dropped everything in 2.0.16: https://github.com/eclipse-mosquitto/mosquitto/issues/2879).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hub import home_assistant
from lineside import topics
from lineside.errors import ConfigError
from lineside.plant import HOME_ASSISTANT, ROLES, PlantConfig

AUTOSAVE_S = 15
MAX_INFLIGHT = 1000  # messages on their way to one client; its MQTT 5 receive maximum may ask for fewer
MAX_QUEUED_BYTES = 64 * 1024 * 1024


def conf_text(plant: PlantConfig, base: Path, folder: Path, system_user: str) -> str:
    """mosquitto.conf for files that lie in `folder`; `base` is what the plant file's relative paths start from.

    `system_user` is who runs it: mosquitto started by root would otherwise become the user `mosquitto`, who cannot
    read the files.
    """
    broker = plant.broker
    lines = [
        "per_listener_settings false",
        f"listener {broker.port} {broker.listen}",
        "allow_anonymous false",
        f"password_file {folder / 'passwd'}",
        f"acl_file {folder / 'acl'}",
        "persistence true",
        f"persistence_location {folder / 'data'}/",
        f"autosave_interval {AUTOSAVE_S}",
        f"max_queued_messages {broker.max_queued_messages}",
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        f"max_inflight_messages {MAX_INFLIGHT}",
        f"max_packet_size {broker.max_packet_bytes}",
        f"user {system_user}",
        f"pid_file {folder / 'mosquitto.pid'}",
        "log_dest stderr",
        "connection_messages false",
    ]
    if broker.cert_file:
        lines += [
            f"certfile {base / broker.cert_file}",
            f"keyfile {base / broker.key_file}",
            "tls_version tlsv1.2",
        ]
    return "\n".join(lines) + "\n"


def acl_text(plant: PlantConfig) -> str:
    """The access list: exactly the rows of the topic table, a device only in its own subtree, and Home Assistant's.

    The hub keeps its own rows of those when it announces nothing: it takes away what it announced before.

    >>> print(acl_text(PlantConfig(site="line1", devices=["press-3"])).split("user press-3")[1].splitlines()[1])
    topic write lineside/v1/line1/press-3/embedding
    """
    told = home_assistant.rules(plant.site)
    sections = [_section(role, [*topics.rules(role, plant.site), *told.get(role, [])]) for role in ROLES]
    sections += [_section(device, topics.rules("device", plant.site, device)) for device in plant.devices]
    if plant.hub.home_assistant:
        sections.append(_section(HOME_ASSISTANT, told[HOME_ASSISTANT]))
    return "\n".join(sections)


def _section(user: str, rows: Iterable[tuple[str, str]]) -> str:
    return f"user {user}\n" + "".join(f"topic {access} {topic}\n" for access, topic in rows)


def passwords(plant: PlantConfig, base: Path) -> dict[str, str]:
    """Each broker user's password from its file. Raises ConfigError for one that is missing or empty."""
    found = {}
    for user in plant.users:
        path = base / plant.password_file(user)
        mend = "`lineside deploy init` makes credentials"
        try:
            found[user] = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(str(path), f"password file cannot be read ({error.strerror})", mend) from error
        if not found[user] or "\n" in found[user]:
            raise ConfigError(str(path), "is not one line with a password", mend)
    return found
