"""The page of one alarm: a hub as a process, a real agent whose disk holds the recording, and Chromium before it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edge.agent import Agent
from edge.config import CommissioningSettings, DeviceConfig, DeviceSettings, EvidenceSettings
from edge.thumbnail import example, thumbnail
from hub.accounts import ROLES, Accounts
from hub.dashboard.gate import COOKIE
from hub.store import Store, database_url
from hub.tables import row
from lineside import config as toml
from lineside import mqtt, topics, wire
from lineside.clock import NS, SystemClock
from lineside.evidence import REPLAYED, Again, Replayed
from lineside.features import CameraPrepare, MicrophonePrepare, prepare
from lineside.messages import Embedding, Embeddings, Message, NormalMoment, Score
from lineside.plant import PlantConfig
from lineside.recording import Recording, without_faults
from lineside.windows import Window
from tests import evidence_scene as scene
from tests.line_broker import wait
from tests.line_device import MODALITIES, SENSORS, SITE, install
from tests.line_port import free_port
from trainer.data import read
from trainer.plan import RecordingPart

ROOT = Path(__file__).parent.parent
SCREENS = ROOT / "docs" / "screens"
KEY, SECOND, COLOURS = "edge-1/press/anomaly/1", "edge-1/press/sensor/2", 128
WHY = "press is unlike normal: 78% of the evidence comes from mic0 (microphone), p = 1e-04 (at most 3e-04, 95 %)"
CAUSE = " (cause: the process; unlike normal: mic0; the background of mic0 is as it was)"
PREPARED = {"camera": CameraPrepare(), "microphone": MicrophonePrepare()}
pytestmark = [pytest.mark.browser, pytest.mark.slow]


class Plant:
    """A hub with its broker, and one device that is commissioning and has kept the recording of an alarm."""

    def __init__(self, folder: Path, more: str = "") -> None:
        broker, page = free_port(), free_port()
        (folder / "secrets").mkdir()
        for user in ("hub", "operator", "edge-1"):
            (folder / "secrets" / f"{user}.password").write_text(f"secret of {user}")
        self.folder, self.config, self.url = folder, folder / "plant.toml", f"http://127.0.0.1:{page}"
        self.config.write_text(
            f'site = "{SITE}"\ndevices = ["edge-1"]\n[broker]\nport = {broker}\n'
            f"[hub]\nport = {page}\nevidence = true\n{more}"
        )
        self.plant = toml.load(self.config, PlantConfig)
        self.start_ns = (time.time_ns() // NS - 40) * NS
        self.seq, self.epoch = 0, time.time_ns()
        self._stop = threading.Event()

    def run_hub(self) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
        command = [sys.executable, "-m", "hub", "run", "--config", str(self.config)]
        made = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert made.stdout is not None
        assert made.stdout.readline().startswith("dashboard on")
        return made

    def run_device(self) -> threading.Thread:
        """Its own agent answers for the recording; what it judged is told in its name (`tell`)."""
        install(self.folder / "state-edge-1")
        kept = self.folder / "state-edge-1" / "evidence" / scene.name(self.start_ns)
        told = scene.alarm(KEY, start_ns=self.start_ns)
        scene.recording(kept, told, seconds=16.0, start_ns=self.start_ns, fault="bearing_noise")
        config = DeviceConfig(
            device=DeviceSettings(id="edge-1", site=SITE, station="press", state_dir="state-edge-1"),
            sensors=SENSORS,
            broker=self.plant.connection("edge-1"),
            commissioning=CommissioningSettings(minutes=60.0),
            evidence=EvidenceSettings(send="request", keep_free_mb=0.0),
        )
        agent = Agent(config, self.folder, SystemClock())
        running = threading.Thread(target=agent.run, args=(self._stop,))
        running.start()
        return running

    def stop(self) -> None:
        self._stop.set()

    def tell(self) -> None:
        """Two minutes of normal moments, then the one that raised the alarm; another alarm that has no recording."""
        connection = self.plant.connection("edge-1")
        client = mqtt.client(connection, "edge-1-teller", self.folder)
        mqtt.connect(client, connection)
        raised = self.start_ns + scene.RAISED_S * NS
        rng, usual = np.random.default_rng(0), {name: np.random.default_rng(len(name)) for name in MODALITIES}
        middle = {name: rng.normal(size=32) for name, rng in usual.items()}

        def say(message: Message) -> None:
            self.seq += 1
            kind, stamped = wire.kind_of(message), wire.stamped(message, self.epoch, self.seq)
            client.publish(topics.name(SITE, "edge-1", kind), wire.encode(stamped), qos=1).wait_for_publish(10)

        for half in range(-240, 0):
            start_ns, last = raised + half * NS // 2 - NS // 2, half == -1
            vectors = []
            for name, kind in MODALITIES.items():
                vector = middle[name] + rng.normal(size=32) * (1.5 if last and name == "mic0" else 0.1)
                packed = wire.pack(vector / np.linalg.norm(vector))
                vectors.append(Embedding(name, kind, "1", "space-1", packed))
            about: dict[str, Any] = {
                "device": "edge-1",
                "station": "press",
                "start_ns": start_ns,
                "end_ns": start_ns + NS,
            }
            say(Embeddings(**about, embeddings=vectors))
            say(moment(about, last=last))
        say(
            scene.alarm(
                KEY,
                start_ns=self.start_ns,
                text=WHY + CAUSE,
                cause="process",
                versions={"camera": "1", "microphone": "1"},
                pictures={name: thumbnail(window) for name, window in scene.windows("bearing_noise").items()},
                like={name: beside(window, raised - 90_000 * NS) for name, window in scene.windows().items()},
            )
        )
        say(
            scene.alarm(
                SECOND,
                kind="sensor",
                subject="cam0",
                recording="",
                contributions={},
                start_ns=self.start_ns,
            )
        )
        client.disconnect()
        client.loop_stop()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def status_of(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


def moment(about: dict[str, Any], *, last: bool) -> Score:
    phi = {"mic0": 7.0, "cam0": 2.0} if last else {"mic0": 0.4, "cam0": 0.3}
    return Score(
        **about,
        evidence=sum(phi.values()),
        p_value=1e-4 if last else 0.4,
        limit=0.01,
        contributions=phi,
        without={"mic0": 0.31, "cam0": 2e-3} if last else dict.fromkeys(phi, 0.5),
        agreements={},
        modalities=MODALITIES,
        absent={},
        versions={"camera": "1", "microphone": "1"},
        skew_ms=4.0,
    )


def beside(window: Window, start_ns: int) -> NormalMoment:
    return NormalMoment(start_ns, example(prepare(PREPARED[window.modality], window), window))


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    made = Plant(tmp_path_factory.mktemp("plant"))
    hub = made.run_hub()
    device = made.run_device()
    try:
        made.tell()
        assert wait(lambda: {KEY, SECOND} <= {each["key"] for each in made.get("/api/alarms")})
        assert wait(lambda: made.get("/api/status")["devices"]["edge-1"]["status"] == "online")
        yield made
    finally:
        made.stop()
        device.join()
        hub.send_signal(signal.SIGTERM)
        _, errors = hub.communicate(timeout=60)
    assert hub.returncode == 0, errors
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        made = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield made
        made.close()


def opened(browser: Any, plant: Plant, key: str, language: str = "en") -> tuple[Any, list[str]]:
    """The alarm's page in a browser of its own, and what went wrong in it."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, locale=language)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(f"{plant.url}/alarm/edge-1/{key}")
    return page, errors


