"""What all tests share: the switch that accepts new references."""


def pytest_addoption(parser):
    parser.addoption(
        "--accept",
        action="store_true",
        help="write anew what is kept: the recorded shift's reference, the dashboard's screenshot",
    )
