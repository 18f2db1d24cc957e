"""What all tests share: how threads wait and how many a worker has, the switch that accepts new references."""

import os

# Threads that wait for one another by spinning cost each other many times their work on a machine that does anything
# else, and so do more threads than cores. Read when torch and NumPy are loaded, and by the commands that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--accept",
        action="store_true",
        help="write anew what is kept: the recorded shift's reference, the pages' screenshots",
    )
