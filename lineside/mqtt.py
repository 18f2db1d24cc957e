"""One way to reach the broker: MQTT 5, password or certificate, re-connection with jitter."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from lineside.config import Config
from lineside.errors import BrokerError, ConfigError


class BrokerConfig(Config, frozen=True):
    """Where the broker is and who we are there; the password stands in a file of its own.

    With `ca_file` the connection is TLS; with `cert_file` and `key_file` too, we show our own certificate.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file belong together")

    @property
    def files(self) -> dict[str, str]:
        """The files that are named, by key."""
        named = {key: getattr(self, key) for key in ("password_file", "ca_file", "cert_file", "key_file")}
        return {key: file for key, file in named.items() if file}

    def handed(self, folder: Path) -> BrokerConfig:
        """The same, with files of the same names in `folder` in the place of those that it holds.

        So one file serves a service, to which systemd hands credentials (LoadCredential), and a person at the desk.
        """
        there = {key: folder / Path(file).name for key, file in self.files.items()}
        return msgspec.structs.replace(self, **{key: str(file) for key, file in there.items() if file.exists()})


def client(config: BrokerConfig, client_id: str, base: Path, will: tuple[str, str] | None = None) -> paho.Client:
    """A paho client with everything set but the callbacks; `base` is the folder that relative files start from.

    `will` is (topic, text), retained. The caller connects with `connect`. Raises ConfigError for a missing secret.
    """
    made = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
    if config.username:
        made.username_pw_set(config.username, password(config, base))
    if (context := tls(config, base)) is not None:
        made.tls_set_context(context)
    if will is not None:
        made.will_set(will[0], will[1], qos=1, retain=True)
    # paho's back-off doubles without jitter: with the same first pause a whole line would come back in step.
    first_s, last_s = back_off()
    made.reconnect_delay_set(min_delay=first_s, max_delay=last_s)  # type: ignore[arg-type] # any number of seconds will do
    return made


def connect(made: paho.Client, config: BrokerConfig, wait: bool = True) -> None:
    """Start the client's network thread and connect; later losses re-connect by themselves.

    With `wait` a broker that cannot be reached raises BrokerError; without it the client keeps trying.
    """
    if wait:
        try:
            made.connect(config.host, config.port, keepalive=15, clean_start=True)
        except OSError as error:
            mend = "start it with `lineside hub run`, or mend [broker] host and port"
            raise BrokerError(f"broker {config.host}:{config.port}", f"no connection ({error})", mend) from error
    else:
        made.connect_async(config.host, config.port, keepalive=15, clean_start=True)
    made.loop_start()


def back_off() -> tuple[float, float]:
    """A client's own first and longest pause between attempts, in seconds."""
    return random.uniform(0.5, 2.0), random.uniform(8.0, 16.0)


def password(config: BrokerConfig, base: Path) -> str | None:
    """Our password, None without one. Raises ConfigError when its file cannot be read."""
    if not config.password_file:
        return None
    path = base / config.password_file
    try:
        return path.read_text().strip()
    except OSError as error:
        mend = "`lineside deploy init` makes credentials"
        raise ConfigError(str(path), f"password file cannot be read ({error.strerror})", mend) from error


def tls(config: BrokerConfig, base: Path) -> ssl.SSLContext | None:
    """How the broker must show who it is (and we, with `cert_file`); None without `ca_file`. Raises OSError."""
    if not config.ca_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(base / config.ca_file)
    if config.cert_file:
        context.load_cert_chain(base / config.cert_file, base / config.key_file)
    return context
