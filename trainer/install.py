"""What shall lie where for a nightly loop that is started by a timer."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from lineside.errors import ConfigError
from lineside.parts import CONFIG, PLANT, TRAIN, Own, Put, hidden_by, reaching, started, units_of
from trainer.night_plan import NightPlan

SERVICE, TIMER = TRAIN.units
[USER] = TRAIN.accounts


def wanted(plan: NightPlan, file: Path, broker: str, executable: str, systemd: int) -> tuple[list[Put], list[Own]]:
    """All that shall lie on a machine for the loop's file `file`; `broker` is where the plant's is reached, if any.

    Stages that a person trained there as root are given to the service.
    Raises ConfigError for a path that the service could not reach, LinesideError for such a command.
    """
    _refuse_unreachable(plan)
    puts = [
        *units_of(TRAIN, executable, systemd),
        reaching(SERVICE, broker),
        started(TIMER, "timers"),
        Put(f"{CONFIG}/nightly.toml", file.read_bytes()),
        Put(f"{CONFIG}/{plan.plan}", _read(file.parent / plan.plan)),
        Put(f"{CONFIG}/{plan.folder}", target=TRAIN.state),
    ]
    return puts, [Own(TRAIN.state, USER, USER, 0o750)]


def _refuse_unreachable(plan: NightPlan) -> None:
    for key, path in (("plan", plan.plan), ("folder", plan.folder)):
        if path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise ConfigError(key, f"is {path!r}", f"name it beside this file: both are put into {CONFIG}")
    elsewhere = [*plan.recordings, *plan.labelled, *([plan.certify_on] if plan.certify_on else [])]
    for path in elsewhere:
        if not path.startswith("/") or (hidden := hidden_by(path)):
            told = f"a service sees nothing under {hidden}" if path.startswith("/") else "is not an absolute path"
            raise ConfigError(path, told, "keep recordings elsewhere, /srv/recordings say, and name the whole path")
    if plan.plant and plan.plant != f"{PLANT}/plant.toml":
        raise ConfigError("plant", f"is {plan.plant!r}", f"services look for it at {PLANT}/plant.toml")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read ({error.strerror})", "put it there") from error
