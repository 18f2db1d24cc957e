"""What all tests share: one thread of computing for each of several workers, the switch that accepts new references."""

import os

# Workers whose threads wait for one another by spinning cost each other many times their work. Read when torch and
# NumPy are loaded, and by the commands that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where a test asks for more threads after all


def pytest_addoption(parser):
    parser.addoption(
        "--accept",
        action="store_true",
        help="write anew what is kept: the recorded shift's reference, the dashboard's screenshot",
    )
