"""What all tests have in common."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _boxes_of_the_baseline() -> None:
    """Tests that do not say which engine answers get the one that needs no model, also in processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELER_ENGINE", "body_prior")
        yield
