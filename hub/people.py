"""`lineside hub user` and `lineside hub audit`: who may enter, and who did what."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from hub.accounts import Accounts, Role
from hub.store import Store, database_url
from lineside import config as toml
from lineside.clock import NS, SystemClock
from lineside.errors import AccessError
from lineside.plant import PlantConfig

app = typer.Typer(no_args_is_help=True, help="Who may look at the line, act on it, change it.")
PlantFile = Annotated[Path, typer.Option("--config", help="The plant file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line for scripts.")]
Name = Annotated[str, typer.Argument(help="The user's name.")]
PasswordFile = Annotated[Path | None, typer.Option(help="A file with the password; without it you are asked.")]
PLANT = Path("plant.toml")
CONSOLE = "console"  # who acts here has the database's own rights


@app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="viewer looks, operator acts on alarms, engineer changes devices.")],
    config: PlantFile = PLANT,
    password_file: PasswordFile = None,
    json_: Json = False,
) -> None:
    """Add somebody who may log in, where the plant file says `[hub] login = true`.

    Example: lineside hub user add sato --role engineer --config plant.toml
    """
    with _accounts(config) as accounts:
        accounts.add(name, role, _password(password_file))
        accounts.note(CONSOLE, "user add", f"{name} {role}", "done")
    _say(f"{name} may log in as {role}", {"added": name, "role": role}, json_)


@app.command("list")
def show(config: PlantFile = PLANT, json_: Json = False) -> None:
    """Everybody who may log in.

    Example: lineside hub user list --config plant.toml
    """
    with _accounts(config) as accounts:
        users = accounts.users()
    _say("\n".join(f"{name}  {role}" for name, role in users) or "nobody", dict(users), json_)


@app.command()
def passwd(name: Name, config: PlantFile = PLANT, password_file: PasswordFile = None, json_: Json = False) -> None:
    """Give somebody a new password; who is logged in under that name has to log in again.

    Example: lineside hub user passwd sato --config plant.toml
    """
    with _accounts(config) as accounts:
        accounts.set_password(name, _password(password_file))
        accounts.note(CONSOLE, "user passwd", name, "done")
    _say(f"{name} has a new password", {"changed": name}, json_)


@app.command()
def remove(name: Name, config: PlantFile = PLANT, json_: Json = False) -> None:
    """Let somebody in no more; sessions and tokens of that name end at once.

    Example: lineside hub user remove sato --config plant.toml
    """
    with _accounts(config) as accounts:
        accounts.remove(name)
        accounts.note(CONSOLE, "user remove", name, "done")
    _say(f"{name} may enter no more", {"removed": name}, json_)


@app.command()
def token(name: Name, config: PlantFile = PLANT, json_: Json = False) -> None:
    """Make a token for a program that asks in this user's name (`Authorization: Bearer …`); it is shown once.

    Example: lineside hub user token grafana --config plant.toml
    """
    with _accounts(config) as accounts:
        made = accounts.token(name)
        accounts.note(CONSOLE, "user token", name, "done")
    _say(made, {"name": name, "token": made}, json_)


def audit(
    config: PlantFile = PLANT,
    last: Annotated[int, typer.Option(min=1, help="How many rows.")] = 50,
    json_: Json = False,
) -> None:
    """Who did what, newest first: logins, acknowledgements, requests to devices, changes of users.

    Example: lineside hub audit --config plant.toml --last 20
    """
    with _accounts(config) as accounts:
        rows = accounts.audit(last)
    if json_:
        print(msgspec.json.encode(rows).decode())
        return
    for row in rows:
        when = datetime.fromtimestamp(row.time_ns / NS).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{when}  {row.who}  {row.action}  {row.subject}  {row.outcome}")


@contextlib.contextmanager
def _accounts(config: Path) -> Iterator[Accounts]:
    plant = toml.load(config, PlantConfig)
    store = Store(database_url(plant.hub.database, config.resolve().parent))
    try:
        yield Accounts(store.engine, SystemClock(), plant.hub.session_hours)
    finally:
        store.close()


def _password(file: Path | None) -> str:
    if file is None:
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
    try:
        return file.read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(str(file), f"cannot be read ({error})", "give a text file with the password") from error


def _say(sentence: str, facts: dict[str, str] | dict[str, Role], as_json: bool) -> None:
    print(json.dumps(facts) if as_json else sentence, flush=True)
