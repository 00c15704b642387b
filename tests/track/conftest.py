"""The environments of the trackers, which `make test-track` builds; without them these tests are skipped."""

from pathlib import Path

import pytest

from tests.pipelines.conftest import pocket_run, workspace

__all__ = ["pocket_run", "workspace"]  # fixtures
HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-track"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (ENVIRONMENT / ".installed").exists():
        for item in items:
            if HERE in item.path.parents:
                reason = "the trackers' environment is absent: make test-track builds it"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tools_python() -> Path:
    return ENVIRONMENT / "bin" / "python"


@pytest.fixture(scope="session")
def reid_python() -> Path:
    """Of the environment with roboflow's package, whose import name is ours."""
    return ENVIRONMENT.with_name(".venv-track-reid") / "bin" / "python"
