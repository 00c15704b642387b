"""The environment of the annotation tools, which `make test-exchange` builds; without it these tests are skipped."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-exchange"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (ENVIRONMENT / ".installed").exists():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(
                    pytest.mark.skip(reason="the tools' environment is absent: make test-exchange builds it")
                )


@pytest.fixture(scope="session")
def tools_python() -> Path:
    return ENVIRONMENT / "bin" / "python"
