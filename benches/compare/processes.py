"""Servers that are started for the run, the CPU time that they use, and their end."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable

READY_SECONDS = 120
END_SECONDS = 10


class Processes:
    """A context manager that ends what was started in it, workers included, however the block is left."""

    def __init__(self, logs: pathlib.Path) -> None:
        self._logs = logs
        self._started: list[tuple[str, subprocess.Popen]] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        # In reverse, as those that came later are clients of the earlier ones.
        for _, process in reversed(self._started):
            _signal(process, signal.SIGTERM)
        end = time.monotonic() + END_SECONDS
        for _, process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        for _, process in self._started:
            _signal(process, signal.SIGKILL)
            process.wait()

    def start(self, name: str, command: list[str], environment: dict[str, str] | None = None, folder=None) -> int:
        """Starts a server in a process group of its own, and answers the group, which holds its workers too."""
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append((name, process))
        return process.pid

    def until(self, what: str, ready: Callable[[], object]) -> None:
        """Waits until `ready` answers something true; what it raises counts as not yet."""
        end = time.monotonic() + READY_SECONDS
        last: object = None
        while time.monotonic() < end:
            for name, process in self._started:
                if process.poll() is not None:
                    log = (self._logs / f"{name}.log").read_text(errors="replace")
                    raise SystemExit(f"{name} ended with {process.returncode}:\n{log[-2000:]}")
            try:
                if ready():
                    return
            except Exception as error:  # whatever a client says of a server that is not there yet
                last = error
            time.sleep(0.1)
        raise SystemExit(f"{what} is not ready after {READY_SECONDS} s: {last}")


def _signal(process: subprocess.Popen, number: int) -> None:
    # To the whole group: a worker outlives its master where that was killed.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def cpu_seconds(group: int) -> float:
    """User and system time of all processes of a group so far, by the kernel's accounting."""
    ticks = 0
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it may just have ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
