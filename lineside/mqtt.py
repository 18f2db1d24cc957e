"""One way to reach the broker: MQTT 5, password or certificate, re-connection with jitter."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

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


def client(config: BrokerConfig, client_id: str, base: Path, will: tuple[str, str] | None = None) -> paho.Client:
    """A paho client with everything set but the callbacks; `base` is the folder that relative files start from.

    `will` is (topic, text), retained. The caller connects with `connect`. Raises ConfigError for a missing secret.
    """
    made = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
    if config.username:
        made.username_pw_set(config.username, _secret(base / config.password_file) if config.password_file else None)
    if config.ca_file:
        made.tls_set(
            ca_certs=str(base / config.ca_file),
            certfile=str(base / config.cert_file) if config.cert_file else None,
            keyfile=str(base / config.key_file) if config.key_file else None,
            tls_version=ssl.PROTOCOL_TLS_CLIENT,
        )
    if will is not None:
        made.will_set(will[0], will[1], qos=1, retain=True)
    # paho's own back-off has no jitter: without it a whole line would come back in step.
    made.reconnect_delay_set(min_delay=1, max_delay=random.randint(8, 15))
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


def _secret(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        mend = "`lineside deploy init` makes credentials"
        raise ConfigError(str(path), f"password file cannot be read ({error.strerror})", mend) from error
