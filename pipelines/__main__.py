"""`python -m pipelines <command>` (also `dgreid <command>`): the commands behind the Makefile."""

import logging
import os
import sys
from collections.abc import Callable

import typer

from pipelines import (
    bench_dg,
    compare,
    datasets,
    demo,
    doctor,
    evaluate,
    exchange,
    label,
    protocols,
    report,
    sql,
    train,
    train_clip,
    train_grounder,
)
from shared.errors import DgreidError

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "datasets": datasets.datasets,
    "manifest": datasets.manifest,
    "label": label.label,
    "import-masks": exchange.import_masks,
    "export-labels": exchange.export_labels,
    "import-labels": exchange.import_labels,
    "sql": sql.sql,
    "protocols": protocols.protocols,
    "train": train.train,
    "train-clip": train_clip.train_clip,
    "train-grounder": train_grounder.train_grounder,
    "eval": evaluate.evaluate,
    "report": report.report,
    "compare": compare.compare,
    "bench-dg": bench_dg.bench_dg,
    "doctor": doctor.doctor,
}


def build_app() -> typer.Typer:
    app = typer.Typer(add_completion=False, no_args_is_help=True, help="Domain-generalised person re-identification.")
    for name, function in COMMANDS.items():
        app.command(name)(function)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with 0 done, 1 failed, 2 asked for something impossible, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for package in ("shared", "labeler", "reid", "pipelines"):
        logging.getLogger(package).setLevel(logging.INFO)
    logging.getLogger("labeler.service.observation").setLevel(logging.WARNING)  # a line a request: servers only
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The exit code of one command; every failure is one sentence on stderr."""
    try:
        return int(build_app()(arguments, standalone_mode=False) or 0)
    except DgreidError as err:
        return _say(str(err), err.exit_code)
    except typer.TyperException as err:
        return _say(f"{err.format_message()}\n  fix: python -m pipelines --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; the same command continues where it stopped", 130)
    except OSError as err:
        return _say(f"{err.strerror or err} [{err.filename}]\n  fix: check that the place exists and may be used", 1)
    except Exception as err:
        if os.environ.get("DGREID_DEBUG"):
            raise
        return _say(f"{type(err).__name__}: {err}\n  fix: this is a bug; DGREID_DEBUG=1 shows where it happened", 1)


def _say(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
