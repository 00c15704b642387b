"""`label`: part boxes of a data set into Parquet shards."""

import asyncio
import os
from contextlib import nullcontext
from typing import Annotated, NamedTuple

import typer
from pydantic import SecretStr

from labeler.annotation.annotate import AnnotateOptions, annotate, client_for
from labeler.annotation.estimate import Estimate, estimate
from labeler.annotation.label_run import standing_failures
from labeler.annotation.notify import check_webhook, message, notify
from labeler.engines.vllm_processes import started_vllm
from labeler.pocket import NAME as POCKET_MODEL
from labeler.service.grounding_service import limit_image_threads
from labeler.settings import SERVED_MODEL, Settings, load_settings
from pipelines.datasets import DatasetNames, scan, split_names
from pipelines.terminal import print_table, say
from shared.datasets import locate
from shared.errors import DgreidError
from shared.manifest import ManifestFile
from shared.parquet import row_count
from shared.schemas import ImageStatus
from shared.terminal import printable
from shared.workspace import Workspace


def label(
    dataset: DatasetNames,
    engine: Annotated[str | None, typer.Option(help="local, vllm_server, body_prior; default: LABELER_ENGINE")] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="a running labelling service; default: an engine in this process", envvar="DGREID_LABELER_URL"
        ),
    ] = None,
    label_run: Annotated[
        str | None, typer.Option(help="name of the label run; default: from engine, model and prompt")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="ask again for parts whose newest answer is a failure")] = False,
    strict: Annotated[bool, typer.Option(help="exit with 1 while any image or part has no final answer")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="measure a sample, say images, tokens and hours, write no label")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(help="Ray cluster whose machines ask: auto, ray://<host>:10001, or local; default: this machine"),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="port, or host:port, for Prometheus to read from while this runs", envvar="DGREID_METRICS"),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(help="URL to which the end or the failure is posted as JSON", envvar="DGREID_WEBHOOK_URL"),
    ] = None,
) -> None:
    """Label the parts of all images that have no labels yet. Resumable: run the same command again."""
    workspace = Workspace.from_environment()
    options = AnnotateOptions(retry_failed=retry_failed, metrics=metrics, cluster=cluster)
    hook = SecretStr(webhook) if webhook else None
    if hook:
        check_webhook(hook)
    settings = None if url else embedded_settings(engine)
    names = split_names(dataset, workspace)
    failures = []
    with (
        started_vllm(settings, workspace.on_disk / "logs")
        if settings and cluster is None
        else nullcontext(settings) as settings
    ):
        for name in names:
            if dry_run:
                _estimate(name, workspace, settings, url=url, label_run=label_run, options=options)
                continue
            done = label_dataset(name, workspace, settings, url=url, label_run=label_run, options=options, webhook=hook)
            if done.problem:
                failures.append(done.problem)
    for problem in failures[1:] if strict else failures:
        say(f"warning: {problem}", err=True)
    if strict and failures:
        raise failures[0]


def embedded_settings(engine: str | None = None) -> Settings:
    """Settings of an engine in this process; prints a note when it is the shipped pocket model."""
    settings = load_settings(**({"engine": engine} if engine else {}))
    if (settings.engine, settings.model) == ("local", POCKET_MODEL):
        say(
            f"boxes by {POCKET_MODEL}, a small model for demos and tests; for research-quality labels use a large one: "
            f"LABELER_UPSTREAM_URL=http://<vLLM server>:8000 LABELER_MODEL={SERVED_MODEL} dgreid label ..."
        )
    return settings


class Labelled(NamedTuple):
    label_run: str
    problem: DgreidError | None  # about images and parts without a final answer, of earlier sessions too


def label_dataset(
    name: str,
    workspace: Workspace,
    settings: Settings | None = None,
    *,
    url: str | None = None,
    label_run: str | None = None,
    options: AnnotateOptions | None = None,
    webhook: SecretStr | None = None,
) -> Labelled:
    """Scan and label one data set and print its closing table.

    Args:
        settings: of the engine in this process; by default from the environment.
        url: a running service instead.
        webhook: told when it ends, fails or is interrupted.

    Raises DgreidError when nothing could be done, or when it was interrupted.
    """
    try:
        rows = scan(name, workspace)
        summary = annotate(
            rows,
            locate(name, workspace.data_root),
            name,
            workspace.labels,
            label_run,
            url=url,
            api_key=_api_key(),
            settings=settings,
            options=options,
        )
    except BaseException as err:
        notify(webhook, message(name, err))
        raise
    notify(webhook, message(name, summary))
    print_table((f"labels of {name}", ""), summary.table())
    if summary.interrupted:
        raise DgreidError(
            f"labelling {name} was interrupted after {summary.images} of {row_count(rows.path)} images",
            fix="run the same command to resume",
        )
    return Labelled(summary.label_run, _standing(name, summary.label_run, rows, workspace))


def _estimate(
    name: str,
    workspace: Workspace,
    settings: Settings | None,
    *,
    url: str | None,
    label_run: str | None,
    options: AnnotateOptions,
) -> None:
    rows, root = scan(name, workspace), locate(name, workspace.data_root)

    async def measured() -> Estimate:
        limit_image_threads()
        async with client_for(url, _api_key(), settings, options) as client:
            return await estimate(client, rows, root, name, workspace.labels, label_run, options)

    print_table((f"estimate for {name}", ""), asyncio.run(measured()).table())


def _api_key() -> SecretStr | None:
    key = os.environ.get("LABELER_API_KEY")
    return SecretStr(key) if key else None


def _standing(name: str, label_run: str, rows: ManifestFile, workspace: Workspace) -> DgreidError | None:
    """What has no final answer in the label run, whichever session asked, and what to do about it."""
    failures = standing_failures(workspace.labels, label_run, name, rows.path)
    if not failures.images:
        return None
    broken = next((row for row in rows if row.status != ImageStatus.OK), None)
    first = f"; {printable(broken.path)} cannot be read: {broken.reason}" if broken else ""
    retry = f"dgreid label {name} --label-run {label_run} --retry-failed asks again"
    files = "replace or delete files that cannot be read; " if broken else ""
    return DgreidError(
        f"{failures} of {name} have no final answer in label run {label_run}{first}",
        path=locate(name, workspace.data_root),
        fix=f"{files}dgreid sql {name} --query failures shows the answers; {retry}",
    )
