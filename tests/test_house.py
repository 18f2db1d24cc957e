"""The house itself: names, imports, commands."""

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"lineside", "edge", "trainer", "export", "deploy", "hub", "demo"}


def test_only_our_folders_are_packages():
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == PACKAGES


@pytest.mark.slow
def test_our_names_belong_to_our_distribution_alone():
    owners = packages_distributions()
    for package in PACKAGES - {"demo"}:
        assert set(owners.get(package, ["lineside"])) == {"lineside"}


@pytest.mark.slow
def test_a_wheel_has_all_that_the_parts_read(tmp_path):
    """Migrations, the Grafana dashboard, styles and scripts of the pages; units, which lie beside the parts here."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for part in PACKAGES - {"demo"}:
        files = (path for path in (ROOT / part).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        assert {str(path.relative_to(ROOT)) for path in files} <= inside
    units = {path.name for path in (ROOT / "systemd").iterdir() if path.suffix in (".service", ".timer")}
    assert {f"lineside/systemd/{name}" for name in units} <= inside


@pytest.mark.slow
@pytest.mark.parametrize("part", ["edge", "train", "export", "deploy", "hub"])
def test_every_part_has_commands_with_help_and_does_not_wait_for_torch(part):
    code = (
        f"import sys\nsys.argv = ['lineside', {part!r}, '--help']\nfrom lineside.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_an_error_is_one_line_with_its_exit_code(tmp_path):
    command = [sys.executable, "-m", "lineside", "edge", "check", "--config", str(tmp_path / "no.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("lineside: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "give the path of a TOML file" in done.stderr


def test_the_version_is_told():
    done = subprocess.run([sys.executable, "-m", "lineside", "--version"], capture_output=True, text=True, check=True)
    from lineside import __version__

    assert done.stdout.strip() == f"lineside {__version__}"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_every_source_file_begins_by_saying_what_it_is():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert path.read_text().startswith('"""'), path


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "files").glob("*.toml")), ids=lambda path: path.name)
def test_the_files_in_the_docs_are_valid(path):
    from edge.config import DeviceConfig
    from hub.messenger import Targets
    from lineside.config import load
    from trainer.adapt_plan import AdaptPlan, RegisterPlan
    from trainer.attach_plan import AttachPlan
    from trainer.night_plan import NightPlan, stage_plan
    from trainer.plan import Plan

    if path.stem == "nightly-stage":  # a plan but for what each night says itself
        assert "[[recordings]]" in stage_plan(path, Path("stages/2"), Path("stages/1"), ["new.mcap"])
        return
    kinds = {"device": DeviceConfig, "register": RegisterPlan, "adapt": AdaptPlan, "attach": AttachPlan}
    kinds |= {"stage": Plan, "nightly": NightPlan, "notify": Targets}
    assert load(path, kinds[path.stem.partition("-")[0]])


def test_the_faults_of_panel_and_demo_are_those_that_the_agent_knows():
    from demo.steps import FAULTS as demonstrated
    from edge.faults import FAULTS as known
    from hub.dashboard.controls import FAULTS as offered

    told = {(fault.kind, fault.modality) for fault in offered} | {
        (kind, modality) for kind, _, modality in demonstrated
    }
    assert told <= {(kind, modality) for kind, fault in known.items() for modality in fault.effects}
