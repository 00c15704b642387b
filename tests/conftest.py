"""What all tests have in common."""

import pytest

from tests.object_store import moto, proxy  # noqa: F401  (fixtures)


@pytest.fixture(scope="session", autouse=True)
def _same_environment_everywhere() -> None:
    """Tests that do not say which engine answers get the one that needs no model, also in processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELER_ENGINE", "body_prior")
        patch.delenv("DGREID_CALLED_AS", raising=False)  # set when make runs the tests
        yield
