"""Users, sessions, the audit log, and the door of the web server: hub.accounts, hub.throttle, hub.dashboard.gate."""

from __future__ import annotations

import re
import signal
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fastapi import FastAPI, WebSocket
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from typer.testing import CliRunner

from hub import people
from hub.accounts import MOST_CHARACTERS, NEEDS, ROLES, Accounts, Who
from hub.dashboard import login
from hub.dashboard.gate import COOKIE, HEADERS, Gate, Visitor
from hub.dashboard.server import Tls
from hub.store import Store, database_url
from hub.throttle import FREE, REMEMBERED, Throttle
from lineside import config
from lineside.clock import NS, SimulatedClock
from lineside.errors import AccessError, ConfigError
from lineside.plant import HubSettings, PlantConfig
from tests.test_dashboard import Hub

PASSWORD = "four random words"
HERE, SOCKET = "http://127.0.0.1:8080", "ws://127.0.0.1:8080/_nicegui_ws/socket.io"
CHEAP = PasswordHasher(time_cost=1, memory_cost=1024)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(database_url("sqlite:///hub.db", tmp_path))
    yield made
    made.close()


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(1_700_000_000 * NS)


@pytest.fixture
def accounts(store: Store, clock: SimulatedClock) -> Accounts:
    made = Accounts(store.engine, clock, hasher=CHEAP)
    made.add("mori", "viewer", PASSWORD)
    made.add("sato", "engineer", PASSWORD)
    return made


def test_a_password_opens_a_session_of_its_user(accounts: Accounts) -> None:
    token = accounts.enter("sato", PASSWORD, "10.0.0.7")
    assert accounts.who(token) == Who("sato", "engineer")
    assert accounts.who(token + "x") is None
    accounts.leave(token)
    assert accounts.who(token) is None


@pytest.mark.parametrize(("name", "password"), [("sato", "wrong words here"), ("nobody", PASSWORD), ("sato", "")])
def test_who_is_wrong_is_not_told_what_was_wrong(accounts: Accounts, name: str, password: str) -> None:
    with pytest.raises(AccessError, match="name or password is wrong"):
        accounts.enter(name, password, "10.0.0.7")


def test_neither_password_nor_token_stands_in_the_database(accounts: Accounts, tmp_path: Path) -> None:
    token = accounts.enter("sato", PASSWORD, "10.0.0.7")
    with sqlite3.connect(tmp_path / "hub.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        rows = str(
            database.execute("SELECT * FROM users").fetchall() + database.execute("SELECT * FROM sessions").fetchall()
        )
    assert "$argon2id$" in rows
    assert PASSWORD not in rows
    assert token not in rows


def test_an_idle_session_ends_one_in_use_goes_on_and_a_token_stays(accounts: Accounts, clock: SimulatedClock) -> None:
    used, idle = (accounts.enter("mori", PASSWORD, "10.0.0.7") for _ in range(2))
    program = accounts.token("mori")
    for _ in range(3):
        clock.sleep(5 * 3600)
        assert accounts.who(used) == Who("mori", "viewer")
    assert accounts.who(idle) is None
    clock.sleep(400 * 24 * 3600)
    assert accounts.who(program) == Who("mori", "viewer")
    with pytest.raises(AccessError, match="no user of this hub"):
        accounts.token("nobody")


@pytest.mark.parametrize("change", ["set_password", "remove"])
def test_a_change_of_the_user_ends_sessions_and_tokens(accounts: Accounts, change: str) -> None:
    tokens = [accounts.enter("mori", PASSWORD, ""), accounts.token("mori")]
    accounts.remove("mori") if change == "remove" else accounts.set_password("mori", "four other words")
    assert [accounts.who(token) for token in tokens] == [None, None]
    with pytest.raises(AccessError):
        accounts.enter("mori", PASSWORD, "")
    with pytest.raises(AccessError, match="no user of this hub"):
        accounts.remove("nobody")


@pytest.mark.parametrize(
    ("name", "password", "told"),
    [
        ("a b", PASSWORD, "is no user name"),
        ("sato", PASSWORD, "is there already"),
        ("new", "short", "10 to 256 characters"),
        ("new", "x" * (MOST_CHARACTERS + 1), "10 to 256 characters"),
    ],
)
def test_what_cannot_be_a_user_is_refused(accounts: Accounts, name: str, password: str, told: str) -> None:
    with pytest.raises(AccessError, match=told):
        accounts.add(name, "viewer", password)


