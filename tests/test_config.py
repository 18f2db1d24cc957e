"""Configuration files: what is refused, and whether the message mends it."""

import pytest

from edge.config import DeviceConfig
from lineside.config import load, loads
from lineside.errors import ConfigError
from lineside.plant import PlantConfig

DEVICE = """
[device]
id = "edge-1"
site = "line1"
station = "press"

[[sensors]]
name = "cam0"
modality = "camera"
source = "camera"
device = "0"

[[sensors]]
name = "mic0"
modality = "microphone"
source = "microphone"
"""


def refusal(text, kind=DeviceConfig):
    with pytest.raises(ConfigError) as caught:
        loads(text, kind, "device.toml")
    return str(caught.value)


def test_a_good_file_is_read_with_its_defaults():
    config = loads(DEVICE, DeviceConfig)
    assert [sensor.name for sensor in config.sensors] == ["cam0", "mic0"]
    assert (config.windows.length_s, config.alarm.p_limit) == (1.0, 0.01)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'station = "press"',
            'staton = "press"',
            "device.toml:5: unknown key 'device.staton'; did you mean 'station'?",
        ),
        ('device = "0"', 'devise = "0"', "device.toml:11: unknown key 'sensors[0].devise'; did you mean 'device'?"),
        (
            'device = "0"',
            "device = 0",
            "device.toml:11: sensors[0].device: expected `str`, got `int`; change the value",
        ),
        ('id = "edge-1"', "", "device.toml: missing key 'device.id'; add it"),
        (
            'source = "microphone"',
            'source = "mirophone"',
            "enum value 'mirophone'; valid are camera, microphone, series",
        ),
        ('source = "microphone"', 'source = "camera"', "gives modality 'camera', not 'microphone'"),
        ('name = "mic0"', 'name = "cam0"', "two sensors have the same name"),
        ('id = "edge-1"', 'id = "edge/1"', "is no name for a topic"),
        ("[device]", "[device", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused_with_place_reason_and_mend(old, new, told):
    assert old in DEVICE
    assert told in refusal(DEVICE.replace(old, new, 1))


def test_the_same_key_in_two_tables_is_found_in_the_right_one():
    text = DEVICE + "\n[windows]\nhop_s = 0.5\nlength_s = 'one'\n"
    assert "device.toml:20: windows.length_s: expected `float`, got `str`" in refusal(text)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("[windows]\nlength_s = 1.0\nhop_s = 2.0", "hop_s must be above 0 and at most length_s"),
        ("[alarm]\nraise_count = 9\nof = 6", "raise_count must be at least 1 and at most `of`"),
        ("[broker]\ncert_file = 'x'", "cert_file and key_file belong together"),
    ],
)
def test_impossible_combinations_are_refused(table, told):
    assert told in refusal(f"{DEVICE}\n{table}\n")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read"):
        load(tmp_path / "nothing.toml", DeviceConfig)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('site = "l"\ndevices = ["hub"]', "broker user of the plant itself"),
        ('site = "l"\ndevices = []\n[hub]\nhost = "0.0.0.0"', "needs login = true"),
        ('site = "l"\ndevices = []\n[broker]\nlisten = "10.0.0.1"', "needs cert_file and key_file"),
        ('site = "l"\ndevices = []\nmodalities = ["smell"]', "unknown modality 'smell'"),
    ],
)
def test_a_plant_stays_on_loopback_and_has_proper_names(text, told):
    assert told in refusal(text, PlantConfig)
