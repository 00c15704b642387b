"""The annotator through both clients: complete, unique, resumable, and it survives failing engines."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.engine import EngineDownError, EngineError, EngineSlowError
from labeler.settings import load_settings
from shared.errors import ConfigError, DataError, DgreidError
from shared.labels import connect, label_shards, read_labels, writer_lock
from shared.schemas import PARTS, ImageStatus, LabelStatus

QUICK = AnnotateOptions(connections=3, batch_images=4, shard_rows=30)


def rows_of(labels: Path):
    return read_labels(label_shards(labels))


def exactly_once(labels: Path, manifest) -> bool:
    counts = Counter((row.image_id, row.part) for row in rows_of(labels))
    return counts == {(row.image_id, part): 1 for row in manifest for part in PARTS}


@pytest.fixture
def label(open_client):
    """`annotate` of the body prior's boxes, through either client."""

    def run(manifest, root: Path, labels: Path, label_run: str | None = None, options: AnnotateOptions = QUICK):
        async def labelled():
            async with open_client(load_settings(), connections=options.connections) as client:
                return await annotate_with(client, manifest, root, "toy", labels, label_run, options)

        return asyncio.run(labelled())

    return run


@pytest.fixture
def ask(open_client):
    """ask(stand-in server, settings ...): a client, of either kind, of a service in front of that server."""

    def opened(server, **overrides):
        settings = load_settings(engine="vllm_server", model=server.model, **{"max_attempts": 2, **overrides})
        return open_client(settings, VllmServer.from_settings(settings, server.transport), connections=3)

    return opened


