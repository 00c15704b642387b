"""What an operator has of a run that lasts: its log, its metrics, an estimate before it and a message after it."""

import json
import logging
import re
import socket
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from labeler.annotation import notify as notify_module
from labeler.annotation import run_log as run_log_module
from labeler.annotation.annotate import AnnotateOptions, Summary, annotate_with
from labeler.annotation.client import InProcessClient
from labeler.annotation.estimate import _rate, estimate
from labeler.annotation.metrics import AnnotatorMetrics
from labeler.annotation.notify import check_webhook, message, notify
from labeler.annotation.run_log import event, log_path, run_log
from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.service.metrics import Metrics
from labeler.settings import load_settings
from shared.errors import ConfigError, DgreidError
from shared.labels import label_shards
from shared.schemas import ImageStatus

ROOT = Path(__file__).parents[3]
QUICK = AnnotateOptions(connections=2, batch_images=4)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def served_by(stand_in, **overrides):
    settings = load_settings(engine="vllm_server", model=stand_in.model, **overrides)
    return InProcessClient(settings, VllmServer.from_settings(settings, stand_in.transport), connections=2)


async def test_the_log_tells_the_run_and_nothing_of_answers(
    make_dataset, stand_in, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("labeler.annotation.annotate.PROGRESS_S", 0.0)
    root, manifest = make_dataset(12)
    manifest[3] = manifest[3].model_copy(update={"status": ImageStatus.UNREADABLE, "reason": "cut"})
    server = stand_in()
    async with served_by(server, max_attempts=1) as client:
        await client.wait_ready(5)
        server.script = ["refusal"]
        summary = await annotate_with(client, manifest, root, "toy", tmp_path, "r", QUICK)
        server.always = "refusal"
        with pytest.raises(DgreidError, match="failed"):
            await annotate_with(client, manifest, root, "toy", tmp_path, "r2", QUICK)
    path = log_path(tmp_path, "r", "toy")
    told = lines(path)
    assert [one["event"] for one in told if one["event"] in ("start", "end")] == ["start", "end"]
    assert told[0]["to_do"] == 12 and told[0]["model"] == server.model
    end = told[-1]
    assert (end["done_now"], end["failed"]) == (12, {"refused": 1, "unreadable": 1})
    assert (end["prompt_tokens"], end["shards"]) == (summary.prompt_tokens, len(label_shards(tmp_path, label_run="r")))
    failed = {one["path"]: one["status"] for one in told if one["event"] == "image_failed"}
    assert sorted(failed.values()) == ["refused", "unreadable"] and failed["0003.png"] == "unreadable"
    assert any(one["event"] == "progress" and "seconds_left" in one for one in told)
    assert "sorry" not in path.read_text()
    assert lines(log_path(tmp_path, "r2", "toy"))[-1]["event"] == "failed"
    assert not logging.getLogger("labeler").handlers and not logging.getLogger("shared").handlers


def test_the_log_is_rotated_and_its_size_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log_module, "FILE_BYTES", 2000)
    path = tmp_path / "_logs" / "toy.jsonl"
    for session in range(2):
        with run_log(path):
            for number in range(200):
                event("image_failed", path=f"\n{session}-{number}.jpg")
            logging.getLogger("shared.files").warning("a disk is full")
    event("nobody listens")
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["toy.jsonl", *(f"toy.jsonl.{number}" for number in range(1, 6))]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert lines(path)[-1]["message"] == "a disk is full" and lines(files[1])[0]["event"] == "image_failed"


class Scraped(BodyPrior):
    """Reads the annotator's metrics while it answers the last image."""

    def __init__(self, url: str, total: int) -> None:
        super().__init__()
        self.url, self.left, self.text = url, total, ""

    async def ground(self, image, parts, attempt):
        self.left -= 1
        if self.left == 0:
            async with httpx.AsyncClient(trust_env=False) as http:
                self.text = (await http.get(self.url)).text
        return await super().ground(image, parts, attempt)


async def test_metrics_are_served_while_a_run_lasts(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(20)
    port = free_port()
    engine = Scraped(f"http://127.0.0.1:{port}/metrics", 21)  # the calibration image, too
    options = AnnotateOptions(connections=1, batch_images=5, metrics=str(port))
    async with InProcessClient(load_settings(), engine, connections=1) as client:
        await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(engine.text)
        for sample in family.samples
    }
    assert found["labeler_annotator_images_total", "ok"] == 15 and found["labeler_annotator_images_remaining",] == 5
    assert found["labeler_annotator_info", "toy", "r"] == 1 and found["labeler_annotator_requests_in_flight",] == 1
    assert found["labeler_annotator_rows_waiting",] == 45
    assert found["labeler_images_total", "ok"] == 20, "of the engine in this process"
    with pytest.raises(httpx.ConnectError):
        httpx.get(engine.url, trust_env=False)
    for wrong in ("x", "99999999", "256.1.1.1:1"):
        with pytest.raises(ConfigError, match="no metrics at"), AnnotatorMetrics("d", "r").served(wrong):
            pass