def large_enough(page: Any, name: str) -> Any:
    """A button, which a glove can hit."""
    button = page.get_by_role("button", name=name, exact=True)
    button.wait_for(timeout=60_000)
    box = button.bounding_box()
    assert min(box["width"], box["height"]) >= 48
    return button


def test_an_alarm_is_looked_into_and_told_not_real_with_a_touch(plant: Plant, browser: Any) -> None:
    """Recording asked for, sent by the device, shown; a word on it becomes what training reads."""
    page, errors = opened(browser, plant, KEY)
    page.get_by_text("it is sent when somebody asks for it").wait_for(timeout=60_000)
    large_enough(page, "Get the recording").click()
    page.locator(".l-spectrogram img").wait_for(timeout=60_000)
    assert wait(lambda: page.locator(".l-spectrogram img").evaluate("image => image.naturalWidth") == 1200)
    assert wait(lambda: page.locator("audio").evaluate("player => player.duration") == pytest.approx(16.0, abs=0.2))
    shot, caption = page.locator(".l-shot"), page.locator(".l-camera figcaption")
    assert wait(lambda: shot.evaluate("image => image.naturalWidth") > 100)
    assert caption.inner_text() in ("cam0 at 4.9 s", "cam0 at 5.0 s")  # where the alarm was raised
    page.locator(".l-thumb").first.click()
    assert caption.inner_text() == "cam0 at 0.0 s"
    cursor = page.locator(".l-spectrogram .l-cursor")
    assert cursor.evaluate("mark => mark.style.left") == "0%"
    width = page.locator(".l-spectrogram").bounding_box()["width"]
    page.locator(".l-spectrogram").click(position={"x": width / 2, "y": 100})
    assert caption.inner_text() in ("cam0 at 7.9 s", "cam0 at 8.0 s")
    assert wait(lambda: abs(page.locator("audio").evaluate("player => player.currentTime") - 8) < 0.2)
    page.get_by_text("Without mic0 (microphone) p would be 0.31 instead of 0.0001: ordinary").wait_for(timeout=60_000)
    page.get_by_text("Without cam0 (camera) p would be 0.002 instead of 0.0001: strange all the same").wait_for()
    page.get_by_text("unlike normal: mic0; the background of mic0 is as it was", exact=True).wait_for()
    page.get_by_text("p ≤ 0.01 in 5 of 6 moments").wait_for()
    assert page.locator(".l-card", has_text="Nearest normal moments").locator(".l-mono").count() == 6
    beside = page.locator(".l-card", has_text="Beside normal running").locator("figure")
    assert [text.partition(" ")[0] for text in beside.locator("div").all_inner_texts()] == 2 * ["in", "normal,"]
    widths = "all => Promise.all(all.map(async (one) => { await one.decode(); return one.naturalWidth; }))"
    assert beside.locator("img").evaluate_all(widths) == [267, 267, 320, 320]
    page.get_by_label("Why (if you want to say)").fill("a fork lift passed")
    large_enough(page, "Not real").click()
    page.get_by_text("said by operator").wait_for(timeout=60_000)
    page.get_by_text("not real: a fork lift passed").wait_for(timeout=60_000)  # in what was done
    file = plant.folder / "labelled" / f"edge-1-{scene.name(plant.start_ns)}"
    assert wait(file.is_file)
    recording = Recording(file)
    assert [(each.label, each.fault, each.confirmed) for each in recording.labels()] == [("normal", False, True)]
    assert len(list(without_faults(recording.samples(), recording.labels()))) > 0
    learned = read([RecordingPart("labelled")], plant.folder)
    assert (len(learned), sorted(learned.modalities)) == (31, ["cam0", "mic0"])
    large_enough(page, "Which fault").click()
    page.get_by_label("Another one").fill("bearing worn")
    large_enough(page, "Say so").click()
    page.get_by_text("real: bearing worn").wait_for(timeout=60_000)
    assert wait(lambda: [each.label for each in Recording(file).labels()] == ["bearing worn"])
    first = label_of(plant)
    large_enough(page, "Which fault").click()
    page.get_by_label("Another one").fill("Bearing  WORN")
    large_enough(page, "Say so").click()
    assert wait(lambda: label_of(plant)["time_ns"] > first["time_ns"])
    assert label_of(plant)["kind"] == "bearing worn"  # one fault, however it is spelled
    page.context.close()
    assert errors == []