def test_every_image_once_in_its_split_with_all_columns(label, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(25)
    summary = label(iter(manifest), root, tmp_path / "labels")
    assert (summary.images, summary.done_now, summary.failed.total()) == (25, 25, 0)
    assert summary.label_run == "body_prior-ccp-medians" and summary.finished_at_attempt == {1: 25}
    assert exactly_once(tmp_path / "labels", manifest)
    splits = {row.image_id: row.split for row in manifest}
    for row in rows_of(tmp_path / "labels"):
        assert row.split == splits[row.image_id] and row.space == "fractions" and row.raw_box and row.attempts == 1
        assert 0 <= row.x_min < row.x_max <= row.width and 0 <= row.y_min < row.y_max <= row.height
    assert len(label_shards(tmp_path / "labels")) > 2


def test_the_second_session_has_nothing_to_do_and_new_images_are_added(label, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(12)
    label(manifest[:7], root, tmp_path / "labels", "r")
    summary = label(manifest, root, tmp_path / "labels", "r")
    assert (summary.done_before, summary.done_now) == (7, 5)
    shards = label_shards(tmp_path / "labels")
    assert label(manifest, root, tmp_path / "labels", "r").done_now == 0
    assert label_shards(tmp_path / "labels") == shards
    assert exactly_once(tmp_path / "labels", manifest)


def test_the_same_bytes_twice_are_labelled_once(label, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(4)
    (root / "copy.png").write_bytes((root / manifest[0].path).read_bytes())
    copy = manifest[0].model_copy(update={"path": "copy.png", "split": "train"})
    summary = label([*manifest, copy], root, tmp_path / "labels", "r")
    assert summary.images == 4 and exactly_once(tmp_path / "labels", manifest)


def test_unreadable_images_are_rows_and_are_never_sent(label, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(4)
    manifest[0] = manifest[0].model_copy(update={"status": ImageStatus.UNREADABLE, "reason": "truncated"})
    (root / manifest[1].path).unlink()
    (root / manifest[2].path).write_bytes((root / manifest[3].path).read_bytes())
    options = AnnotateOptions(failed_share_limit=0.0)  # broken files are no failures of the engine
    summary = label(manifest, root, tmp_path / "labels", "r", options=options)
    assert summary.failed == {LabelStatus.UNREADABLE: 3} and summary.asked == 1
    assert exactly_once(tmp_path / "labels", manifest)
    reasons = {row.path: row.raw_text for row in rows_of(tmp_path / "labels") if row.status == LabelStatus.UNREADABLE}
    assert reasons[manifest[0].path] == "truncated" and "changed" in reasons[manifest[2].path]
    assert len(reasons) == 3


def test_a_run_never_mixes_engines(label, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(2)
    label(manifest, root, tmp_path, "r")
    record = tmp_path / "r" / "_run.json"
    record.write_text(record.read_text().replace("ccp-medians", "another"))
    with pytest.raises(ConfigError, match="model 'another' -> 'ccp-medians'"):
        label(manifest, root, tmp_path, "r")
    with pytest.raises(ConfigError, match="plain name"):
        label(manifest, root, tmp_path, "../r")


def test_foreign_rows_damaged_shards_and_a_second_writer_are_refused(label, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(3)
    labels = tmp_path / "labels"
    with pytest.raises(DataError, match="other"):
        label([manifest[0].model_copy(update={"dataset": "other"})], root, labels, "r")
    with writer_lock(labels, "r", "toy"), pytest.raises(DgreidError, match="another process"):
        label(manifest, root, labels, "r")
    label(manifest, root, labels, "r")
    label_shards(labels)[0].write_bytes(b"half a file")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        label(manifest, root, labels, "r")


async def test_failures_are_rows_and_are_asked_again_on_demand(ask, make_dataset, stand_in, tmp_path: Path) -> None:
    root, manifest = make_dataset(10)
    server = stand_in()
    options = AnnotateOptions(connections=1, batch_images=1, failed_share_limit=0.5)
    async with ask(server, max_images_in_work=1) as client:
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


async def test_only_the_failed_part_gets_a_new_row(ask, make_dataset, stand_in, tmp_path: Path, monkeypatch) -> None:
    root, manifest = make_dataset(1)
    server = stand_in()
    async with ask(server) as client:
        await client.wait_ready(1)
        with monkeypatch.context() as patched:
            patched.setattr(server, "_boxes", lambda payload: '{"head":[80,30,180,130],"legs":[9,9]}')
            limits = AnnotateOptions(failed_share_limit=1.0)
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", limits)
        await annotate_with(client, manifest, root, "toy", tmp_path, "r", AnnotateOptions(retry_failed=True))
    assert Counter(row.part for row in rows_of(tmp_path)) == {"head": 1, "upper_body": 2, "legs": 2}


async def test_too_many_failures_stop_the_run_and_keep_its_rows(ask, make_dataset, stand_in, tmp_path: Path) -> None:
    root, manifest = make_dataset(40)
    server = stand_in()
    async with ask(server) as client:
        await client.wait_ready(1)
        server.always = "refusal"
        options = AnnotateOptions(connections=2, batch_images=2, failed_share_after=10)
        with pytest.raises(DgreidError, match=r"100% of 1\d images failed \(refused"):
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
    rows = rows_of(tmp_path)
    assert 30 <= len(rows) < 60 and {row.status for row in rows} == {LabelStatus.REFUSED}
    assert all("sorry" in row.raw_text for row in rows)


async def test_a_flaky_upstream_loses_nothing(ask, make_dataset, stand_in, tmp_path: Path, no_pauses) -> None:
    """Fewer useless answers than attempts, fewer faults than repetitions: in whatever order they meet, all end well."""
    root, manifest = make_dataset(30)
    server = stand_in()
    async with ask(server, max_attempts=4) as client:
        await client.wait_ready(1)
        faults = ["500", "good", "hang", "cut", "garbage", "no json", "good", "length", "500", "garbage"]
        server.script = faults + ["good", "500", "cut", "hang"] * 4
        summary = await annotate_with(client, manifest, root, "toy", tmp_path, "r", QUICK)
    assert summary.failed.total() == 0 and summary.finished_at_attempt.total() == 30
    assert max(summary.finished_at_attempt) > 1
    assert exactly_once(tmp_path, manifest)


async def test_an_engine_lost_between_two_questions_is_asked_again(ask, stand_in, paint, no_pauses) -> None:
    server = stand_in()
    async with ask(server) as client:
        server.script = ["garbage", "500", "500", "500", "good"]
        (healed,) = await client.ground([paint()], PARTS)
        assert {row.status for row in healed.parts} == {LabelStatus.OK} and not healed.retryable
        server.script = ["garbage"] + ["500"] * 100
        (lost,) = await client.ground([paint()], PARTS)
    assert {row.status for row in lost.parts} == {LabelStatus.UNPARSEABLE}, "half an answer is kept"


class Moody(BodyPrior):
    """The body prior, with failures that depend on the height of the image (the calibration image has 128 pixels)."""

    def __init__(self) -> None:
        self.recovers = {132: 2, 133: 3}  # failures until an image of this height is answered

    async def ground(self, image, parts, attempt):
        match image.height:
            case 129:
                raise EngineError("refused by the server", fix="-")
            case 130:
                raise RuntimeError("a bug")
            case 131:
                raise EngineDownError("always down", fix="-")
            case height if self.recovers.get(height, 0) > 0:
                self.recovers[height] -= 1
                raise EngineSlowError("slow", fix="-")
        return await super().ground(image, parts, attempt)


async def test_both_clients_write_the_same_rows_and_failures(
    open_clients, make_dataset, tmp_path: Path, no_pauses
) -> None:
    root, manifest = make_dataset(40)
    manifest[0] = manifest[0].model_copy(update={"status": ImageStatus.UNREADABLE, "reason": "truncated"})
    options = AnnotateOptions(connections=2, batch_images=3, failed_share_limit=1.0)
    rows, failed = {}, {}
    for name, opened in open_clients.items():
        async with opened(load_settings(), Moody(), connections=2) as client:
            summary = await annotate_with(client, manifest, root, "toy", tmp_path / name, "r", options)
        failed[name] = summary.failed
        found = [row.model_dump(exclude={"created_at"}) for row in rows_of(tmp_path / name)]
        rows[name] = sorted(found, key=lambda row: (row["path"], row["part"]))
    assert failed["in_process"] == failed["http"] == {"engine_error": 12, "unreadable": 1}
    assert rows["in_process"] == rows["http"] and len(rows["http"]) == 120
    reasons = {row["raw_text"] for row in rows["http"]} - {None}
    assert reasons == {"refused by the server", "unexpected failure, see the service's log", "always down", "truncated"}


async def test_nothing_moving_is_an_error_not_a_wait(open_client, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(4)

    class Stuck(BodyPrior):
        async def ground(self, image, parts, attempt):
            if image.height == 128 and image.getpixel((30, 10)) == (255, 0, 0):  # not the calibration image
                await asyncio.Event().wait()
            return await super().ground(image, parts, attempt)

    async with open_client(load_settings(), Stuck()) as client:
        with pytest.raises(DgreidError, match="nothing was answered"):
            options = AnnotateOptions(stall_s=0.05)
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
