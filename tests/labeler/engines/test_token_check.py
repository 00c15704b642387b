"""A server that resizes the images is found out by its token counts, and stops the run instead of mislabelling it."""

import logging

import pytest

from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.annotation.client import ServiceUnfitError
from labeler.engines.token_check import TokenCheck
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.coordinates import FAMILIES, image_tokens, sent_size
from labeler.grounding.engine import EngineDownError, EngineUnfitError
from labeler.grounding.ground import ground_image
from labeler.settings import load_settings
from shared.labels import label_shards, read_labels
from shared.schemas import PARTS

QWEN = FAMILIES["qwen2.5-vl"]
ONE_AT_A_TIME = AnnotateOptions(connections=1, batch_images=2, shard_rows=6)


class Counter:
    """A server's token counts: `text` for the words, one per factor x factor pixels, `most` for an image."""

    def __init__(self, text: int = 40, factor: int = QWEN.factor, most: int = 10**6, least: int = 0) -> None:
        self.text, self.factor, self.most, self.least = text, factor, most, least
        self.probed: list[str] = []

    def count(self, width: int, height: int) -> int:
        tokens = round(width / self.factor) * round(height / self.factor)
        return self.text + max(self.least, min(self.most, tokens))

    async def probe(self, text: str, width: int, height: int) -> int:
        self.probed.append(text)
        return self.count(width, height)


def engine_of(server, **overrides) -> VllmServer:
    return VllmServer.from_settings(
        load_settings(engine="vllm_server", model=server.model, **overrides), server.transport
    )


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("size", [(64, 128), (48, 128), (300, 900), (3000, 4000)])
def test_one_token_stands_for_a_square_of_factor_pixels(family, size) -> None:
    width, height = sent_size(*size, family)
    tokens = image_tokens(width, height, family)
    assert tokens * family.factor**2 == width * height and 0 < tokens <= 1280


async def test_the_text_is_measured_once_and_right_counts_pass() -> None:
    server = Counter(text=40)
    check = TokenCheck(QWEN, server.probe)
    for _ in range(3):
        assert await check.of_text("where?") == 40
    assert server.probed == ["where?"] * 2
    check.verify("where?", 40, 280, 560, server.count(280, 560))
    with pytest.raises(EngineUnfitError, match=r"counted 199 image tokens for an image of 280 x 560 .* 200 were sent"):
        check.verify("where?", 40, 280, 560, server.count(280, 560) - 1)
    server.text = 44  # another server now: it is measured anew
    assert await check.of_text("where?") == 44


@pytest.mark.parametrize("wrong", [Counter(factor=32), Counter(most=150), Counter(most=300), Counter(least=256)])
async def test_two_probes_show_another_resize(wrong: Counter) -> None:
    with pytest.raises(EngineUnfitError, match=r"counted -?\d+ image tokens more .* where \d+ were sent"):
        await TokenCheck(QWEN, wrong.probe).of_text("where?")


async def test_a_server_that_is_away_is_measured_later() -> None:
    server, down = Counter(), [True]

    async def probe(text: str, width: int, height: int) -> int:
        if down:
            raise EngineDownError("no answer", fix=down.pop() and "wait")
        return await server.probe(text, width, height)

    check = TokenCheck(QWEN, probe)
    with pytest.raises(EngineDownError):
        await check.of_text("where?")
    assert await check.of_text("where?") == 40


async def test_without_counts_it_is_said_once_and_work_goes_on(stand_in, paint, caplog) -> None:
    server = stand_in()
    server.text_tokens = None
    engine = engine_of(server, prompt_mode="per_part")
    with caplog.at_level(logging.WARNING):
        answer = await ground_image(engine, paint(), PARTS, max_pixels=10**6, max_attempts=1)
    await engine.close()
    assert all(row.box for row in answer.parts) and answer.prompt_tokens == 0
    assert [record.message for record in caplog.records if "prompt tokens" in record.message] == [
        "the server reports no prompt tokens, so it cannot be checked whether it resizes images"
    ]


@pytest.mark.parametrize("mode", ["joint", "per_part"])
async def test_a_service_over_a_resizing_server_is_never_ready(open_client, stand_in, mode: str) -> None:
    server = stand_in()
    server.max_image_tokens = 180
    settings = load_settings(engine="vllm_server", model=server.model, prompt_mode=mode)
    async with open_client(settings, engine_of(server, prompt_mode=mode)) as client:
        with pytest.raises(ServiceUnfitError, match=r"counted 0 image tokens more .* where \d+ were sent"):
            await client.wait_ready(timeout_s=60)
    assert not server.payloads


async def test_a_miscount_stops_the_run_with_both_numbers_and_keeps_what_was_right(
    open_client, stand_in, make_dataset, tmp_path
) -> None:
    root, rows = make_dataset(12)
    server = stand_in()
    answered = server._answer

    async def resizes_after_a_while(request):
        if len(server.payloads) == 7:  # one calibration image and six crops
            server.max_image_tokens = 150
        return await answered(request)

    server._answer = resizes_after_a_while
    async with open_client(load_settings(), engine_of(server), connections=1) as client:
        with pytest.raises(ServiceUnfitError, match=r"counted 150 image tokens for an image of .* where \d+ were sent"):
            await annotate_with(client, rows, root, "toy", tmp_path, "r", ONE_AT_A_TIME)
    assert len(server.payloads) <= 9  # no second try, no second batch
    assert len({row.image_id for row in read_labels(label_shards(tmp_path))}) == 6  # what came before is kept


async def test_the_real_family_is_seen_through_a_wrong_setting(stand_in, paint) -> None:
    engine = engine_of(stand_in("Qwen/Qwen3-VL-8B-Instruct", thousandths=True), family="qwen2.5-vl")
    with pytest.raises(EngineUnfitError, match="LABELER_FAMILY"):
        await ground_image(engine, paint(), PARTS, max_pixels=10**6, max_attempts=4)
    await engine.close()
