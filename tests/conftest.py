"""What all tests share: how threads wait, how many a worker has, the switch that accepts new references, databases."""

import os

import hypothesis
import pytest

# Threads that wait for one another by spinning cost each other many times their work on a machine that does anything
# else, and so do more threads than cores. Read when torch and NumPy are loaded, and by the commands that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A machine that is busy for a moment is no failure of a property. CI looks at the same examples each time; whoever
# works on it finds new ones.
hypothesis.settings.register_profile(
    "lineside",
    deadline=None,
    derandomize="LINESIDE_CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("lineside")


def pytest_addoption(parser):
    parser.addoption(
        "--accept",
        action="store_true",
        help="write anew what is kept: the recorded shift's reference, the pages' screenshots",
    )


@pytest.fixture(scope="module")
def postgres():
    """The address of a server of this module's own."""
    from tests import line_postgres

    with line_postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request, tmp_path):
    """The URL of an empty database of each kind that the hub knows."""
    from hub.store import database_url  # not above: the edge's environment has no hub
    from tests import line_postgres

    text = "sqlite:///hub.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    yield database_url(text, tmp_path)
    if request.param == "postgresql":
        line_postgres.empty(text)


@pytest.fixture
def store(database):
    """The hub's store on it."""
    from hub.store import Store

    opened = Store(database)
    assert sum(opened.counts().values()) == 0
    yield opened
    opened.close()
