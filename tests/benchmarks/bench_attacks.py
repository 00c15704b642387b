"""How long the service's live endpoint takes to answer while it is attacked, and its memory: runs/bench/attacks.json.

    .venv/bin/python -m tests.benchmarks.bench_attacks [words of test names]

Runs the attacks of tests/labeler/processes/test_attacks.py at the default limits, one after the other, on services of
their own. The tests allow a busy machine 5 seconds for an answer; here the figure itself is written, so nothing else
should run. To be under 1 second.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

from shared.files import write_text
from tests.labeler.processes import test_attacks
from tests.labeler.processes.conftest import servers, service_starter

OUT = Path("runs/bench/attacks.json")
ATTACKS: tuple[Callable[..., None], ...] = (
    test_attacks.test_bodies_of_many_values,
    test_attacks.test_many_full_bodies_at_once,
    test_attacks.test_images_of_many_pixels_in_few_bytes,
    test_attacks.test_sockets_that_say_nothing_at_1024_descriptors,
    test_attacks.test_slow_bodies_make_room_for_quick_ones,
)


def cases(attack: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The arguments of every case of a parametrised test; {} for another one."""
    marks = [mark for mark in getattr(attack, "pytestmark", ()) if mark.name == "parametrize"]
    if not marks:
        yield {}
        return
    names, values = marks[0].args
    for value in values:
        yield {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))


def write(failed: dict[str, str]) -> dict[str, float]:
    """Write what was measured so far; the worst of it."""
    seen = {
        name: {"slowest_live_s": round(watch.slowest_s, 3), "most_mib": round(watch.most_mib), "polls": watch.polls}
        for name, watch in test_attacks.MEASURED.items()
    }
    worst = {key: max((one[key] for one in seen.values()), default=0) for key in ("slowest_live_s", "most_mib")}
    write_text(OUT, json.dumps({"worst": worst, "failed": failed, "attacks": seen}, indent=1) + "\n")
    return worst


def main(words: list[str]) -> None:
    os.environ.setdefault("LABELER_ENGINE", "body_prior")
    failed: dict[str, str] = {}
    for attack in ATTACKS:
        if words and not any(word in attack.__name__ for word in words):
            continue
        for arguments in cases(attack):
            with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as start:
                needed = {"start": start, "start_service": service_starter(start)}
                fixtures = {name: needed[name] for name in signature(attack).parameters if name in needed}
                try:
                    attack(**fixtures, **arguments)
                except AssertionError as err:
                    failed[f"{attack.__name__} {arguments}"] = str(err)[:300]
            write(failed)  # what was measured stays when it is interrupted
    told = write(failed)
    print(f"worst live answer {told['slowest_live_s']:.2f} s, {told['most_mib']} MiB; {OUT}")
    if failed:
        sys.exit(f"failed: {failed}")


if __name__ == "__main__":
    main(sys.argv[1:])
