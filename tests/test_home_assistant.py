"""Home Assistant is told of the line over a real broker: announced, kept up to date, taken away."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import paho.mqtt.client as paho
import pytest
from sqlalchemy.exc import OperationalError

from hub import home_assistant, watch
from hub.alarms import Event
from hub.announcer import Announcer
from hub.home_assistant import config_topic, hub_topic, state_topic
from hub.ingest import Presence
from lineside import config as toml
from lineside import mqtt, topics
from lineside.clock import NS
from lineside.errors import ConfigError
from lineside.messages import Contribution, Health, SensorHealth
from lineside.plant import HOME_ASSISTANT, HubSettings, PlantConfig
from tests.line_broker import LineBroker, wait
from tests.line_device import SITE
from tests.test_store import alarm, health, score

NOW_NS = 1_000_000 * NS
SENSORS = {
    "cam0": SensorHealth(modality="camera", windows=9, dropped_samples=0, flags=["black"], problem="black; clean it"),
    "mic0": SensorHealth(modality="microphone", windows=9, dropped_samples=0, flags=[], problem=""),
}
# What Home Assistant knows (its developers' table of MQTT options); a key that it does not know refuses the device.
DEVICE_KEYS = {"identifiers", "name", "manufacturer", "model", "sw_version"}
ROOT_KEYS = {"device", "origin", "availability", "availability_mode", "state_topic", "qos", "components"}
OPTIONS = {"device_class", "unit_of_measurement", "state_class", "options", "suggested_display_precision"}
COMPONENT_KEYS = {"platform", "unique_id", "name", "value_template", "expire_after"} | OPTIONS


AWAY = OperationalError("SELECT 1", {}, OSError("database is locked"))


def well(**change: Any) -> Health:
    shares = {"cam0": Contribution(0.75, 1.0, 0.5, 1.0)}
    found = msgspec.structs.replace(health(5.0), time_ns=NOW_NS, sensors=SENSORS, contributions=shares)
    return msgspec.structs.replace(found, **change)


def line(said: str = "online", told: Health | None = None, device: str = "press-3") -> watch.Line:
    """One device with an open anomaly and an open alarm of a sensor."""
    heard = msgspec.structs.replace(score(0), device=device, start_ns=NOW_NS - NS, end_ns=NOW_NS, evidence=4.5)
    raised = msgspec.structs.replace(alarm("a", "raised", 3), device=device)
    events = [Event(raised, "ACTIVE_UNACK"), Event(msgspec.structs.replace(raised, kind="sensor"), "CLEARED_ACK")]
    station = watch.station(
        NOW_NS,
        device,
        presence=Presence(said, NOW_NS),
        health=told or well(),
        last=watch.Arrival(NOW_NS, heard),
        events=events,
    )
    return watch.Line(NOW_NS, True, (station,), tuple(events))


def values(now: watch.Line) -> dict[str, Any]:
    return home_assistant.state(now.stations[0], now.now_ns)


def test_an_announcement_says_only_what_home_assistant_knows() -> None:
    made = home_assistant.discovery(SITE, line().stations[0])
    assert set(made) == ROOT_KEYS
    assert set(made["device"]) == DEVICE_KEYS
    assert made["origin"]["name"] == "lineside"
    assert [each["topic"] for each in made["availability"]] == [
        topics.name(SITE, "press-3", "status"),
        hub_topic(SITE),
    ]
    assert made["components"]["cam0_problem"]["device_class"] == "problem"
    assert len({each["unique_id"] for each in made["components"].values()}) == len(made["components"])
    for each in made["components"].values():
        assert set(each) <= COMPONENT_KEYS
        assert each["platform"] in ("sensor", "binary_sensor")
        assert each["expire_after"] == 3 * home_assistant.REPEAT_S


def rendered(now: watch.Line) -> dict[str, str]:
    """Every entity as Home Assistant would read it: its template on the state."""
    components = home_assistant.discovery(SITE, now.stations[0])["components"]
    state = msgspec.json.decode(msgspec.json.encode(values(now)))
    return {key: jinja2.Template(each["value_template"]).render(value_json=state) for key, each in components.items()}


def test_every_entity_finds_its_value() -> None:
    assert rendered(line()) == {
        "word": "alarm",
        "anomaly": "ON",
        "drift": "OFF",
        "evidence": "4.5",
        "p_value": "0.5",
        "open_alarms": "1",
        "cam0_problem": "ON",
        "cam0_contribution": "75.0",
        "mic0_problem": "OFF",
        "mic0_contribution": "None",
    }


def test_what_is_not_live_is_unknown() -> None:
    found = rendered(line("offline"))
    assert (found.pop("word"), found.pop("open_alarms")) == ("offline", "1")
    assert set(found.values()) == {"None"}


@pytest.mark.parametrize(("word", "seen"), [("online", "online"), ("offline", "offline"), ("stopped", "offline")])
def test_a_device_is_available_while_it_says_so(word: str, seen: str) -> None:
    template = home_assistant.discovery(SITE, line().stations[0])["availability"][0]["value_template"]
    assert jinja2.Template(template).render(value=word) == seen


def test_a_name_that_could_be_a_template_is_left_out() -> None:
    told = well(sensors={"cam0": SENSORS["cam0"], "x'] }}{{ 1": SENSORS["mic0"]})
    components = home_assistant.discovery(SITE, line(told=told).stations[0])["components"]
    assert {key for key in components if key.endswith("_problem")} == {"cam0_problem"}


def test_a_value_that_stays_is_repeated_before_it_expires() -> None:
    same = {home_assistant.state(line().stations[0], NOW_NS + second * NS)["at"] for second in range(5)}
    later = home_assistant.state(line().stations[0], NOW_NS + 5 * NS)["at"]
    assert len(same) == 1
    assert later not in same


class Listener:
    """Home Assistant's own connection."""

    def __init__(self, broker: LineBroker, user: str = HOME_ASSISTANT, *filters: str) -> None:
        self.stands: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.refused: dict[int, bool] = {}
        config = broker.plant.connection(user)
        self.client = mqtt.client(config, f"test-{user}", broker.folder)
        self.client.on_message = self._on_message
        self.client.on_publish = lambda _c, _d, mid, reason, _p: self.refused.update({mid: reason.is_failure})
        ready = threading.Event()
        wanted = filters or ("homeassistant/#", "lineside/#", f"lineside/v1/{SITE}/+/status")
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_connect = lambda client, *_: client.subscribe([(each, 1) for each in wanted])
        mqtt.connect(self.client, config)
        assert ready.wait(60)

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self.seen.append(message.topic)
        if message.payload:
            self.stands[message.topic] = message.payload
        else:
            self.stands.pop(message.topic, None)

    def may_write(self, topic: str) -> bool:
        sent = self.client.publish(topic, b"x", qos=1)
        assert wait(lambda: sent.mid in self.refused)
        return not self.refused[sent.mid]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LineBroker]:
    made = LineBroker(tmp_path, "press-3", "press-4")
    made.stop()
    (tmp_path / "secrets" / f"{HOME_ASSISTANT}.password").write_text("secret of home assistant")
    made.plant = switched(made.plant, on=True)
    made.start()
    yield made
    made.stop()


