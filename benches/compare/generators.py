"""The load generators: wrk for HTTP, h2load for gRPC, and h2load for both where latency is compared."""

import dataclasses
import json
import pathlib
import re
import subprocess

import numpy

GRPC_HEADERS = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
JSON_HEADERS = ["-H", "content-type: application/json"]
# Connections, a process of h2load each: it sends one and the same request, so each process has one of its own.
CONNECTIONS = 4
# More than that, and the figure is one of errors.
MAX_FAILED = 0.05


@dataclasses.dataclass(frozen=True)
class Load:
    calls: int
    calls_per_second: float
    bytes_per_call: float
    failed: int  # calls that had no answer, or another than 200


@dataclasses.dataclass(frozen=True)
class Latency:
    p50_us: float
    p99_us: float
    calls: int


def wrk(url: str, bodies: list[bytes], connections: int, seconds: int, folder: pathlib.Path) -> Load:
    """Closed loop over HTTP/1.1 with so many connections, a call in flight on each; the bodies in turn."""
    file = folder / "bodies"
    file.write_bytes(b"\n".join(bodies) + b"\n")
    script = str(pathlib.Path(__file__).resolve().parent / "requests.lua")
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script]
    output = _run([["wrk", *options, url, "--", str(file)]], seconds)[0]
    measured = json.loads(output.splitlines()[-1])
    calls, failed = measured["calls"], measured["failed"]
    if failed > calls * MAX_FAILED:
        raise SystemExit(f"{url}: {failed} calls failed beside {calls} that did not")
    return Load(calls, calls / measured["seconds"], measured["bytes"] / max(calls, 1), failed)


def h2load(url: str, requests: list[bytes], in_flight: int, seconds: int, folder: pathlib.Path) -> Load:
    """Closed loop over gRPC with so many calls in flight over all connections, a request on each."""
    commands = []
    for number, request in enumerate(requests):
        options = ["-c1", "-t1", f"-m{in_flight // len(requests)}", "-D", str(seconds)]
        commands.append(["h2load", *options, *GRPC_HEADERS, "-d", _file(folder, number, framed(request)), url])
    rate, data, calls = 0.0, 0, 0
    for output in _run(commands, seconds):
        rate += float(_only(r"finished in [\d.]+\w+, ([\d.]+) req/s", output))
        data += int(_only(r"\((\d+)\) data", output))
        calls += _succeeded(url, output)
    return Load(calls, rate, data / calls, failed=0)


def one_in_flight(url: str, request: bytes, http1: bool, seconds: int, folder: pathlib.Path) -> Latency:
    """By h2load for every system, HTTP/1.1 or gRPC: the same program, clock and definition of a call's end."""
    log = folder / "latencies"
    log.unlink(missing_ok=True)
    shape = ["--h1", *JSON_HEADERS] if http1 else GRPC_HEADERS
    data = _file(folder, 0, request if http1 else framed(request))
    options = ["-c1", "-t1", "-m1", "-D", str(seconds), f"--log-file={log}"]
    [output] = _run([["h2load", *options, *shape, "-d", data, url]], seconds)
    _succeeded(url, output)
    status, micros = numpy.loadtxt(log, usecols=(1, 2), unpack=True, ndmin=2)
    if not (status == 200).all():
        raise SystemExit(f"{url}: not every call was answered 200")
    p50, p99 = numpy.percentile(micros, [50, 99]).tolist()
    return Latency(p50, p99, len(micros))


def framed(message: bytes) -> bytes:
    """gRPC's prefix: not compressed, and the length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _file(folder: pathlib.Path, number: int, data: bytes) -> str:
    file = folder / f"request-{number}"
    file.write_bytes(data)
    return str(file)


def _run(commands: list[list[str]], seconds: int) -> list[str]:
    """All at once; no generator outlives this, not even when the run is ended."""
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    try:
        outputs = [process.communicate(timeout=seconds + 30)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for command, process, output in zip(commands, running, outputs):
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output[-2000:]}")
    return outputs


def _succeeded(url: str, output: str) -> int:
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (succeeded|failed|errored|timeout)", output)}
    if not counts.get("succeeded") or counts["failed"] or counts["errored"] or counts["timeout"]:
        raise SystemExit(f"{url}: not every call succeeded:\n{output[-2000:]}")
    return counts["succeeded"]


def _only(pattern: str, output: str) -> str:
    found = re.search(pattern, output)
    if not found:
        raise SystemExit(f"h2load says nothing like {pattern}:\n{output[-2000:]}")
    return found.group(1)