async def test_the_dashboard_shows_metrics_that_exist(make_dataset, stand_in, tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "docker" / "grafana" / "dgreid.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    named = set(re.findall(r"labeler_\w+", asked))
    root, manifest = make_dataset(2)
    port, kept = free_port(), {}
    server = stand_in()
    async with served_by(server) as client:
        metrics = client.service_metrics
        assert isinstance(metrics, Metrics)
        metrics.requests.labels("GET", "/", "200").inc()
        metrics.seconds.labels("/").observe(1)

        class Kept(AnnotatorMetrics):
            def __init__(self, *arguments) -> None:
                super().__init__(*arguments)
                kept["registry"] = self.registry

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("labeler.annotation.annotate.AnnotatorMetrics", Kept)
            options = AnnotateOptions(connections=1, metrics=str(port))
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
    exist = {sample.name for family in kept["registry"].collect() for sample in family.samples}
    assert len(named) > 12 and named <= exist
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({(place["x"], place["y"]) for place in places}) == len(places)


async def test_an_estimate_counts_what_is_left_and_writes_nothing(make_dataset, stand_in, tmp_path: Path) -> None:
    root, manifest = make_dataset(30)
    server = stand_in()
    labels = tmp_path / "labels"
    async with served_by(server) as client:
        await annotate_with(client, manifest[:10], root, "toy", labels, "r", QUICK)
        manifest[29] = manifest[29].model_copy(update={"status": ImageStatus.UNREADABLE, "reason": "cut"})
        before = sorted(path.name for path in labels.rglob("*"))
        found = await estimate(client, manifest, root, "toy", labels, "r", QUICK, sample=6)
        asked = server.payloads[-6:]
        whole = await estimate(client, manifest, root, "toy", labels, "new", QUICK)
        nothing = await estimate(client, manifest[:10], root, "toy", labels, "r", QUICK)
    assert sorted(path.name for path in labels.rglob("*")) == before
    assert (found.done_before, found.remaining, found.unreadable, found.sample) == (10, 20, 1, 6)
    assert found.failed == 0 and len({str(payload) for payload in asked}) == 6
    assert found.completion_tokens == 10 and found.prompt_tokens > 57
    assert found.images_per_s and found.seconds == pytest.approx(19 / found.images_per_s)
    assert ("to do", "20") in found.table() and any("190 answer" in value for _, value in found.table())
    assert (whole.done_before, whole.remaining, whole.sample) == (0, 30, 29)
    assert (nothing.remaining, nothing.sample, nothing.images_per_s, nothing.seconds) == (0, 0, None, None)


def test_the_measured_rate_leaves_out_the_time_before_the_first_answers() -> None:
    assert _rate(0.0, [(60.0 + 0.5 * n, 16 * (n + 1)) for n in range(20)]) == pytest.approx(32)
    assert _rate(0.0, [(4.0, 16)]) == pytest.approx(4)
    assert _rate(0.0, []) is None


def test_a_message_holds_counts_and_our_own_words_only() -> None:
    summary = Summary("r", "toy", done_before=5, done_now=3, seconds=2.0)
    summary.failed["refused"] = 1
    told = message("toy", summary)
    assert (told["event"], told["images"], told["failed"], told["images_per_s"]) == ("finished", 8, {"refused": 1}, 1.5)
    summary.interrupted = True
    assert message("toy", summary)["event"] == "interrupted"
    quoted = DgreidError("the engine cannot be used: data:image/png;base64,SECRET", path="/home/anna.jpg", fix="x")
    told = json.dumps(message("toy", quoted)) + json.dumps(message("toy", ValueError("SECRET anna")))
    assert "the engine cannot be used" in told and "SECRET" not in told and "anna" not in told


@pytest.mark.parametrize(
    ("answers", "sent"), [([200], 1), ([500, 204], 2), (["cut", 429, 200], 3), ([404, 200], 1), ([503] * 9, 3)]
)
def test_a_webhook_is_tried_again_while_that_may_help(answers, sent, monkeypatch, caplog) -> None:
    monkeypatch.setattr(notify_module, "PAUSE_S", 0.0)
    received, script = [], iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        received.append(json.loads(request.content))
        match next(script):
            case "cut":
                raise httpx.ReadError("cut", request=request)
            case int(code):
                return httpx.Response(code)

    content = message("toy", Summary("r", "toy"))
    notify(SecretStr("https://hooks.example/T0/SECRET"), content, httpx.MockTransport(answer))
    assert received == [content] * sent
    failed = answers[sent - 1] >= 400
    assert ("hooks.example was not reached" in caplog.text) == failed and "SECRET" not in caplog.text


def test_a_webhook_that_is_no_address_is_refused_without_being_shown() -> None:
    for wrong in ("ftp://x/SECRET", "SECRET", "http://"):
        with pytest.raises(ConfigError, match="not an HTTP URL") as refused:
            check_webhook(SecretStr(wrong))
        assert "SECRET" not in str(refused.value)
    notify(None, {})