def switched(plant: PlantConfig, *, on: bool) -> PlantConfig:
    return msgspec.structs.replace(plant, hub=HubSettings(home_assistant=on))


@pytest.mark.slow
def test_announced_kept_up_to_date_and_taken_away(broker: LineBroker) -> None:
    listener = Listener(broker)
    now = line()
    announcer = Announcer(broker.plant, broker.folder, lambda: now)
    announcer.start()
    expected = {config_topic(SITE, "press-3"), state_topic(SITE, "press-3"), hub_topic(SITE)}
    assert wait(lambda: set(listener.stands) == expected)
    now = line(told=well(sensors={"cam0": SENSORS["cam0"]}))
    assert wait(lambda: b"mic0" not in listener.stands[config_topic(SITE, "press-3")])
    heard = len(listener.seen)
    listener.client.publish(home_assistant.BIRTH, "online", qos=1)  # Home Assistant has started anew
    assert wait(lambda: config_topic(SITE, "press-3") in listener.seen[heard:])
    now = line(device="press-4")  # press-3 has left the line
    assert wait(lambda: config_topic(SITE, "press-4") in listener.stands)
    assert wait(lambda: config_topic(SITE, "press-3") not in listener.stands)
    announcer.stop()
    assert wait(lambda: listener.stands[hub_topic(SITE)] == b"offline")
    assert config_topic(SITE, "press-4") in listener.stands  # a hub that starts anew is the same hub

    off = Announcer(switched(broker.plant, on=False), broker.folder, lambda: now)
    off.start()
    assert wait(lambda: not {topic for topic in listener.stands if topic.startswith("homeassistant/")})
    off.stop()
    assert not (broker.folder / broker.plant.state / "home_assistant.json").exists()
    listener.close()


