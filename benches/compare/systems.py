"""What is compared: how each system is started, given the data, and asked.

Every system has `request`, the exact bytes that the load generators send, and `read`, what the server answers to them
as a numpy array, to be checked against the data.
"""

import json
import os
import pathlib
import subprocess
import sys

import grpc
import numpy
import pymongo
import redis
import urllib3

from dataset import IDS, NAMES, VALUES, ids_of
from processes import Processes, free_ports

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "examples" / "model_server"))
from feature_client import OPTIONS, pb  # noqa: E402

VENV = pathlib.Path(sys.executable).parent
CHUNK = 1000


class Backends:
    """One Redis and one MongoDB for all: each system has a database of its own in them."""

    def __init__(self, processes: Processes, folder: pathlib.Path, mongod: str) -> None:
        self.redis_port, self.mongo_port = free_ports(2)
        self.mongo_uri = f"mongodb://127.0.0.1:{self.mongo_port}/?replicaSet=rs0"
        data = folder / "mongo"
        data.mkdir()
        command = ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1"]
        processes.start("redis-server", [*command, "--save", "", "--appendonly", "no"], folder=folder)
        # A replica set of one: what ours asks for its change stream, and no difference to the others.
        command = [mongod, "--replSet", "rs0", "--bind_ip", "127.0.0.1", "--port", str(self.mongo_port)]
        processes.start("mongod", [*command, "--dbpath", str(data), "--wiredTigerCacheSizeGB", "1"])
        processes.until("redis-server", redis.Redis(port=self.redis_port).ping)
        direct = pymongo.MongoClient(port=self.mongo_port, directConnection=True, serverSelectionTimeoutMS=1000)
        processes.until("mongod", lambda: direct.admin.command("ping"))
        members = [{"_id": 0, "host": f"127.0.0.1:{self.mongo_port}"}]
        direct.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        processes.until("mongod's primary", lambda: direct.admin.command("hello")["isWritablePrimary"])

    def redis_url(self, database: int) -> str:
        return f"redis://127.0.0.1:{self.redis_port}/{database}"

    def versions(self) -> dict[str, str]:
        return {
            "redis-server": redis.Redis(port=self.redis_port).info("server")["redis_version"],
            "mongod": pymongo.MongoClient(self.mongo_uri).server_info()["version"],
        }


class Http:
    """A system that is asked by POST with JSON."""

    path: str

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}{self.path}"
        self._pool = urllib3.PoolManager(maxsize=1)

    def ask(self, body: bytes) -> dict:
        response = self._pool.request("POST", self.url, body=body, headers={"Content-Type": "application/json"})
        if response.status != 200:
            raise RuntimeError(f"{self.url} answers {response.status}: {response.data[:500]!r}")
        return json.loads(response.data)


class Feast(Http):
    """Feast's Python feature server, as `feast serve` starts it."""

    path = "/get-online-features"

    def __init__(self, name: str, port: int, group: int, by_service: bool = False) -> None:
        super().__init__(port)
        self.name = name
        self.group = group
        self._by_service = by_service

    def by_service(self, name: str) -> "Feast":
        """The same server, asked for a feature service instead of for features by name."""
        return Feast(name, self.port, self.group, by_service=True)

    @staticmethod
    def environment(backends: Backends, folder: pathlib.Path) -> dict[str, str]:
        return {
            "COMPARE_FOLDER": str(folder),
            "COMPARE_FEAST_REDIS": f"127.0.0.1:{backends.redis_port},db=1",
            "TMPDIR": str(folder),  # where it leaves folders behind
            "FEAST_USAGE": "False",
            "FEAST_TELEMETRY": "false",
        }

    @staticmethod
    def load(environment: dict[str, str]) -> None:
        """In a process of its own: importing Feast takes seconds, and its definitions read the environment."""
        command = [sys.executable, str(HERE / "load_feast.py")]
        subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=300)

    @classmethod
    def start(cls, name: str, processes: Processes, environment: dict[str, str], *flags: str) -> "Feast":
        [port] = free_ports(1)
        command = [str(VENV / "feast"), "--chdir", str(HERE / "feast_repo"), "serve", "--port", str(port), *flags]
        feast = cls(name, port, processes.start(name, command, environment))
        processes.until(name, lambda: feast.read([0]).size)
        return feast

    def request(self, numbers: list[int]) -> bytes:
        what = {"feature_service": "model"} if self._by_service else {"features": [f"features:{n}" for n in NAMES]}
        return json.dumps({**what, "entities": {"entity_id": ids_of(numbers)}}).encode()

    def read(self, numbers: list[int]) -> numpy.ndarray:
        answer = self.ask(self.request(numbers))
        columns = dict(zip(answer["metadata"]["feature_names"], answer["results"]))
        return numpy.array([columns[name]["values"] for name in NAMES]).T


