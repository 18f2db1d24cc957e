"""What all tests share: the switch that accepts a new reference."""


def pytest_addoption(parser):
    parser.addoption("--accept", action="store_true", help="write the reference of the recorded shift anew")
