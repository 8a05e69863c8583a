"""The run: starts every system, checks what it answers, measures all in turn, and tells. Started by run.sh."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time

import clients
import generators
from dataset import BATCHES, ENTITIES, FEATURES, batches, check
from processes import Processes, cpu_seconds
from systems import Backends, Django, Feast, Http, Ours

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = {"redis-py": "redis"} | {
    name: name
    for name in ("feast", "Django", "djangorestframework", "gunicorn", "hiredis", "pymongo", "grpcio", "numpy")
}
BODIES = 1000
PYTHON_SHARE = 2  # Python's clients are measured for a share of the time: they are many, and steady

# Calls in flight, out of which each system gets, before the first round, the number that suits it best.
IN_FLIGHT_HTTP = (2, 4, 8, 16, 32)
IN_FLIGHT_OURS = {1: (32, 64, 128, 256), 100: (8, 16, 32, 64)}

OURS = "ours"
OURS_IN_PROCESS = "ours, in process"
FEAST = "Feast, 2 workers"
FEAST_SERVICE = "Feast, 2 w., service"
FEAST_DEFAULTS = "Feast, 2 w., defaults"
FEAST_ONE = "Feast, 1 worker"
# In Feast's favour: left to its defaults it restarts each worker after some 1,000 requests, which costs seconds of
# importing each time and some calls, and writes a line for each request.
FEAST_FLAGS = ("--max-requests", "0", "--no-access-log")
ALL_HITS = 0.99
IDLE = 0.5  # load average
TARGETS = {1: 80, 100: 120}  # ours against Feast with two workers
PYTHON_BASELINE = "ours, matrix"
# From Python over HTTP, each against the server of its own.
PYTHON_SYSTEM = {"ours": OURS, "Feast": FEAST, "Django": Django.name}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--featurestore", required=True)
    parser.add_argument("--mongod", required=True)
    arguments = parser.parse_args()
    # As Ctrl-C does: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))

    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        report = compare(arguments, pathlib.Path(folder))
    show(report)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nThe figures of every round: {arguments.json}")


def compare(arguments: argparse.Namespace, folder: pathlib.Path) -> dict:
    computer = machine()  # before anything of ours loads it
    if computer["load_average"] > IDLE:
        say(f"NOTE: this machine is not idle, its load average is {computer['load_average']:.2f}")
    with Processes(folder) as processes:
        say("starting all systems and giving them the data")
        backends = Backends(processes, folder, arguments.mongod)
        ours = Ours.start(OURS, processes, backends, arguments.featurestore, folder)
        feast_environment = Feast.environment(backends, folder)
        Feast.load(feast_environment)
        feast = Feast.start(FEAST, processes, feast_environment, "--workers", "2", *FEAST_FLAGS)
        systems = [
            ours,
            Ours.start(OURS_IN_PROCESS, processes, None, arguments.featurestore, folder),
            feast,
            feast.by_service(FEAST_SERVICE),
            Feast.start(FEAST_DEFAULTS, processes, feast_environment, "--workers", "2"),
            Feast.start(FEAST_ONE, processes, feast_environment, "--workers", "1", *FEAST_FLAGS),
            Django.start(processes, backends),
        ]
        say("checking that all answer the same")
        for entities in BATCHES:
            for numbers in [list(range(entities)), *batches(entities, 20, seed=1)]:
                for system in systems:
                    check(system.name, numbers, system.read(numbers))

        report = {"machine": computer, "versions": {**versions(ours), **backends.versions()}}
        report["settings"] = {"seconds": arguments.seconds, "rounds": arguments.rounds}
        report["settings"] |= {"records": ENTITIES, "features": FEATURES}
        run = Run(systems, feast_environment, arguments.seconds, folder)
        run.calibrate()
        rounds = [run.round(number, arguments.rounds) for number in range(1, arguments.rounds + 1)]
    report["servers"] = [server_summary(rounds, s.name, entities) for entities in BATCHES for s in systems]
    report["python"] = [python_summary(rounds, kind, entities) for entities in BATCHES for kind in clients.KINDS]
    baselines = (FEAST, FEAST_SERVICE, FEAST_DEFAULTS)
    report["targets"] = [
        target(rounds, one, baseline, entities)
        for entities in BATCHES
        for one in (OURS, OURS_IN_PROCESS)
        for baseline in baselines
    ]
    report["rounds"] = rounds
    return report


@dataclasses.dataclass
class Run:
    systems: list
    feast_environment: dict[str, str]
    seconds: int
    folder: pathlib.Path
    in_flight: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)

    def calibrate(self) -> None:
        """Finds how many calls in flight suit each system, and warms all up."""
        for entities in BATCHES:
            for system in self.systems:
                if system.name == FEAST_DEFAULTS:  # the same code; its restarts would make this a lottery
                    self.in_flight[system.name, entities] = self.in_flight[FEAST, entities]
                    continue
                tried = IN_FLIGHT_HTTP if isinstance(system, Http) else IN_FLIGHT_OURS[entities]
                loads = {n: self._load(system, entities, 0, n, min(2, self.seconds)) for n in tried}
                rates = {n: load.calls_per_second for n, (load, _) in loads.items()}
                # Those that are what they are called, before those that are fast.
                best = max(tried, key=lambda n: (round(loads[n][1], 2), rates[n]))
                self.in_flight[system.name, entities] = best
                words = ", ".join(f"{n}: {rate:,.0f}" for n, rate in rates.items())
                say(f"calls/s by calls in flight: {system.name}, {entities} per call: {words}")

    def round(self, number: int, of: int) -> dict:
        """Everything once. Each round asks for other entities."""
        figures: dict = {"servers": {}, "python": {}}
        for entities in BATCHES:
            for system in self.systems:
                say(f"round {number} of {of}: {system.name}, {entities} per call")
                figures["servers"][f"{system.name}, {entities}"] = self._server(system, entities, number)
        for entities in BATCHES:
            for kind in clients.KINDS:
                say(f"round {number} of {of}: from Python, {kind}, {entities} per call")
                figures["python"][f"{kind}, {entities}"] = self._python(kind, entities, number)
        return figures

    def _server(self, system, entities: int, seed: int) -> dict:
        in_flight = self.in_flight[system.name, entities]
        cpu, started = cpu_seconds(system.group), time.monotonic()
        load, hits = self._load(system, entities, seed, in_flight, self.seconds)
        if not load.calls:
            raise SystemExit(f"{system.name} answered no call in {self.seconds} s")
        cpu, span = cpu_seconds(system.group) - cpu, time.monotonic() - started
        figures = {
            "in_flight": in_flight,
            "calls_per_second": load.calls_per_second,
            "bytes_per_call": load.bytes_per_call,
            "failed": load.failed,
            "hits": hits,
        }
        # With one call in flight its restarts are refused connections, and a process that ends takes its CPU time
        # along.
        if system.name != FEAST_DEFAULTS:
            # Of the processes of the server, without Redis.
            figures["cpu_us_per_call"] = cpu / span / load.calls_per_second * 1e6
            [numbers] = batches(entities, 1, seed)
            request = system.request(numbers)
            http1 = isinstance(system, Http)
            latency = generators.one_in_flight(system.url, request, http1, self.seconds, self.folder)
            figures |= {"p50_us": latency.p50_us, "p99_us": latency.p99_us}
        return figures

    def _load(self, system, entities: int, seed: int, in_flight: int, seconds: int) -> tuple[generators.Load, float]:
        """What was measured, and the share of its rows that came out of Redis, as all should: 1 where that is all
        that a system does."""
        if isinstance(system, Http):
            bodies = [system.request(numbers) for numbers in batches(entities, BODIES, seed)]
            return generators.wrk(system.url, bodies, in_flight, seconds, self.folder), 1.0
        asked = batches(entities, generators.CONNECTIONS, seed)
        requests = [system.request(numbers) for numbers in asked]
        expected = statistics.mean(len(generators.framed(system.answer(n).SerializeToString())) for n in asked)
        before = system.info().l1.hits
        load = generators.h2load(system.url, requests, in_flight, seconds, self.folder)
        # h2load does not look at grpc-status; an answer of another length is no answer.
        if not 0.99 < load.bytes_per_call / expected < 1.01:
            answered = f"{load.bytes_per_call} bytes a call under load, and alone {expected}"
            raise SystemExit(f"{system.name} answers {answered}")
        # Where Redis is too slow, as on a machine too busy, ours leaves it alone, and callers of one key share a read
        # of L2: with so few keys that would look better than it is.
        hits = min(1.0, (system.info().l1.hits - before) / (load.calls * entities))
        if hits < ALL_HITS:
            answered = f"L1 answered {hits:.1%} of {system.name}"
            say(f"NOTE: with {in_flight} calls in flight {answered}: this machine is too busy")
        return load, hits

    def _python(self, kind: str, entities: int, seed: int) -> dict:
        name = next(name for word, name in PYTHON_SYSTEM.items() if kind.startswith(word))
        system = next(system for system in self.systems if system.name == name)
        where = system.url if isinstance(system, Http) else system.target
        seconds = max(1, self.seconds // PYTHON_SHARE)
        command = [sys.executable, str(HERE / "clients.py"), kind, str(entities), str(seconds), str(seed), where]
        environment = {**os.environ, **self.feast_environment}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 120)
        if result.returncode:
            raise SystemExit(f"{kind}: {result.stderr[-2000:]}")
        return json.loads(result.stdout.splitlines()[-1])


def server_summary(rounds: list[dict], system: str, entities: int) -> dict:
    median = medians([r["servers"][f"{system}, {entities}"] for r in rounds])
    ratios = {
        f"ours_ratio_{figure}": ratio(rounds, "servers", OURS, system, entities, figure)
        for figure in ("calls_per_second", "cpu_us_per_call", "p50_us", "p99_us")
        if figure in median
    }
    rows = median["calls_per_second"] * entities
    return {"system": system, "entities": entities, **median, "rows_per_second": rows, **ratios}


def python_summary(rounds: list[dict], kind: str, entities: int) -> dict:
    median = medians([r["python"][f"{kind}, {entities}"] for r in rounds])
    times = 1 / ratio(rounds, "python", PYTHON_BASELINE, kind, entities, "p50_us")
    return {"client": kind, "entities": entities, **median, "times_our_matrix_p50": times}


def target(rounds: list[dict], ours: str, baseline: str, entities: int) -> dict:
    throughput = ratio(rounds, "servers", ours, baseline, entities, "calls_per_second")
    # Its latency is that of the same server without restarts.
    p99 = ratio(rounds, "servers", ours, FEAST if baseline == FEAST_DEFAULTS else baseline, entities, "p99_us")
    hits = min(r["servers"][f"{ours}, {entities}"]["hits"] for r in rounds)
    met = throughput >= TARGETS[entities] and p99 < 1 and hits >= ALL_HITS
    measured = {"throughput_ratio": throughput, "at_least": TARGETS[entities], "p99_ratio": p99, "met": met}
    return {"system": ours, "baseline": baseline, "entities": entities, **measured}


def medians(figures: list[dict]) -> dict:
    return {key: statistics.median(figure[key] for figure in figures) for key in figures[0]}


def ratio(rounds: list[dict], part: str, one: str, other: str, entities: int, figure: str) -> float:
    """The median of the rounds' ratios: a round's figures share the machine's mood."""
    pairs = ((r[part][f"{one}, {entities}"][figure], r[part][f"{other}, {entities}"][figure]) for r in rounds)
    return statistics.median(a / b for a, b in pairs)


