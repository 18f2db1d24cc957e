"""What a later stage costs to send, by its heads and by adapters: both trained, exported and published by the commands.

    python -m bench.adapter_stage --out adapters          # some minutes; prints a Markdown table

The demo's simulated line, our own compact encoders, whole files with their cards. A first stage is learned from product
a and published; of product b one stage moves heads, others adapters of each rank. A delta is what `lineside deploy
publish` put beside the new encoder for devices that have the first; the shares are of the new encoder in fp32. What
was cut goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.night import FIRST_S, LINE, NEW_S, call, record
from demo.plan import stage_file, write
from lineside.files import sha256

WAYS = {
    "heads": 'move = "head"',
    **{f"adapters of rank {rank}": f'move = "adapters"\nrank = {rank}' for rank in (1, 2, 4)},
}
PRECISIONS = ("fp32", "fp16", "int8")
HEADS = ("later stage", "modality", "gates", "recall of b", "precision", "file, KB", "delta, KB", "of fp32")


def main() -> None:
    """Train, export and publish every way in a plant of its own, and print the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--out", type=Path, default=Path("adapters"), help="Folder of recordings and stages.")
    folder = asked.parse_args().out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, seconds, product in (("a.mcap", FIRST_S, "a"), ("b.mcap", NEW_S, "b")):
        if not (folder / name).exists():
            record(folder, name, seconds, product)
    learn(folder, 1, "a.mcap", FIRST_S, "stages/1", 'move = "adapters"')  # keeps what later stages protect layers by
    first = export(folder, "stages/1", {})
    print(f"| {' | '.join(HEADS)} |\n|---|---|---|" + "---|" * (len(HEADS) - 3))
    for number, (way, encoders) in enumerate(WAYS.items(), 2):
        told = learn(folder, 2, "b.mcap", NEW_S, f"stages/{number}", encoders)
        second = export(folder, f"stages/{number}", first)
        for row in rows(folder / f"plant-{number}", first, second):
            print("| " + " | ".join([way, row[0], *judged(told), *row[1:]]) + " |", flush=True)


def learn(folder: Path, stage: int, recording: str, seconds: float, out: str, encoders: str) -> dict[str, Any]:
    """One stage of the demo's plan, but for its folder and what of its encoders moves."""
    text = stage_file(stage, LINE, recording, 0.0, seconds).replace(f'"stages/{stage}"', f'"{out}"')
    plan = write(folder / f"{out.replace('/', '-')}.toml", f"{text}\n[encoders]\n{encoders}\n")
    return call("train", "stage", str(plan))


def export(folder: Path, stage: str, older: Mapping[tuple[str, str], Path]) -> dict[tuple[str, str], Path]:
    """A stage's encoder files by modality and precision, INT8 with the scales of the older ones."""
    likes = [word for (_, precision), path in older.items() if precision == "int8" for word in ("--like", str(path))]
    built = call("export", "build", str(folder / stage), "--out", str(folder / f"{stage}-files"), *likes)
    return {(each["modality"], each["precision"]): Path(each["file"]) for each in built["files"]}


def rows(
    plant: Path, first: Mapping[tuple[str, str], Path], second: Mapping[tuple[str, str], Path]
) -> list[tuple[str, ...]]:
    """Publish both versions, and weigh the deltas that this made."""
    call("deploy", "init", str(plant), "--site", "bench", "--device", "edge-1", "--mqtt-port", "1")
    for files in (first, second):
        call("deploy", "publish", "--config", str(plant / "plant.toml"), *map(str, files.values()))
    made = []
    for modality in LINE.sensors.values():
        whole = second[modality, "fp32"].stat().st_size
        for precision in PRECISIONS:
            base = sha256(first[modality, precision].read_bytes())[:16]
            found = list(plant.rglob(f"*.from-{base}.delta"))
            size = found[0].stat().st_size if found else 0
            told = (f"{size / 1000:.1f}", f"{size / whole:.2%}") if found else ("not worth one", "")
            size_kb = f"{second[modality, precision].stat().st_size / 1000:.0f}"
            made.append((modality, precision, size_kb, *told))
    return made


def judged(told: Mapping[str, Any]) -> tuple[str, str]:
    """Whether the gates let a stage through, and mean recall@1 among few of held-out moments."""
    found = [each["recall_1_few"] for each in told["retrieval"]]
    return "passed" if told["passed"] else "failed", f"{sum(found) / len(found):.2f}"


if __name__ == "__main__":
    main()