def label_of(plant: Plant) -> Any:
    found = plant.get("/api/v1/alarms")["items"]
    return next(each["label"] for each in found if each["raised"]["key"] == KEY)


def test_acknowledge_and_silence_take_two_touches(plant: Plant, browser: Any) -> None:
    page, errors = opened(browser, plant, KEY)
    large_enough(page, "Silence").click()
    page.locator(".l-choice", has_text="10 min").click()
    page.get_by_text("silenced until").wait_for(timeout=60_000)
    large_enough(page, "Hear again").click()
    large_enough(page, "Silence")
    page.goto(f"{plant.url}/alarms")
    page.locator(f'a[href="/alarm/edge-1/{KEY}"]').click()
    large_enough(page, "Acknowledge").click()
    page.get_by_text("seen").first.wait_for(timeout=60_000)
    assert {each["key"]: each["state"] for each in plant.get("/api/alarms")}[KEY] == "ACTIVE_ACK"
    page.context.close()
    assert errors == []


def test_an_alarm_without_a_recording_and_one_that_is_none(plant: Plant, browser: Any) -> None:
    page, errors = opened(browser, plant, SECOND)
    page.get_by_text("The device keeps no recording of this alarm.").wait_for(timeout=60_000)
    page.get_by_text("An alarm of the sensor itself").wait_for(timeout=60_000)
    large_enough(page, "Real").click()
    page.get_by_text("its recording is missing").wait_for(timeout=60_000)
    page.context.close()
    assert errors == []
    page, errors = opened(browser, plant, "no/such/key")
    page.get_by_text("No such alarm is known here").wait_for(timeout=60_000)
    page.context.close()
    assert errors == []


