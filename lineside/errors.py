"""The errors that reach a person, as one tree.

    LinesideError            exit 1
    ├── ConfigError          exit 2   a TOML file does not say what it must
    ├── RecordingError       exit 3   a recording cannot be read or written
    ├── SensorError          exit 4   a camera, microphone or other source is missing or went away
    ├── ReleaseError         exit 5   a release is refused; `check` names the check
    ├── GateError            exit 6   a trained or exported model failed a gate
    ├── BrokerError          exit 7   the MQTT broker cannot be reached or started
    ├── PortInUseError       exit 8   somebody else listens there already
    ├── WireError            exit 9   bytes from outside are not a message of ours
    └── AccessError          exit 10  a person is not known here, or may not do this

Every error names the thing, the reason and the mend.
"""

from __future__ import annotations


class LinesideError(Exception):
    """What went wrong, told as `thing: reason; mend`."""

    exit_code = 1

    def __init__(self, thing: str, reason: str, mend: str) -> None:
        self.thing, self.reason, self.mend = thing, reason, mend
        super().__init__(f"{thing}: {reason}; {mend}")


class ConfigError(LinesideError):
    """A TOML file has an unknown key, a wrong type or an impossible combination."""

    exit_code = 2


class RecordingError(LinesideError):
    """A recording or a file to import cannot be read or written."""

    exit_code = 3


class SensorError(LinesideError):
    """A sensor cannot be opened, or stopped giving samples."""

    exit_code = 4


class ReleaseError(LinesideError):
    """A release is refused; the running encoder stays. `told` is the reason without the name of the check."""

    exit_code = 5

    def __init__(self, check: str, thing: str, reason: str, mend: str) -> None:
        self.check, self.told = check, reason
        super().__init__(thing, f"{check} failed: {reason}", mend)


class GateError(LinesideError):
    """A trained or exported model failed a gate, so nothing leaves."""

    exit_code = 6


class BrokerError(LinesideError):
    """The MQTT broker cannot be reached or started."""

    exit_code = 7


class PortInUseError(LinesideError):
    """A port that we must listen on is taken."""

    exit_code = 8


class WireError(LinesideError):
    """Bytes that came over the wire are not a message of ours."""

    exit_code = 9


class AccessError(LinesideError):
    """Somebody is not known here, or may not do this."""

    exit_code = 10