def test_wrong_passwords_wait_longer_and_longer(accounts: Accounts, clock: SimulatedClock) -> None:
    for _ in range(FREE + 1):
        with pytest.raises(AccessError, match="is wrong"):
            accounts.enter("sato", "wrong words here", "10.0.0.7")
    with pytest.raises(AccessError, match="too many wrong passwords; wait 1 s"):
        accounts.enter("sato", PASSWORD, "10.0.0.8")  # by name, whatever the address
    with pytest.raises(AccessError, match="too many"):
        accounts.enter("mori", PASSWORD, "10.0.0.7")  # by address, whatever the name
    clock.sleep(1.1)
    assert accounts.enter("sato", PASSWORD, "10.0.0.7")
    with pytest.raises(AccessError, match="is wrong"):
        accounts.enter("sato", "wrong words here", "10.0.0.7")  # begins anew


def test_a_throttle_is_bounded_in_time_and_memory(clock: SimulatedClock) -> None:
    throttle = Throttle(clock)
    for _ in range(100):
        throttle.failed("sato", "10.0.0.7")
    assert throttle.wait_s("sato", "") == 900
    for number in range(REMEMBERED):
        throttle.failed(f"name {number}", f"10.{number}")
    assert throttle.wait_s("sato", "") == 0
    assert len(throttle._wrong) == REMEMBERED


def test_roles_hold_what_those_below_hold() -> None:
    may = {role: {action for action in NEEDS if Who("x", role).may(action)} for role in ROLES}
    assert may["viewer"] == set()
    assert may["viewer"] < may["operator"] < may["engineer"] == set(NEEDS)
    with pytest.raises(AccessError, match="may not rollback as operator; ask somebody with the role engineer"):
        Who("mori", "operator").must("rollback")


def test_what_happened_stands_in_the_log_newest_first(accounts: Accounts) -> None:
    with pytest.raises(AccessError):
        accounts.enter("sato", "wrong words here", "10.0.0.7")
    accounts.enter("sato", PASSWORD, "10.0.0.7")
    accounts.note("sato", "rollback", "edge-1 camera", "successful")
    rows = [(row.who, row.action, row.subject, row.outcome) for row in accounts.audit()]
    assert rows == [
        ("sato", "rollback", "edge-1 camera", "successful"),
        ("sato", "login", "10.0.0.7", "done"),
        ("sato", "login", "10.0.0.7", "refused"),
    ]
    assert len(accounts.audit(1)) == 1


def door(accounts: Accounts | None, **settings: Any) -> TestClient:
    """A small application behind the gate; it tells who asks."""
    app = FastAPI()

    @app.get("/")
    @app.get("/healthz")
    @app.get("/api/status")
    @app.post("/act")
    async def seen(request: Request) -> dict[str, str]:
        return {"who": request.state.who.name if request.state.who else ""}

    @app.websocket("/_nicegui_ws/socket.io")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.state.who.name)
        await websocket.close()

    if accounts is not None:
        login.mount(app, "line1", accounts, secure=False, hours=12)
    app.add_middleware(Gate, settings=HubSettings(login=accounts is not None, **settings), accounts=accounts)
    return TestClient(app, base_url=HERE, follow_redirects=False)


