"""Questions spread over the machines of a Ray cluster: the remaining images are a Ray dataset, answered in blocks by
actors, each of which has an engine.

Ray carries manifest rows to the actors and answers back, and asks again about the blocks of a machine that was lost.
What remains to be asked, what counts as failed and what is written is decided in this process, as without Ray: it alone
writes shards. Actors read the images themselves, in the folder that this process knows them in.
"""

import asyncio
import itertools
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import SecretStr

from labeler.annotation.backlog import Answered, Item, Request, read_item
from labeler.annotation.client import GroundingClient, ServiceError, ServiceUnfitError, client_of, saying
from labeler.engines.vllm_processes import started_vllm
from labeler.grounding.answers import ImageAnswer, ServiceInfo
from labeler.service.grounding_service import limit_image_threads
from labeler.settings import Settings
from shared.errors import ConfigError, DgreidError
from shared.parquet import to_table
from shared.schemas import MANIFEST_SCHEMA, ManifestRow

log = logging.getLogger(__name__)

MOST_IN_BLOCK = 64  # images that an actor is given at once, and that are asked about again when it is lost ...
LEAST_IN_BLOCK = 16
BLOCKS = 64  # ... and as many blocks at least, so that few images are many actors' work, too
BLOCKS_AT_ONCE = 2  # of an actor: the next one fills the gaps that the last images of a block leave
CONNECT_S = 10.0
LOST_STARTS = 20  # actors in a row that may be lost with their machine while they start
_ADDED = [  # to the columns of the manifest
    pa.field("number", pa.int64(), nullable=False),  # counted through the dataset
    pa.field("parts", pa.list_(pa.string()), nullable=False),  # to be asked about
]
_ANSWERED = pa.schema([*MANIFEST_SCHEMA, *_ADDED, pa.field("answer", pa.string()), pa.field("unreadable", pa.string())])
_REFUSALS = {kind.__name__: kind for kind in (ServiceUnfitError, ServiceError, ConfigError, DgreidError)}
_REFUSED = pa.schema([(name, pa.string()) for name in ("kind", "what", "path", "fix")])


@dataclass(frozen=True)
class Asking:
    """How an actor reaches its engine: by the settings in its own process, or at the URL of a service."""

    settings: Settings
    url: str | None
    api_key: SecretStr | None
    connections: int
    attempts: int
    batch_images: int
    ready_timeout_s: float


