"""The annotator: complete, unique, resumable; killed, interrupted and lied to."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from labeler.annotation.annotate import AnnotateOptions, annotate, annotate_with
from labeler.annotation.client import LabelerClient, ServiceError, embedded_client
from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.service.app import create_app
from labeler.settings import load_settings
from shared.errors import ConfigError, DataError, DgreidError
from shared.images import image_id_of
from shared.labels import connect, label_shards, read_labels, writer_lock
from shared.schemas import PARTS, ImageStatus, LabelStatus

QUICK = AnnotateOptions(connections=3, batch_images=4, shard_rows=30)


def rows_of(labels: Path):
    return read_labels(label_shards(labels))


def exactly_once(labels: Path, manifest) -> bool:
    counts = Counter((row.image_id, row.part) for row in rows_of(labels))
    return counts == {(row.image_id, part): 1 for row in manifest for part in PARTS}


@asynccontextmanager
async def stand_in_client(server, **overrides):
    settings = load_settings(engine="vllm_server", model=server.model, **{"max_attempts": 2, **overrides})
    engine = VllmServer.from_settings(settings, server.transport)
    async with embedded_client(settings, engine, connections=QUICK.connections) as client:
        yield client


def test_every_image_once_in_its_split_with_all_columns(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(25)
    summary = annotate(iter(manifest), root, "toy", tmp_path / "labels", options=QUICK)
    assert (summary.images, summary.done_now, summary.failed.total()) == (25, 25, 0)
    assert summary.label_run == "body_prior-ccp-medians" and summary.finished_at_attempt == {1: 25}
    assert exactly_once(tmp_path / "labels", manifest)
    splits = {row.image_id: row.split for row in manifest}
    for row in rows_of(tmp_path / "labels"):
        assert row.split == splits[row.image_id] and row.space == "fractions" and row.raw_box and row.attempts == 1
        assert 0 <= row.x_min < row.x_max <= row.width and 0 <= row.y_min < row.y_max <= row.height
    assert len(label_shards(tmp_path / "labels")) > 2


def test_the_second_session_has_nothing_to_do_and_new_images_are_added(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(12)
    annotate(manifest[:7], root, "toy", tmp_path / "labels", "r", options=QUICK)
    summary = annotate(manifest, root, "toy", tmp_path / "labels", "r", options=QUICK)
    assert (summary.done_before, summary.done_now) == (7, 5)
    shards = label_shards(tmp_path / "labels")
    assert annotate(manifest, root, "toy", tmp_path / "labels", "r", options=QUICK).done_now == 0
    assert label_shards(tmp_path / "labels") == shards
    assert exactly_once(tmp_path / "labels", manifest)


def test_the_same_bytes_twice_are_labelled_once(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(4)
    (root / "copy.png").write_bytes((root / manifest[0].path).read_bytes())
    copy = manifest[0].model_copy(update={"path": "copy.png", "split": "train"})
    summary = annotate([*manifest, copy], root, "toy", tmp_path / "labels", "r", options=QUICK)
    assert summary.images == 4 and exactly_once(tmp_path / "labels", manifest)


def test_unreadable_images_are_rows_and_are_never_sent(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(4)
    manifest[0] = manifest[0].model_copy(update={"status": ImageStatus.UNREADABLE, "reason": "truncated"})
    (root / manifest[1].path).unlink()
    (root / manifest[2].path).write_bytes((root / manifest[3].path).read_bytes())
    options = AnnotateOptions(failed_share_limit=0.0)  # broken files are no failures of the engine
    summary = annotate(manifest, root, "toy", tmp_path / "labels", "r", options=options)
    assert summary.failed == {LabelStatus.UNREADABLE: 3} and summary.asked == 1
    assert exactly_once(tmp_path / "labels", manifest)
    reasons = {row.path: row.raw_text for row in rows_of(tmp_path / "labels") if row.status == LabelStatus.UNREADABLE}
    assert reasons[manifest[0].path] == "truncated" and "changed" in reasons[manifest[2].path]
    assert len(reasons) == 3


def test_a_run_never_mixes_engines(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(2)
    annotate(manifest, root, "toy", tmp_path, "r", options=QUICK)
    record = tmp_path / "r" / "_run.json"
    record.write_text(record.read_text().replace("ccp-medians", "another"))
    with pytest.raises(ConfigError, match="model 'another' -> 'ccp-medians'"):
        annotate(manifest, root, "toy", tmp_path, "r", options=QUICK)
    with pytest.raises(ConfigError, match="plain name"):
        annotate(manifest, root, "toy", tmp_path, "../r", options=QUICK)


def test_foreign_rows_damaged_shards_and_a_second_writer_are_refused(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(3)
    labels = tmp_path / "labels"
    with pytest.raises(DataError, match="other"):
        annotate([manifest[0].model_copy(update={"dataset": "other"})], root, "toy", labels, "r", options=QUICK)
    with writer_lock(labels, "r", "toy"), pytest.raises(DgreidError, match="another process"):
        annotate(manifest, root, "toy", labels, "r", options=QUICK)
    annotate(manifest, root, "toy", labels, "r", options=QUICK)
    label_shards(labels)[0].write_bytes(b"half a file")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        annotate(manifest, root, "toy", labels, "r", options=QUICK)


async def test_failures_are_rows_and_are_asked_again_on_demand(make_dataset, stand_in, tmp_path: Path) -> None:
    root, manifest = make_dataset(10)
    server = stand_in()
    options = AnnotateOptions(connections=1, batch_images=1, failed_share_limit=0.5)
    async with stand_in_client(server, max_images_in_work=1) as client:
        await client.wait_ready(1)
        server.script = ["garbage"] * 4  # both attempts of two images
        first = await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
        assert first.failed == {"unparseable": 2} and first.finished_at_attempt == {1: 8}
        assert first.prompt_tokens == 12 * (57 + server.count(280, 560))
        again = await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
        assert (again.done_before, again.done_now) == (10, 0)
        retried = AnnotateOptions(connections=1, retry_failed=True)
        healed = await annotate_with(client, manifest, root, "toy", tmp_path, "r", retried)
    assert (healed.done_before, healed.done_now, healed.failed.total()) == (8, 2, 0)
    newest = connect(labels=label_shards(tmp_path)).execute("select status, count(*) from labels group by 1").fetchall()
    assert newest == [("ok", 30)]
    assert len(rows_of(tmp_path)) == 36


async def test_only_the_failed_part_gets_a_new_row(make_dataset, stand_in, tmp_path: Path, monkeypatch) -> None:
    root, manifest = make_dataset(1)
    server = stand_in()
    async with stand_in_client(server) as client:
        await client.wait_ready(1)
        with monkeypatch.context() as patched:
            patched.setattr(server, "_boxes", lambda payload: '{"head":[80,30,180,130],"legs":[9,9]}')
            limits = AnnotateOptions(failed_share_limit=1.0)
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", limits)
        await annotate_with(client, manifest, root, "toy", tmp_path, "r", AnnotateOptions(retry_failed=True))
    assert Counter(row.part for row in rows_of(tmp_path)) == {"head": 1, "upper_body": 2, "legs": 2}


async def test_too_many_failures_stop_the_run_and_keep_its_rows(make_dataset, stand_in, tmp_path: Path) -> None:
    root, manifest = make_dataset(40)
    server = stand_in()
    async with stand_in_client(server) as client:
        await client.wait_ready(1)
        server.always = "refusal"
        options = AnnotateOptions(connections=2, batch_images=2, failed_share_after=10)
        with pytest.raises(DgreidError, match=r"100% of 1\d images failed \(refused"):
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
    rows = rows_of(tmp_path)
    assert 30 <= len(rows) < 60 and {row.status for row in rows} == {LabelStatus.REFUSED}
    assert all("sorry" in row.raw_text for row in rows)


async def test_a_flaky_upstream_loses_nothing(make_dataset, stand_in, tmp_path: Path, no_pauses) -> None:
    """Fewer useless answers than attempts, fewer faults than repetitions: in whatever order they meet, all end well."""
    root, manifest = make_dataset(30)
    server = stand_in()
    async with stand_in_client(server, max_attempts=4) as client:
        await client.wait_ready(1)
        faults = ["500", "good", "hang", "cut", "garbage", "no json", "good", "length", "500", "garbage"]
        server.script = faults + ["good", "500", "cut", "hang"] * 4
        summary = await annotate_with(client, manifest, root, "toy", tmp_path, "r", QUICK)
    assert summary.failed.total() == 0 and summary.finished_at_attempt.total() == 30
    assert max(summary.finished_at_attempt) > 1
    assert exactly_once(tmp_path, manifest)


async def test_an_engine_lost_between_two_questions_is_asked_again(stand_in, paint, no_pauses) -> None:
    server = stand_in()
    async with stand_in_client(server) as client:
        server.script = ["garbage", "500", "500", "500", "good"]
        (healed,) = await client.ground([paint()], PARTS)
        assert {row.status for row in healed.parts} == {LabelStatus.OK} and not healed.may_pass
        server.script = ["garbage"] + ["500"] * 100
        (lost,) = await client.ground([paint()], PARTS)
    assert {row.status for row in lost.parts} == {LabelStatus.UNPARSEABLE}, "half an answer is kept"


async def test_a_service_that_is_not_there_or_not_ours_is_said_so(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(1)

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://gone:1") as http:
        with pytest.raises(ServiceError, match=r"not ready after 0 s: .*connection refused.*\[http://gone:1"):
            options = AnnotateOptions(ready_timeout_s=0)
            await annotate_with(LabelerClient(http), manifest, root, "toy", tmp_path, "r", options)
    transport = httpx.ASGITransport(create_app(load_settings(api_key="secret"), BodyPrior()))
    async with httpx.AsyncClient(transport=transport, base_url="http://locked") as http:
        with pytest.raises(ServiceError, match="401"):
            await annotate_with(LabelerClient(http), manifest, root, "toy", tmp_path, "r")
    assert not label_shards(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "shuffled", "503"])
async def test_damaged_answers_are_asked_again_never_believed(paint, no_pauses, damage: str) -> None:
    inner = httpx.ASGITransport(create_app(load_settings(), BodyPrior()))
    faults = 2

    async def spoil(request: httpx.Request) -> httpx.Response:
        nonlocal faults
        response = await inner.handle_async_request(request)
        content = await response.aread()
        if not faults:
            return httpx.Response(200, content=content)
        faults -= 1
        body = response.json()
        body["images"].reverse()
        match damage:
            case "cut":
                return httpx.Response(200, content=content[:-20])
            case "shuffled":
                return httpx.Response(200, json=body)
            case _:
                return httpx.Response(503, headers={"retry-after": "0"})

    images = [paint(), paint(height=130)]
    async with httpx.AsyncClient(transport=httpx.MockTransport(spoil), base_url="http://bad") as http:
        answers = await LabelerClient(http).ground(images, PARTS)
    assert [answer.image_id for answer in answers] == [image_id_of(image) for image in images]
    assert all(row.status == LabelStatus.OK for answer in answers for row in answer.parts) and faults == 0


async def test_one_oversized_image_does_not_take_its_batch_down(paint) -> None:
    settings = load_settings(max_body_bytes=6000)
    images = [paint(), paint() + b"\0" * 6000, paint(height=130)]
    async with embedded_client(settings, BodyPrior()) as client:
        answers = await client.ground(images, PARTS)
    assert [answer.parts[0].status for answer in answers] == ["ok", "engine_error", "ok"]
    assert answers[1].error.startswith("413")


async def test_nothing_moving_is_an_error_not_a_wait(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(4)
    inner = httpx.ASGITransport(create_app(load_settings(), BodyPrior()))

    async def stuck(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/ground":
            await asyncio.Event().wait()
        response = await inner.handle_async_request(request)
        return httpx.Response(response.status_code, content=await response.aread())

    async with httpx.AsyncClient(transport=httpx.MockTransport(stuck), base_url="http://stuck") as http:
        with pytest.raises(DgreidError, match="no request was answered"):
            options = AnnotateOptions(stall_s=0.05)
            await annotate_with(LabelerClient(http), manifest, root, "toy", tmp_path, "r", options)
