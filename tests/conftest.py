"""What runs a whole series starts first, so that the two processes of `make test` end together."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("series") is None)