def machine() -> dict:
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def versions(ours: Ours) -> dict[str, str]:
    info = ours.info()
    # wrk's exit code for this is 1.
    wrk = subprocess.run(["wrk", "--version"], capture_output=True, text=True).stdout.split()[1]
    h2load = subprocess.run(["h2load", "--version"], capture_output=True, text=True).stdout.split()[1]
    found = {"featurestore": f"{info.version} ({info.git_commit})", "python": platform.python_version()}
    packages = {name: importlib.metadata.version(package) for name, package in PACKAGES.items()}
    return {**found, **packages, "wrk": wrk.split("/")[-1], "h2load": h2load.split("/")[-1]}


def show(report: dict) -> None:
    computer, settings = report["machine"], report["settings"]
    print(f"\n{computer['cpu']}, {computer['cores']} cores, {computer['memory_gib']} GiB, {computer['system']}")
    print(f"{computer['time']}, load average before the run {computer['load_average']:.2f}")
    names = [f"{name} {version}" for name, version in report["versions"].items()]
    print(textwrap.fill(", ".join(names), 118))
    print(
        f"{ENTITIES:,} entities of {FEATURES} float64 features; clients, servers, Redis and MongoDB share the machine"
    )
    print(f"medians of {settings['rounds']} rounds of {settings['seconds']} s a figure\n")

    print(f"{'':<28} {'in flight':>9} {'calls/s':>9} {'rows/s':>9} {'CPU us/call':>11} |", end="")
    print(f" {'p50 us':>8} {'p99 us':>8} | {'x calls/s':>9} {'x CPU':>7} {'x p99':>7}")
    for row in report["servers"]:
        print(
            f"{row['system'] + ', ' + str(row['entities']):<28} {row['in_flight']:>9.0f}"
            f" {row['calls_per_second']:>9,.0f} {row['rows_per_second']:>9,.0f} {cell(row, 'cpu_us_per_call', 11)} |"
            f" {cell(row, 'p50_us', 8)} {cell(row, 'p99_us', 8)} | {row['ours_ratio_calls_per_second']:>9.1f}"
            f" {cell(row, 'ours_ratio_cpu_us_per_call', 7, '.3f')} {cell(row, 'ours_ratio_p99_us', 7, '.3f')}"
            + (f" {row['failed']:.0f} calls failed" if row["failed"] else "")
            + (f" L1 answered only {row['hits']:.1%}" if row["hits"] < ALL_HITS else "")
        )
    print("p50, p99: with one call in flight. CPU: of the server's processes, without Redis.")
    print("x: ours as a multiple of that system's, the median of the rounds' ratios.\n")

    print(f"{'From call to numpy array':<28} {'calls/s':>9} {'p50 us':>9} {'p99 us':>9} {'p50: times our matrix':>22}")
    for row in report["python"]:
        print(
            f"{row['client'] + ', ' + str(row['entities']):<28} {row['calls_per_second']:>9,.0f}"
            f" {row['p50_us']:>9,.0f} {row['p99_us']:>9,.0f} {row['times_our_matrix_p50']:>22.1f}"
        )
    print()
    if computer["load_average"] > IDLE:
        print("The machine was not idle when the run began: judge by CPU, if at all.")
    for row in report["targets"]:
        print(
            f"{'met' if row['met'] else 'MISSED'}: {row['system']} against {row['baseline']},"
            f" {row['entities']} per call: {row['throughput_ratio']:.0f} times its throughput"
            f" (at least {row['at_least']}),"
            f" {row['p99_ratio']:.3f} of its p99 with one call in flight (below 1)"
        )


def cell(row: dict, figure: str, width: int, form: str = ",.0f") -> str:
    """A figure that not every system has."""
    return f"{row[figure] if figure in row else '-':>{width}{form if figure in row else ''}}"


def say(words: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {words}", flush=True)


if __name__ == "__main__":
    main()
