"""`vllm`: vLLM servers for the labeler on this machine, one per GPU, watched until Ctrl-C."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from pipelines.terminal import say
from shared.workspace import Workspace


def vllm(
    model: Annotated[str, typer.Argument(help="hub name or folder, e.g. Qwen/Qwen2.5-VL-7B-Instruct")],
    flags: Annotated[list[str] | None, typer.Argument(help="more vLLM arguments, after --")] = None,
    replicas: Annotated[int, typer.Option(min=0, help="servers; 0: one per GPU")] = 0,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the first one; the others follow")] = 8000,
    ready_s: Annotated[float, typer.Option(help="to load the model, at most")] = 1800.0,
    logs: Annotated[Path | None, typer.Option(help="folder of their logs; default: RUNS_ROOT/logs")] = None,
) -> None:
    """Run vLLM servers on this machine, one per GPU, and start those again that die. Ctrl-C takes all of them down."""
    from labeler.engines.vllm_processes import VllmProcesses

    folder = logs or Workspace.from_environment().on_disk / "logs"
    signal.signal(signal.SIGTERM, _interrupt)
    with VllmProcesses(model, logs=folder, replicas=replicas, port=port, flags=flags or ()) as servers:
        say(f"starting {len(servers.urls)} model servers; logs in {folder}", err=True)
        servers.wait_ready(ready_s)
        say(f"ready: LABELER_UPSTREAM_URL={','.join(servers.urls)} LABELER_MODEL={model} dgreid label ...")
        signal.pause()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