class RayCluster:
    """The actors of a cluster as one place to ask, with the interface of a GroundingClient.

    Args:
        address: `local`: a cluster on this machine for this run; `auto`: the one that this machine belongs to;
            ray://host:10001: from outside of it.

    Raises ConfigError for another address, or without Ray.
    """

    connections = 1  # `requests` waits for any block
    service_metrics = None

    def __init__(self, address: str, asking: Asking) -> None:
        if address not in ("local", "auto") and ":" not in address:
            raise ConfigError(f"--cluster {address!r} is no Ray cluster", fix="use local, auto or ray://<host>:10001")
        self._address, self._asking = address, asking
        self._ray = _imported_ray()
        self._info: ServiceInfo | None = None
        self._walk: _Walk | None = None

    async def __aenter__(self) -> Self:
        local: dict[str, Any] = {"include_dashboard": False} if self._address == "local" else {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        try:
            if (place := self._address.rpartition("/")[2]) not in ("local", "auto"):
                host, _, port = place.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()  # Ray would wait for minutes
            self._ray.init(self._address, log_to_driver=False, logging_level=logging.WARNING, **local)
        except (OSError, RuntimeError, ValueError, OverflowError) as err:
            raise ConfigError(
                f"no Ray cluster at {self._address}: {_first_line(err)}",
                fix="start one (`ray start --head`), or use --cluster local; if it asks for a token, set RAY_AUTH_MODE",
            ) from err
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._walk:
            self._walk.close()  # else Ray's own threads would connect anew
        self._ray.shutdown()

    async def wait_ready(self, timeout_s: float) -> float:
        """Let one worker of the cluster open its engine and ask about the calibration image; its mean IoU.

        Raises what the engine's client raises, ServiceError when no worker has answered after `timeout_s`.
        """
        probe = self._ray.remote(_probe).options(max_retries=3, **self._resources())
        reference = probe.remote(self._asking)
        started = time.monotonic()

        def room() -> str:
            asked, held = self._resources(), self._ray.cluster_resources()
            return (
                f"it is given {asked['num_cpus']:g} CPUs and {asked['num_gpus']:g} GPUs, "
                f"the cluster has {held.get('CPU', 0):g} and {held.get('GPU', 0):g}"
            )

        def waiting() -> str:
            past = time.monotonic() - started
            return f"waiting {past:.0f} of {timeout_s:.0f} s for a first worker of the cluster: {room()}"

        async with saying(waiting):
            ready, _ = await asyncio.to_thread(self._ray.wait, [reference], timeout=timeout_s)
        if not ready:
            self._ray.cancel(reference, force=True)
            raise ServiceError(
                f"no worker of the cluster is ready after {timeout_s:.0f} s: {room()}",
                fix="see `ray status`, LABELER_RAY_CPUS and LABELER_RAY_GPUS, and the logs of the model server",
            )
        try:
            told = await asyncio.to_thread(self._ray.get, reference)
        except Exception as err:  # Ray raises the worker's own exceptions
            raise _broken(err) from err
        if isinstance(told, dict):
            raise _refusal(told)
        iou, self._info = told
        return float(iou)

    async def info(self) -> ServiceInfo:
        """Who answers, as the worker of `wait_ready` said; every actor must be the same."""
        assert self._info is not None, "wait_ready comes first"
        return self._info

    def requests(self, items: Iterable[Item], root: Path, batch_images: int) -> Iterator[Request]:
        """Hand the items to the cluster; each request waits for the answers about one block, whichever is next.

        Raises DgreidError when the cluster gave no answer about an image, and what an actor's client raises.
        """
        blocks, count = [], 0
        remaining = iter(items)
        first = list(itertools.islice(remaining, BLOCKS * MOST_IN_BLOCK))
        size = min(MOST_IN_BLOCK, max(LEAST_IN_BLOCK, -(-len(first) // BLOCKS)))
        everything = itertools.chain(first, remaining)
        while chunk := list(itertools.islice(everything, size)):
            blocks.append(self._ray.put(_block(chunk, count)))
            count += len(chunk)
        if not blocks:
            return
        assert self._info is not None, "wait_ready comes first"
        given = (blocks, self._asking, self._info, root.resolve(), self._resources())
        next_table: Callable[[], pa.Table | None]
        if self._address.startswith("ray://"):  # from outside of a cluster a Ray dataset cannot be walked through
            beside_head = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
            walker = self._ray.remote(_Walk).options(**beside_head).remote(*given)
            next_table = partial(_table_from, self._ray, walker)
        else:
            self._walk = _Walk(*given)
            next_table = self._walk.next_table
        del blocks, given
        answered = bytearray(count)
        ended = False

        def next_block() -> list[Answered]:
            nonlocal ended
            try:
                table = next_table()
            except Exception as err:  # Ray's own, and those of an actor
                raise _broken(err) from err
            if table is None:
                ended = True
                if missing := answered.count(0):
                    raise DgreidError(f"the cluster gave no answer about {missing} of {count} images",
                                      fix="run the same command to resume")  # fmt: skip
                return []
            if table.schema.names == _REFUSED.names:
                raise _refusal(table.to_pylist()[0])
            found = []
            for number, one in _answers_of(table):
                if not answered[number]:  # a block may come twice where a machine was lost
                    answered[number] = 1
                    found.append(one)
            _check_unreadable(found, root)
            return found

        while not ended:
            yield Request(partial(asyncio.to_thread, next_block))

    def _resources(self) -> dict[str, float]:
        """CPUs and GPUs of an actor."""
        settings = self._asking.settings
        gpus = settings.ray_gpus
        if gpus is None:
            model_inside = not self._asking.url and (settings.engine == "local" or settings.start_vllm)
            gpus = 1.0 if model_inside and self._ray.cluster_resources().get("GPU") else 0.0
        return {"num_cpus": settings.ray_cpus, "num_gpus": gpus}


class _Walk:
    """Walks through the dataset of one session.

    Args:
        blocks: references to what `_block` makes.
        resources: CPUs and GPUs of an actor.
    """

    def __init__(
        self, blocks: list[Any], asking: Asking, info: ServiceInfo, root: Path, resources: dict[str, float]
    ) -> None:
        data, settings = _imported_ray().data, asking.settings
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_consecutive_actor_init_deaths = LOST_STARTS
        answers = data.from_arrow_refs(blocks).map_batches(
            GroundingActor,
            fn_constructor_args=(asking, info, root),
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(
                min_size=min(settings.ray_min_actors, len(blocks)),
                max_size=settings.ray_max_actors or None,
                max_concurrent_calls_per_actor=BLOCKS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            **resources,
        )
        self._tables = iter(answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))

    def next_table(self) -> pa.Table | None:
        """The answers about one block, whichever is next; None at the end."""
        return next(self._tables, None)

    def close(self) -> None:
        """End the actors, unless a thread is still waiting for a table."""
        with suppress(ValueError):
            self._tables.close()


def _table_from(ray: Any, walker: Any) -> pa.Table | None:
    return ray.get(walker.next_table.remote())


class GroundingActor:
    """An engine's client in a process of the cluster. What it raises becomes an answer, of which the driver makes the
    error again: Ray would start a failed actor anew, for ever.

    Args:
        info: who must answer.
        root: folder of the data set.
    """

    def __init__(self, asking: Asking, info: ServiceInfo, root: Path) -> None:
        self._root, self._batch_images = root, asking.batch_images
        self._stack = ExitStack()
        self._refused: dict[str, str | None] | None = None
        try:
            if not root.is_dir():
                raise ConfigError(
                    f"the data set's folder is not on the machine {os.uname().nodename} of the cluster",
                    path=root,
                    fix="mount it there under the same path, e.g. over NFS, and set DATA_ROOT to that path",
                )
            self._portal, self._client = _opened(asking, self._stack)
            self._client.bind(info)
            self._portal.call(self._client.wait_ready, asking.ready_timeout_s)
            self._portal.call(self._client.info)
        except DgreidError as err:
            self._refused = _told(err)
            self._stack.close()

    def __call__(self, block: pa.Table) -> pa.Table:
        """The rows with their answers; what could not be answered at all is a table of its own."""
        if self._refused is None:
            try:
                return self._portal.call(self._answer, block)
            except DgreidError as err:
                return pa.Table.from_pylist([_told(err)], schema=_REFUSED)
        return pa.Table.from_pylist([self._refused], schema=_REFUSED)

    async def _answer(self, block: pa.Table) -> pa.Table:
        rows = block.select(MANIFEST_SCHEMA.names).to_pylist()
        place_of = {row["image_id"]: place for place, row in enumerate(rows)}
        parts = map(frozenset, block["parts"].to_pylist())
        items = [Item(ManifestRow.model_validate(row), wanted) for row, wanted in zip(rows, parts, strict=True)]
        requests = await asyncio.to_thread(list, self._client.requests(items, self._root, self._batch_images))
        answers: list[str | None] = [None] * len(rows)
        reasons: list[str | None] = [None] * len(rows)
        for answered in await asyncio.gather(*(request() for request in requests)):
            for item, answer in answered:
                place = place_of[item.row.image_id]
                answers[place] = answer.model_dump_json() if answer else None
                reasons[place] = item.unreadable if answer is None else None
        columns = {**{name: block[name] for name in block.schema.names}, "answer": answers, "unreadable": reasons}
        return pa.table(columns, schema=_ANSWERED)


def _opened(asking: Asking, stack: ExitStack) -> tuple[BlockingPortal, GroundingClient]:
    """A client and the event loop that it runs in; both end with the stack."""
    portal = stack.enter_context(start_blocking_portal())
    portal.call(limit_image_threads)
    logs = Path(tempfile.gettempdir()) / "dgreid-vllm" / str(os.getpid())
    settings = asking.settings if asking.url else stack.enter_context(started_vllm(asking.settings, logs))
    client = client_of(settings, asking.url, asking.api_key, asking.connections, asking.attempts)
    return portal, stack.enter_context(portal.wrap_async_context_manager(client))


def _probe(asking: Asking) -> tuple[float, ServiceInfo] | dict[str, str | None]:
    """Runs in a worker: mean IoU on the calibration image and who answers, or why nobody does."""
    try:
        with ExitStack() as stack:
            portal, client = _opened(asking, stack)
            return portal.call(client.wait_ready, asking.ready_timeout_s), portal.call(client.info)
    except DgreidError as err:
        return _told(err)


def _block(items: Sequence[Item], first: int) -> pa.Table:
    table = to_table([item.row for item in items], MANIFEST_SCHEMA)
    added = (range(first, first + len(items)), [sorted(item.parts) for item in items])
    for field, values in zip(_ADDED, added, strict=True):
        table = table.append_column(field, pa.array(values, field.type))
    return table.replace_schema_metadata(None)


def _answers_of(table: pa.Table) -> Iterator[tuple[int, Answered]]:
    added = ("number", "parts", "answer", "unreadable")
    rows = table.select(MANIFEST_SCHEMA.names).to_pylist()
    for row, number, parts, answer, unreadable in zip(rows, *(table[name].to_pylist() for name in added), strict=True):
        item = Item(ManifestRow.model_validate(row), frozenset(parts), unreadable=unreadable or "")
        yield number, (item, None if answer is None else ImageAnswer.model_validate_json(answer))


def _check_unreadable(answered: Sequence[Answered], root: Path) -> None:
    """Raises ConfigError for an image that an actor could not read and this process can: a folder that is not the same
    everywhere would else be labelled unreadable."""
    for item, answer in answered:
        if answer is None and read_item(item, root).content:
            raise ConfigError(
                f"a machine of the cluster cannot read an image that this one can ({item.unreadable})",
                path=root / item.row.path,
                fix="let every machine of the cluster see the same DATA_ROOT under the same path",
            )


def _told(err: DgreidError) -> dict[str, str | None]:
    kind = next(name for name, kind in _REFUSALS.items() if isinstance(err, kind))
    return {"kind": kind, "what": err.what, "path": None if err.path is None else str(err.path), "fix": err.fix}


def _refusal(told: dict[str, Any]) -> DgreidError:
    return _REFUSALS[told["kind"]](told["what"], path=told["path"], fix=told["fix"])


def _broken(err: Exception) -> DgreidError:
    log.debug("the Ray cluster failed", exc_info=err)
    return DgreidError(
        f"the Ray cluster cannot go on: {type(err).__name__}: {_first_line(err)}",
        fix="see `ray status` and the cluster's logs; run the same command to resume",
    )


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:300]


def _imported_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as err:
        raise ConfigError(f"--cluster needs Ray ({err})", fix="pip install 'dgreid[ray]'") from err
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    return ray
