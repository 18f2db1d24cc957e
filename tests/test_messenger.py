"""Telling people of alarms: a real webhook, a real mail server, retries, limits, and nobody who waits for it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hub.actions import Actions
from hub.escalation import Weight
from hub.groups import Group, grouped
from hub.line import Hub
from hub.messenger import PAUSES_S, Address, Messenger, addresses
from hub.store import Store, database_url
from hub.tables import row
from lineside import wire
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.errors import ConfigError
from lineside.plant import AlarmRules, HubSettings, PlantConfig
from tests.line_broker import wait
from tests.line_port import free_port
from tests.test_alarm_rules import active, alarm

START_S = 1_700_000_000


class Place:
    """An address that can be told to fail, or to take some time of a clock."""

    def __init__(self, fails: int = 0, clock: SimulatedClock | None = None) -> None:
        self.fails, self.clock = fails, clock
        self.had: list[str] = []

    def notify(self, *, title: str, body: str, notify_type: Weight) -> bool:
        self.fails -= 1
        if self.clock:
            self.clock.sleep(0.01)
        if self.fails >= 0:
            raise OSError("no route") if self.fails % 2 else TimeoutError
        self.had.append(title)
        return True


@pytest.fixture
def actions(tmp_path: Path) -> Iterator[Actions]:
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    yield Actions(store.engine)
    store.close()


def plant(**rules: Any) -> PlantConfig:
    return PlantConfig(site="line1", devices=["press-3"], alarms=AlarmRules(**rules))


def one_group() -> list[Group]:
    return grouped(active(alarm(START_S - 60)), 15 * NS, [])


def messenger(actions: Actions, targets: dict[str, list[Address]], **more: Any) -> Messenger:
    clock = more.pop("clock", None) or SimulatedClock(START_S * NS)
    return Messenger(plant(**more), targets, actions, one_group, clock)


def test_a_notice_is_tried_again_only_where_it_was_not_taken(actions: Actions) -> None:
    well, ill = Place(), Place(fails=2)
    made = messenger(actions, {"shift": [well, ill]})
    left = []
    for pause_s in (0.0, PAUSES_S[0] - 0.1, 0.2, PAUSES_S[1] - 0.1, 0.2, 60.0):
        made.clock.sleep(pause_s)
        made.turn()
        left.append(ill.fails)
    assert left == [1, 1, 0, 0, -1, -1]  # after a pause, not at every look
    assert (len(well.had), len(ill.had), made.counts.told, made.counts.retried, made.counts.failed) == (1, 1, 1, 2, 0)
    assert [(each.who, each.what) for each in actions.since(0)] == [("shift", "notify")]


def test_one_that_cannot_be_told_is_counted_and_the_next_one_told_at_once(actions: Actions) -> None:
    dead, leader = Place(fails=100), Place()
    made = messenger(actions, {"shift": [dead], "leader": [leader]})
    for pause_s in (0.0, *PAUSES_S, 1.0, 1.0):
        made.clock.sleep(pause_s)
        made.turn()
    assert (made.counts.failed, made.counts.told, dead.fails) == (1, 1, 97)
    assert leader.had == ["line1 · station of press-3: anomaly"]
    told = [(each.who, each.what, each.why) for each in actions.since(0)]
    assert told == [("shift", "notify_failed", "1 of 1 addresses did not take it"), ("leader", "notify", "")]


def test_a_hub_that_begins_again_tells_nothing_twice_and_goes_on(actions: Actions) -> None:
    shift, leader = Place(), Place()
    targets: dict[str, list[Address]] = {"shift": [shift], "leader": [leader]}
    messenger(actions, targets).turn()
    again = messenger(actions, targets, clock=SimulatedClock((START_S + 1) * NS))
    again.turn()
    assert (len(shift.had), len(leader.had)) == (1, 0)
    again.clock.sleep(15 * 60)
    again.turn()
    assert (len(shift.had), len(leader.had)) == (1, 1)


def test_a_flood_is_held_back_and_told_later(actions: Actions) -> None:
    clock = SimulatedClock(START_S * NS)
    place = Place(clock=clock)
    made = messenger(actions, {"shift": [place]}, notify_per_hour=2, clock=clock)
    made.groups = lambda: grouped(active(*(alarm(START_S - 100 * n, subject=f"s{n}") for n in range(1, 6))), NS, [])
    made.turn()
    assert (len(place.had), made.counts.held) == (2, 3)
    made.clock.sleep(1.0)
    made.turn()
    assert (len(place.had), made.counts.held) == (2, 3)
    made.clock.sleep(3600.0)
    made.turn()
    assert (len(place.had), made.counts.held) == (4, 1)


class Webhook:
    """A local HTTP server that keeps what is posted; `status` is its answer, `gate` holds it back."""

    def __init__(self) -> None:
        self.had: list[dict[str, Any]] = []
        self.status, self.asked, self.gate = 200, threading.Event(), threading.Event()
        self.gate.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.set()
                outer.gate.wait(60)
                outer.had.append(said)
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server.server_port}/alarms"

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    pytest.importorskip("apprise", reason="needs pip install 'lineside[notify]'")
    made = Webhook()
    yield made
    made.close()


Mails = list[Any]


@pytest.fixture
def mails() -> Iterator[tuple[int, Mails]]:
    """A local mail server's port and what it got."""
    pytest.importorskip("apprise", reason="needs pip install 'lineside[notify]'")
    controllers = pytest.importorskip("aiosmtpd.controller", reason="needs pip install 'lineside[test]'")
    had: Mails = []

    class Keeper:
        async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
            had.append(
                (envelope.mail_from, envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default))
            )
            return "250 kept"

    port = free_port()
    server = controllers.Controller(Keeper(), hostname="127.0.0.1", port=port, ready_timeout=60)
    server.start()
    yield port, had
    server.stop()


