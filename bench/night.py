"""A night of the demo's line: a first stage in use, a second product in the new recordings, and the report.

    python -m bench.night --out night          # some minutes; prints the report as Markdown

Everything is done by the product's own commands; no broker runs, so that devices cannot be asked what they have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo.plan import Line, device_file, stage_file, write

LINE = Line("simulation", {"cam0": "camera", "mic0": "microphone"})
FIRST_S, NEW_S, CERTIFY_S = 400.0, 150.0, 120.0
NIGHT = """\
plan = "stage.toml"
recordings = ["recordings"]
certify_on = "commissioning.mcap"
settled_min = 0
plant = "plant/plant.toml"
release = "publish"
precision = "fp32"

[minutes]
camera = 2.0
microphone = 2.0
"""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--out", type=Path, default=Path("night"), help="Folder of the line; made when not there.")
    folder = asked.parse_args().out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "plant" / "plant.toml").exists():
        begin(folder)
    began = time.monotonic()
    night = call("train", "nightly", "--config", str(folder / "nightly.toml"))
    print(Path(night["report"]).read_text().replace(f"{folder}/", ""))
    print(f"{time.monotonic() - began:.0f} s")


def begin(folder: Path) -> None:
    """Record the line, train its first stage by hand, and publish it; then record what is new."""
    record(folder, "first.mcap", FIRST_S)
    record(folder, "commissioning.mcap", CERTIFY_S, seed=3)
    record(folder, "recordings/product-b.mcap", NEW_S, product="b")
    first = stage_file(1, LINE, "first.mcap", 0.0, FIRST_S).replace('"stages/1"', '"nightly/stages/1"')
    call("train", "stage", str(write(folder / "stage-1.toml", first)))
    write(folder / "stage.toml", template())
    write(folder / "nightly.toml", NIGHT)
    built = call("export", "build", str(folder / "nightly/stages/1"), "--out", str(folder / "bundles"))
    call("deploy", "init", str(folder / "plant"), "--site", "demo", "--device", "edge-1", "--mqtt-port", "1")
    files = [each["file"] for each in built["files"]]
    call("deploy", "publish", "--config", str(folder / "plant/plant.toml"), *files)


def template() -> str:
    """The demo's second stage as a plan of nights: without what each night says itself."""
    text = stage_file(2, LINE, "", 0.0, NEW_S)
    kept = [line for line in text.split("[[recordings]]")[0].splitlines() if not line.startswith(("out", "parent"))]
    return "\n".join(kept) + "\n"


def record(folder: Path, name: str, seconds: float, product: str = "a", seed: int = 1) -> None:
    """Record the simulated line as fast as it goes."""
    config = write(folder / "device.toml", device_file(LINE, 1, 8080, product=product, seed=seed))
    words = ("--seconds", str(seconds), "--out", str(folder / name), "--fast")
    call("edge", "record", "--config", str(config), *words)


def call(*words: str) -> dict[str, Any]:
    """Run a command; give what it printed. Ends this program when it failed."""
    command = [sys.executable, "-m", "lineside", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode and words[0] != "train":
        raise SystemExit(done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
