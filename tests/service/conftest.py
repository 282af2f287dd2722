"""One server for all tests that only ask; a test that changes what is served starts its own."""

from collections.abc import Generator

import pytest
from serving import Running, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running
