"""`lineside hub labels`: what people said of alarms, and the recordings that show it."""

from __future__ import annotations

import functools
import json
from typing import Annotated

import msgspec
import typer

from hub.people import PLANT, Json, PlantFile
from hub.store import Store, database_url
from lineside import config as toml
from lineside.plant import PlantConfig


def labels(
    config: PlantFile = PLANT,
    renew: Annotated[bool, typer.Option("--renew", help="Write the recordings with their labels anew.")] = False,
    json_: Json = False,
) -> None:
    """What people said of alarms, and which recordings show it: the labelled set that training reads.

    Example: lineside hub labels --config plant.toml

    With --renew it is written anew, as where its folder was lost: from the recordings that the hub still has.
    """
    from hub.evidence.room import found
    from hub.labelled import LabelledSet
    from hub.labels import Labels

    plant, base = toml.load(config, PlantConfig), config.resolve().parent
    store, folder = Store(database_url(plant.hub.database, base)), base / plant.hub.labelled
    try:
        here = functools.partial(found, base / plant.state / "evidence")
        labelled = LabelledSet(folder, Labels(store.engine), store.alarm, here)
        if renew:
            labelled.renew_all()
        rows = labelled.rows()
    finally:
        store.close()
    if json_:
        print(json.dumps({"folder": str(folder), "labels": [msgspec.to_builtins(row) for row in rows]}))
        return
    for row in rows:
        word = f"real: {row.kind}" if row.real else "not real"
        print(f"{row.key}  {word}  by {row.who}  {row.recording or 'no recording at the hub'}")
    print(f"{len(rows)} labels, {sum(bool(row.recording) for row in rows)} with a recording in {folder}")