class Django(Http):
    """django_glue.py under gunicorn."""

    path = "/features"
    name = "Django REST, 2 workers"

    def __init__(self, port: int, group: int) -> None:
        super().__init__(port)
        self.group = group

    @classmethod
    def start(cls, processes: Processes, backends: Backends) -> "Django":
        [port] = free_ports(1)
        # Threads, as gunicorn's default, one call at a time and worker, closes the connection after each.
        command = [str(VENV / "gunicorn"), "--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "4"]
        environment = {"GLUE_REDIS_URL": backends.redis_url(2), "GLUE_MONGO_URI": backends.mongo_uri}
        group = processes.start("django", [*command, "django_glue:application"], environment, folder=HERE)
        records = pymongo.MongoClient(backends.mongo_uri).glue.features
        records.insert_many([{"_id": i, "features": dict(zip(NAMES, row))} for i, row in zip(IDS, VALUES.tolist())])
        django = cls(port, group)
        processes.until(cls.name, lambda: django.read([0]).size)
        for start in range(0, len(IDS), CHUNK):  # every later read is a hit
            django.read(list(range(start, start + CHUNK)))
        return django

    def request(self, numbers: list[int]) -> bytes:
        return json.dumps({"ids": ids_of(numbers)}).encode()

    def read(self, numbers: list[int]) -> numpy.ndarray:
        features = self.ask(self.request(numbers))["features"]
        return numpy.array([[features[entity_id][name] for name in NAMES] for entity_id in ids_of(numbers)])


class Ours:
    """The feature store."""

    path = "/featurestore.v1.FeatureStoreService/GetFeatures"

    def __init__(self, name: str, port: int, group: int) -> None:
        self.name = name
        self.port = port
        self.group = group
        self.target = f"127.0.0.1:{port}"
        self.url = f"http://{self.target}{self.path}"
        self._channel = grpc.insecure_channel(self.target, options=OPTIONS)
        # Bytes in, bytes out: what is checked is what the load generator sends.
        self._call = self._channel.unary_unary(self.path)

    @classmethod
    def start(
        cls, name: str, processes: Processes, backends: Backends | None, binary: str, folder: pathlib.Path
    ) -> "Ours":
        """L1 in Redis and L2 in MongoDB; without backends as it comes, with both in its process and on disk."""
        port, admin_port = free_ports(2)
        environment = {
            "FEATURESTORE_LISTEN": f"127.0.0.1:{port}",
            "FEATURESTORE_ADMIN_LISTEN": f"127.0.0.1:{admin_port}",
            "FEATURESTORE_DATA_DIR": str(folder / name),
            "RUST_LOG": "warn",
            "FEATURESTORE_DRAIN_DELAY": "0s",
        }
        if backends:
            environment |= {"REDIS_URL": backends.redis_url(0), "MONGO_URI": backends.mongo_uri}
        ours = cls(name, port, processes.start(name, [binary, "serve"], environment))
        processes.until(name, ours.info)
        bulk = ours._channel.stream_stream(
            "/featurestore.v1.FeatureStoreService/BulkUpsert",
            request_serializer=pb.BulkUpsertRequest.SerializeToString,
            response_deserializer=pb.BulkUpsertResponse.FromString,
        )
        written = sum(answer.written for answer in bulk(cls._chunks(), timeout=120))
        if written != len(IDS):
            raise SystemExit(f"{name} has written {written} of {len(IDS)} records")
        processes.until(f"{name}, answering everything from L1,", ours._all_in_l1)
        return ours

    @staticmethod
    def _chunks():
        for start in range(0, len(IDS), CHUNK):
            chunk = pb.BulkUpsertRequest(warm_cache=True)
            for entity_id, row in zip(IDS[start : start + CHUNK], VALUES[start : start + CHUNK].tolist()):
                record = chunk.records.add(entity_id=entity_id)
                for name, value in zip(NAMES, row):
                    record.features[name].double_val = value
            yield chunk

    def _all_in_l1(self) -> bool:
        answers = [self.answer(list(range(start, start + CHUNK))) for start in range(0, len(IDS), CHUNK)]
        return all(row.source == pb.SOURCE_L1 for answer in answers for row in answer.rows)

    def info(self) -> pb.InfoResponse:
        path = "/featurestore.v1.FeatureStoreService/Info"
        return pb.InfoResponse.FromString(self._channel.unary_unary(path)(b"", timeout=2))

    def request(self, numbers: list[int]) -> bytes:
        return pb.GetFeaturesRequest(entity_ids=ids_of(numbers)).SerializeToString()

    def answer(self, numbers: list[int]) -> pb.GetFeaturesResponse:
        """By a call whose status is checked: anything but OK is raised."""
        return pb.GetFeaturesResponse.FromString(self._call(self.request(numbers), timeout=2))

    def read(self, numbers: list[int]) -> numpy.ndarray:
        rows = (row.features for row in self.answer(numbers).rows)
        return numpy.array([[features[name].double_val for name in NAMES] for features in rows])