def secrets(folder: Path, *targets: tuple[str, list[str]]) -> Path:
    (folder / "secrets").mkdir(exist_ok=True)
    text = "\n".join(f"[[target]]\nname = {json.dumps(name)}\nurls = {json.dumps(urls)}" for name, urls in targets)
    (folder / "secrets" / "notify.toml").write_text(text)
    return folder


def running(folder: Path, actions: Actions) -> Messenger:
    """A messenger in its thread, on the real clock."""
    rules = PlantConfig(
        site="line1",
        devices=["press-3"],
        hub=HubSettings(port=8081),
        alarms=AlarmRules(notify="notify.toml", escalate_min=1e-3),
    )
    made = Messenger(rules, addresses(rules, folder), actions, one_group, SystemClock())
    made.start()
    return made


@pytest.mark.slow
def test_a_real_webhook_and_a_real_mail_server_are_told(
    tmp_path: Path, actions: Actions, webhook: Webhook, mails: tuple[int, Mails]
) -> None:
    port, had = mails
    mail = f"mailto://127.0.0.1:{port}?from=hub@line1.example&to=leader@line1.example&mode=insecure"
    made = running(secrets(tmp_path, ("shift", [webhook.url]), ("leader", [mail])), actions)
    assert wait(lambda: made.counts.told == 2)
    made.stop()
    (said,) = webhook.had
    assert said["title"] == "line1 · station of press-3: anomaly"
    (event,) = one_group()[0].events
    when, link = datetime.fromtimestamp(START_S - 60).astimezone().isoformat(), f"http://127.0.0.1:8081{event.page}"
    assert said["message"] == f"{when} station of press-3: unlike normal\n{link}"
    assert said["type"] == "failure"
    ((sender, receivers, letter),) = had
    assert (sender, receivers) == ("hub@line1.example", ["leader@line1.example"])
    assert (letter["Subject"], "unlike normal" in letter.as_string()) == (said["title"], True)
    assert [(each.who, each.what) for each in actions.since(0)] == [("shift", "notify"), ("leader", "notify")]


@pytest.mark.slow
def test_a_webhook_that_hangs_and_then_fails_holds_up_nobody(tmp_path: Path, webhook: Webhook) -> None:
    rules = AlarmRules(notify="notify.toml", group_s=0.0)
    secrets(tmp_path, ("shift", [webhook.url]))
    for user in ("hub", "operator"):
        (tmp_path / "secrets" / f"{user}.password").write_text("secret")
    hub = Hub(PlantConfig(site="line1", devices=["press-3"], alarms=rules), tmp_path, SystemClock())
    raised = alarm(hub.clock.now_ns() / NS)
    hub.store.add([row("alarm", raised, wire.encode(raised), raised.time_ns)])
    webhook.gate.clear()
    webhook.status = 500
    hub.messenger.start()
    assert wait(webhook.asked.is_set)
    hub.acknowledge("press-3", raised.key, "Sato")
    assert hub.look().events[0].state == "ACTIVE_ACK"
    assert webhook.had == []  # it hangs still
    webhook.gate.set()
    assert wait(lambda: hub.look().notices["retried"] == 1)
    hub.messenger.stop()
    assert hub.messenger.counts.told == 0
    assert [each.what for each in hub.history("press-3", raised.key)] == ["raise", "acknowledge"]
    hub.store.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "missing key 'target'"),
        ("target = []", "at least one"),
        ('[[target]]\nname = "a"\nurls = []', "at least one URL"),
        ('[[target]]\nname = "a"\nurls = ["json://h"]\n' * 2, "a name of its own"),
        ('[[target]]\nname = "a"\nurl = "json://h"', "did you mean 'urls'"),
        ('[[target]]\nname = "a"\nurls = ["json://h", "nonsense://user:password@h"]', "URL 2 of 'a'"),
    ],
)
def test_a_secrets_file_that_cannot_be_meant_is_refused_without_telling_a_secret(
    tmp_path: Path, text: str, told: str
) -> None:
    pytest.importorskip("apprise", reason="needs pip install 'lineside[notify]'")
    secrets(tmp_path)
    (tmp_path / "secrets" / "notify.toml").write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        addresses(plant(notify="notify.toml"), tmp_path)
    assert "password" not in str(refused.value)


def test_without_a_file_nobody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    assert addresses(plant(), tmp_path) == {}
    with pytest.raises(ConfigError, match="cannot be read"):
        addresses(plant(notify="notify.toml"), tmp_path)
    with pytest.raises(ConfigError, match=r"lineside\[notify\]"):
        addresses(plant(notify="notify.toml"), secrets(tmp_path, ("shift", ["json://h"])))


@pytest.mark.slow
def test_a_test_message_tells_which_address_does_not_work(tmp_path: Path, webhook: Webhook) -> None:
    secrets(tmp_path, ("shift", [webhook.url]), ("leader", [webhook.url, "json://127.0.0.1:1/nobody"]))
    (tmp_path / "plant.toml").write_text('site = "line1"\ndevices = ["press-3"]\n[alarms]\nnotify = "notify.toml"\n')
    command = [sys.executable, "-m", "lineside", "hub", "notify", "--config", str(tmp_path / "plant.toml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (6, {"shift": [True], "leader": [True, False]})
    assert "leader could not be told" in done.stderr
    assert [said["title"] for said in webhook.had] == ["line1 · test"] * 2
