"""Our fetcher and python-tuf's client as the command that the tuf-conformance suite drives (its CLIENT-CLI.md).

git clone https://github.com/theupdateframework/tuf-conformance
LINESIDE_TUF_CONFORMANCE=tuf-conformance pytest tests/test_conformance.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tuf.ngclient import Updater

from edge.fetcher import Fetcher
from edge.web import Web
from lineside.clock import SystemClock


def main() -> None:
    words = argparse.ArgumentParser()
    for name in ("metadata-dir", "metadata-url", "target-dir", "target-base-url"):
        words.add_argument(f"--{name}", default="")
    words.add_argument("--target-name", action="append", default=[])
    words.add_argument("command", choices=["init", "refresh", "download"])
    words.add_argument("root", nargs="?", type=Path)
    asked = words.parse_args()
    folder = Path(asked.metadata_dir)
    if asked.command == "init":
        (folder / "root.json").write_bytes(asked.root.read_bytes())
        return
    client = Updater(
        metadata_dir=str(folder),
        metadata_base_url=asked.metadata_url,
        target_dir=asked.target_dir or None,
        target_base_url=asked.target_base_url or None,
        fetcher=Fetcher(Web(), folder / "partial", SystemClock()),
        bootstrap=None,
    )
    if asked.command == "refresh":
        client.refresh()
    for name in asked.target_name:
        info = client.get_targetinfo(name)
        if info is None:
            sys.exit(f"{name} is not in the repository")
        if client.find_cached_target(info) is None:
            client.download_target(info)


if __name__ == "__main__":
    main()