def test_nothing_but_files_of_recordings_is_served(plant: Plant) -> None:
    folder = f"/evidence/edge-1/{scene.name(plant.start_ns)}"
    assert [plant.status_of(f"{folder}/{name}") for name in ("mic0.wav", "cam0-0000.jpg", "recording.mcap")] == [
        200
    ] * 3
    for path in (
        f"{folder}/index.json", f"{folder}/..%2fplant.toml", "/evidence/edge-1/..%2f..%2fplant.toml/recording.mcap",
        "/evidence/..%2f..%2fsecrets/hub.password/recording.mcap", f"{folder}/cam0-9999.jpg",
    ):  # fmt: skip
        assert plant.status_of(path) == 404, path


def test_screens(plant: Plant, browser: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What the newest release makes of the alarm is told too; with --accept the screenshots of the docs are taken."""
    found = [Again(device="edge-1", key=KEY, real=True, kind="bearing worn", raised=True)]
    told = Replayed(version=7, stage="stage-7", time_ns=1, normal="line.mcap", alarms=found)
    (plant.folder / "repository" / REPLAYED).mkdir()
    (plant.folder / "repository" / REPLAYED / "7.json").write_bytes(msgspec.json.encode(told))
    folder = SCREENS if request.config.getoption("--accept") else tmp_path
    folder.mkdir(exist_ok=True)
    for language, sentence in (("en", "Version 7 would raise it again."), ("ja", "バージョン 7 でも発生します。")):
        page, errors = opened(browser, plant, KEY, language)
        page.get_by_text(sentence).wait_for(timeout=60_000)
        page.locator("audio").wait_for(timeout=60_000)
        page.wait_for_timeout(1500)
        file = folder / f"alarm-{language}.png"
        page.screenshot(path=file, full_page=True)
        Image.open(file).quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
        assert file.stat().st_size < 300_000
        page.context.close()
        assert errors == []


def test_who_may_only_look_sees_no_recording_and_says_nothing(tmp_path: Path, browser: Any) -> None:
    plant = Plant(tmp_path, "login = true\n")
    recording = plant.folder / "state" / "evidence" / "edge-1" / scene.name(plant.start_ns)
    scene.recording(recording, start_ns=plant.start_ns)
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    told = wire.stamped(scene.alarm(KEY, start_ns=plant.start_ns), 1, 1)
    away = msgspec.structs.replace(told, key="away", kind="device", subject="edge-1", seq=told.seq + 1)
    store.add([row("alarm", each, wire.encode(each), time.time_ns()) for each in (told, away)])
    accounts = Accounts(store.engine, SystemClock())
    tokens = {}
    for role in ROLES:
        accounts.add(role, role, "a long password")
        tokens[role] = accounts.token(role)
    store.close()
    hub = plant.run_hub()
    try:
        context = browser.new_context()
        context.add_cookies([{"name": COOKIE, "value": tokens["viewer"], "url": plant.url}])
        page = context.new_page()
        page.goto(f"{plant.url}/alarm/edge-1/{KEY}")
        page.get_by_text("Your role does not open recordings").wait_for(timeout=60_000)
        for name in ("Real", "Not real", "Which fault", "Acknowledge", "Silence"):
            button = large_enough(page, name)
            assert button.is_disabled()
            assert "ask somebody with the role operator" in button.get_attribute("title")
        page.goto(f"{plant.url}/alarm/edge-1/away")
        large_enough(page, "Acknowledge")
        assert page.get_by_role("button", name=re.compile("[Rr]eal|Which fault")).count() == 0  # nobody could judge it
        context.close()
        answers = {}
        for role, token in {"": "", **tokens}.items():
            path = f"{plant.url}/evidence/edge-1/{recording.name}/recording.mcap"
            asked = urllib.request.Request(path, headers={"Authorization": f"Bearer {token}"})
            with contextlib.suppress(urllib.error.HTTPError):
                answers[role] = urllib.request.urlopen(asked, timeout=60).status
    finally:
        hub.send_signal(signal.SIGTERM)
        _, errors = hub.communicate(timeout=60)
    assert answers == {"operator": 200, "engineer": 200}
    assert not (tmp_path / "labelled").exists()
    assert "Traceback" not in errors
