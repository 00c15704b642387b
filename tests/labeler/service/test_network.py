"""Service and annotator over a real socket."""

import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn
from pydantic import SecretStr
from typer.testing import CliRunner

from labeler.__main__ import cli
from labeler.annotation.annotate import AnnotateOptions, annotate
from labeler.engines.body_prior import BodyPrior
from labeler.service.app import create_app
from labeler.settings import load_settings
from shared.labels import label_shards, read_labels


@pytest.fixture
def address():
    config = uvicorn.Config(
        create_app(load_settings(api_key="secret", max_body_bytes=100_000), BodyPrior()), port=0, log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_remote_run_equals_an_embedded_one(address: str, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(30)
    options = AnnotateOptions(connections=4, batch_images=4)
    annotate(manifest, root, "toy", tmp_path / "a", url=address, api_key=SecretStr("secret"), options=options)
    annotate(manifest, root, "toy", tmp_path / "b", options=options)

    def content(folder: Path):
        rows = [row.model_dump(exclude={"created_at"}) for row in read_labels(label_shards(folder))]
        return sorted(rows, key=lambda row: (row["path"], row["part"]))

    assert content(tmp_path / "a") == content(tmp_path / "b") and len(content(tmp_path / "a")) == 90


def test_limits_hold_on_the_wire(address: str) -> None:
    with httpx.Client(base_url=address, headers={"authorization": "Bearer secret"}) as client:
        too_large = b'{"images": ["' + b"A" * 200_000 + b'"]}'
        headers = {"content-type": "application/json"}
        assert client.post("/v1/ground", content=too_large, headers=headers).status_code == 413
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/models", headers={"authorization": "Bearer no"}).status_code == 401


def test_settings_are_shown_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELER_API_KEY", "hunter2")
    result = CliRunner().invoke(cli, ["settings"])
    assert result.exit_code == 0 and "LABELER_PORT=8300  (default)" in result.output
    assert "hunter2" not in result.output and "LABELER_API_KEY=**********  (set)" in result.output
