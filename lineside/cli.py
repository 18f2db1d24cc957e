"""The `lineside` command: finds each part's subcommands through entry points, and tells errors in one line."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import typer

from lineside import __version__
from lineside.errors import LinesideError

ABOUT = {
    "edge": "Beside the line: check, run, doctor, record, replay, commission, install, bench.",
    "train": "Learn encoders stage by stage from recordings.",
    "export": "Turn a trained stage into verified ONNX bundles.",
    "deploy": "Sign, publish, roll out and take back releases.",
    "hub": "Broker, store and line dashboard.",
}


def guarded(command: Callable[[], None]) -> None:
    """Run a command; an error of ours becomes one line on stderr and the exit code of its kind."""
    try:
        command()
    except LinesideError as error:
        print(f"lineside: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def until_told() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set: how a command that runs for ever is ended in order."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def tell(text: str) -> None:
    """Show how far long work has come, on one line of a terminal's stderr; nothing where no person looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Load only the part that was asked for: `lineside edge --help` must not wait for torch."""
    app = typer.Typer(
        help="Edge deployment of factory sensor fusion.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_version)
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    for part in sorted(entry_points(group="lineside.parts"), key=lambda part: list(ABOUT).index(part.name)):
        sub = _load(part) if part.name == asked else typer.Typer()
        app.add_typer(sub, name=part.name, help=ABOUT[part.name], no_args_is_help=True)
    guarded(lambda: app(standalone_mode=True))


def _load(part: EntryPoint) -> typer.Typer:
    try:
        app: typer.Typer = part.load()
    except ModuleNotFoundError as error:
        print(
            f"lineside: {part.name}: needs the Python module {error.name!r}; "
            f"install lineside[{ {'train': 'trainer', 'edge': 'edge-cpu'}.get(part.name, part.name) }]",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    return app


def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        typer.echo(f"lineside {__version__}")
        raise typer.Exit