def logged_in(accounts: Accounts, name: str = "sato") -> TestClient:
    client = door(accounts)
    answer = client.post("/login", data={"name": name, "password": PASSWORD, "next": "/api/status"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/api/status")
    return client


def test_nothing_but_the_open_doors_answers_without_a_login(accounts: Accounts) -> None:
    client = door(accounts)
    assert client.get("/api/status").status_code == 401
    assert client.post("/act").status_code == 401
    assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "/login?next=/"
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(SOCKET):
        pass
    assert refused.value.code == 1008
    assert client.get("/healthz").json() == {"who": ""}
    assert client.get("/healthz/../api/status").status_code == 401
    assert client.get("/loginx").status_code == 401


def test_a_store_that_cannot_be_read_opens_no_door(accounts: Accounts, store: Store) -> None:
    client = logged_in(accounts)
    with store.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE sessions"))
    answer = client.get("/", headers={"accept": "text/html"})
    assert (answer.status_code, answer.headers["refresh"]) == (503, "5")
    assert "cannot read its store" in answer.json()["error"]
    assert client.get("/healthz").json() == {"who": ""}


def test_a_login_opens_pages_routes_and_sockets_and_a_logout_closes_them(accounts: Accounts) -> None:
    client = logged_in(accounts)
    cookie = client.cookies[COOKIE]
    assert client.get("/api/status").json() == {"who": "sato"}
    with client.websocket_connect(SOCKET, headers={"origin": HERE}) as socket:
        assert socket.receive_text() == "sato"
    assert client.post("/logout").status_code == 303
    client.cookies.set(COOKIE, cookie)
    assert client.get("/api/status").status_code == 401


def test_a_cookie_is_for_browsers_only_and_over_https_only_there(accounts: Accounts) -> None:
    answer = door(accounts).post("/login", data={"name": "sato", "password": PASSWORD})
    assert {"HttpOnly", "SameSite=lax"} <= set(answer.headers["set-cookie"].split("; "))
    app = FastAPI()
    login.mount(app, "line1", accounts, secure=True, hours=12)
    answer = TestClient(app, follow_redirects=False).post("/login", data={"name": "sato", "password": PASSWORD})
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_a_program_asks_with_a_token(accounts: Accounts) -> None:
    headers = {"authorization": f"Bearer {accounts.token('mori')}"}
    assert door(accounts).get("/api/status", headers=headers).json() == {"who": "mori"}
    assert door(accounts).get("/api/status", headers={"authorization": "Bearer x"}).status_code == 401


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:9", "null"])
def test_another_site_cannot_act_in_a_visitors_name(accounts: Accounts, origin: str) -> None:
    client = logged_in(accounts)
    assert client.post("/act", headers={"origin": origin}).status_code == 403
    assert client.post("/act", headers={"origin": HERE}).status_code == 200
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(SOCKET, headers={"origin": origin}),
    ):
        pass


@pytest.mark.parametrize("login_on", [True, False])
def test_a_name_that_was_pointed_here_is_not_answered(accounts: Accounts, login_on: bool) -> None:
    client = door(accounts if login_on else None)
    assert client.get("/healthz", headers={"host": "evil.example:8080"}).status_code == 421
    assert client.get("/healthz", headers={"host": "localhost:8080"}).status_code == 200
    if login_on:
        proxied = door(accounts, names=("line1.plant.example",))
        assert proxied.get("/healthz", headers={"host": "line1.plant.example"}).status_code == 200


def test_where_no_login_is_asked_for_whoever_is_here_is_the_operator() -> None:
    client = door(None)
    assert client.get("/api/status").json() == {"who": "operator"}
    assert {name: client.get("/").headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize(("language", "told"), [("en-GB", "is wrong"), ("ja,en;q=0.5", "違います")])
def test_the_login_page_tells_in_two_languages_and_escapes(accounts: Accounts, language: str, told: str) -> None:
    client, headers = door(accounts), {"accept-language": language}
    typed = {"name": '"><script>', "password": "wrong words here", "next": "//evil.example"}
    answer = client.post("/login", data=typed, headers=headers)
    assert answer.status_code == 401
    assert told in answer.text
    assert "<script>" not in answer.text
    assert 'name="next" value="/"' in answer.text
    for _ in range(FREE):
        answer = client.post("/login", data=typed, headers=headers)
    answer = client.post("/login", data=typed, headers=headers)
    assert (answer.status_code, bool(re.search(r"wait \d+ s", answer.text))) == (429, True)


def test_a_page_that_stays_open_acts_no_more_once_the_session_has_ended(accounts: Accounts) -> None:
    token = accounts.enter("sato", PASSWORD, "")
    visitor = Visitor(Who("sato", "engineer"), accounts, token)
    assert visitor.must("rollback") == Who("sato", "engineer")
    accounts.leave(token)
    with pytest.raises(AccessError, match="the session has ended"):
        visitor.must("acknowledge")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('host = "0.0.0.0"', "needs login = true"),
        ('host = "0.0.0.0"\nlogin = true', "needs cert_file and key_file"),
        ('names = ["line1"]', "needs login = true"),
        ('cert_file = "a"', "belong together"),
        ("session_hours = 0", "above 0"),
    ],
)
def test_a_hub_that_anybody_could_reach_is_refused(tmp_path: Path, lines: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config.loads(f'site = "a"\ndevices = ["b"]\n[hub]\n{lines}\n', PlantConfig, "plant.toml")


def test_files_that_are_no_certificate_are_told(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("none")
    with pytest.raises(ConfigError, match="cannot be used with"):
        Tls(tmp_path / "cert.pem", tmp_path / "key.pem").usable()


def test_the_commands_add_change_list_and_remove(tmp_path: Path) -> None:
    (tmp_path / "plant.toml").write_text('site = "a"\ndevices = ["b"]\n')
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    at = ["--config", str(tmp_path / "plant.toml"), "--json"]

    def run(*words: str) -> str:
        done = CliRunner().invoke(people.app, [*words, *at], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output.strip()

    word = ["--password-file", str(tmp_path / "password")]
    assert run("add", "sato", "--role", "engineer", *word) == '{"added": "sato", "role": "engineer"}'
    assert run("list") == '{"sato": "engineer"}'
    run("passwd", "sato", *word)
    assert len(run("token", "sato")) > 60
    run("remove", "sato")
    assert run("list") == "{}"
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    rows = [(row.who, row.action) for row in Accounts(store.engine, SimulatedClock(0)).audit()]
    store.close()
    assert rows == [("console", f"user {word}") for word in ("remove", "token", "passwd", "add")]


@pytest.fixture
def plant(tmp_path: Path) -> Hub:
    """A hub with HTTPS and login, one viewer and one engineer."""
    made = Hub(tmp_path)
    _certificate(tmp_path)
    text = made.config.read_text() + 'login = true\ncert_file = "cert.pem"\nkey_file = "key.pem"\n'
    made.config.write_text(text)
    made.url = made.url.replace("http:", "https:")
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    for name, role in (("mori", "viewer"), ("sato", "engineer")):
        Accounts(store.engine, SimulatedClock(NS)).add(name, role, PASSWORD)
    store.close()
    return made


def _certificate(folder: Path) -> None:
    """A certificate of this machine's loopback, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.slow
@pytest.mark.browser
def test_people_log_in_over_https_and_may_do_what_their_role_may(plant: Hub) -> None:
    from playwright.sync_api import sync_playwright

    process = plant.run()
    assert process.stdout is not None
    assert process.stdout.readline().strip() == f"dashboard on {plant.url}"
    store = Store(database_url("sqlite:///hub.db", plant.folder))
    accounts = Accounts(store.engine, SimulatedClock(0))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(ignore_https_errors=True)
        page.goto(plant.url)
        assert page.url == f"{plant.url}/login?next=/"
        for name, password in (("mori", "wrong words here"), ("mori", PASSWORD)):
            _enter(page, name, password)
        page.wait_for_selector("text=mori · viewer")
        fault = page.locator("button:has-text('Bearing noise')")
        assert fault.is_disabled()
        assert "ask somebody with the role engineer" in (fault.get_attribute("title") or "")
        page.click("text=mori · viewer")
        page.wait_for_url("**/login")
        _enter(page, "sato", PASSWORD)
        page.wait_for_selector("text=sato · engineer")
        accounts.remove("sato")  # while the page is open
        fault.click()
        page.wait_for_selector("text=the session has ended")
        browser.close()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    rows = [(row.who, row.action, row.outcome) for row in reversed(accounts.audit())]
    store.close()
    assert rows == [
        ("mori", "login", "refused"),
        ("mori", "login", "done"),
        ("sato", "login", "done"),
        ("sato", "fault", "refused"),
    ]


def _enter(page: Any, name: str, password: str) -> None:
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", password)
    page.click("button")


@pytest.mark.slow
def test_a_hub_with_login_and_nobody_who_may_is_refused(tmp_path: Path) -> None:
    made = Hub(tmp_path)
    made.config.write_text(made.config.read_text() + "login = true\n")
    told, errors = made.run().communicate(timeout=60)
    assert told == ""
    assert "hub.login: is on, and the hub has no user; add one: `lineside hub user add NAME" in errors
