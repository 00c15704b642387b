"""Runs a command and ends it with all its children when standard input closes, however the process that holds the other
end of it ended: python vllm_guard.py COMMAND..."""

import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 10.0  # from SIGTERM to SIGKILL


def main() -> int:
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)  # only the pipe ends this, so that nothing is left behind
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heed_signals)
    while child.poll() is None:
        if select.select([0], [], [], 0.1)[0] and not os.read(0, 1024):  # closed
            break
    _end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _heed_signals() -> None:
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_DFL)


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL, to the child's whole session's group: workers outlive a server that died."""
    deadline = time.monotonic() + GRACE_S
    kind = signal.SIGTERM
    while True:
        try:
            os.killpg(child.pid, kind)
        except (ProcessLookupError, PermissionError):  # nobody is left
            break
        while time.monotonic() < deadline:
            child.poll()
            try:
                os.killpg(child.pid, 0)
            except (ProcessLookupError, PermissionError):
                break
            time.sleep(0.05)
        if kind == signal.SIGKILL:
            break
        kind = signal.SIGKILL
    child.wait()


if __name__ == "__main__":
    sys.exit(main())