def test_a_store_that_is_away_is_told_once_each_time(broker: LineBroker, caplog: pytest.LogCaptureFixture) -> None:
    answers = itertools.chain([AWAY, AWAY, AWAY, line(), AWAY], itertools.repeat(line()))
    listener = Listener(broker)

    def look() -> watch.Line:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    announcer = Announcer(broker.plant, broker.folder, look)
    announcer.start()
    assert wait(lambda: config_topic(SITE, "press-3") in listener.stands)
    assert wait(lambda: caplog.text.count("hears nothing until the store can be read again (database is locked)") == 2)
    announcer.stop()
    listener.close()
    assert "SELECT" not in caplog.text


def test_retained_for_whoever_comes_later(broker: LineBroker) -> None:
    announcer = Announcer(broker.plant, broker.folder, line)
    announcer.start()
    first = Listener(broker)
    assert wait(lambda: len(first.stands) == 3)
    first.close()
    late = Listener(broker)
    assert wait(lambda: len(late.stands) == 3)
    announcer.stop()
    late.close()


def test_home_assistant_hears_its_own_and_writes_only_its_birth(broker: LineBroker) -> None:
    listener = Listener(broker)
    device = Listener(broker, "press-3", "nothing")
    device.client.publish(topics.name(SITE, "press-3", "score"), b"{}", qos=1)
    device.client.publish(topics.name(SITE, "press-3", "status"), "online", qos=1, retain=True)
    assert wait(lambda: topics.name(SITE, "press-3", "status") in listener.stands)
    assert listener.may_write(home_assistant.BIRTH)
    for topic in (
        topics.name(SITE, "press-3", "cmd", "rollback", "1"),
        topics.name(SITE, "press-3", "status"),
        config_topic(SITE, "press-3"),
        state_topic(SITE, "press-3"),
        topics.name(SITE, "press-3", "ack"),
    ):
        assert not listener.may_write(topic), topic
    assert not device.may_write(config_topic(SITE, "press-3"))
    assert not any(topic.endswith("/score") for topic in listener.seen)
    listener.close()
    device.close()


def test_off_and_never_on_nothing_is_begun(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "hub.password").write_text("x")
    announcer = Announcer(PlantConfig(site=SITE, devices=[]), tmp_path, line)
    announcer.start()
    assert not announcer._thread.is_alive()
    announcer.stop()


@pytest.mark.slow
def test_a_damaged_note_of_what_was_announced_stops_no_hub(
    broker: LineBroker, caplog: pytest.LogCaptureFixture
) -> None:
    note = broker.folder / broker.plant.state / "home_assistant.json"
    note.write_text('["homeassistant/dev')
    announcer = Announcer(broker.plant, broker.folder, line)
    assert "home_assistant.json is not readable" in caplog.text
    announcer.start()
    listener = Listener(broker)
    assert wait(lambda: config_topic(SITE, "press-3") in listener.stands)
    announcer.stop()
    assert config_topic(SITE, "press-3") in note.read_text()
    listener.close()


def test_the_plant_file() -> None:
    text = 'site = "line1"\ndevices = ["press-3"]\n'
    assert HOME_ASSISTANT not in toml.loads(text, PlantConfig).users
    assert HOME_ASSISTANT in toml.loads(text + "[hub]\nhome_assistant = true\n", PlantConfig).users
    with pytest.raises(ConfigError, match="'homeassistant' is a broker user"):
        toml.loads('site = "line1"\ndevices = ["homeassistant"]\n', PlantConfig)
