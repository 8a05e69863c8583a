"""Python's time from call to numpy array, one call in flight: `clients.py KIND ENTITIES SECONDS SEED TARGET`.

A process for each client, as what Feast's SDK imports makes every garbage collection of its process longer. Prints what
was measured, as JSON.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable

import numpy

from dataset import NAMES, batches, check, ids_of

HERE = pathlib.Path(__file__).resolve().parent
BATCHES_MADE = 500
CHECKED = 20

Read = Callable[[list[str]], numpy.ndarray]


def ours_matrix(target: str) -> Read:
    """As examples/model_server reads: the answer's bytes are the array."""
    client = _feature_client().FeatureClient(target)

    def read(ids: list[str]) -> numpy.ndarray:
        matrix = client.matrix("", ids, NAMES)
        if not matrix.all_present():
            raise RuntimeError("; ".join(matrix.absent(ids, NAMES)))
        return matrix.values

    return read


def ours_rows(target: str) -> Read:
    """Rows, decoded by the generated stubs and read value by value."""
    module = _feature_client()
    pb = module.pb
    import grpc
    from featurestore.v1 import featurestore_pb2_grpc

    stub = featurestore_pb2_grpc.FeatureStoreServiceStub(grpc.insecure_channel(target, options=module.OPTIONS))

    def read(ids: list[str]) -> numpy.ndarray:
        answer = stub.GetFeatures(pb.GetFeaturesRequest(entity_ids=ids), timeout=module.READ_SECONDS)
        for row in answer.rows:
            if row.status != pb.ROW_STATUS_FOUND:
                raise RuntimeError(pb.RowStatus.Name(row.status))
        rows = (row.features for row in answer.rows)
        return numpy.array([[features[name].double_val for name in NAMES] for features in rows])

    return read


def feast_sdk_to_dict(_target: str) -> Read:
    get = _feast_sdk()

    def read(ids: list[str]) -> numpy.ndarray:
        columns = get(ids).to_dict()
        return numpy.array([columns[name] for name in NAMES]).T

    return read


def feast_sdk_to_df(_target: str) -> Read:
    get = _feast_sdk()

    def read(ids: list[str]) -> numpy.ndarray:
        return get(ids).to_df()[NAMES].to_numpy()

    return read


def feast_http(target: str) -> Read:
    post = _post(target)
    references = [f"features:{name}" for name in NAMES]

    def read(ids: list[str]) -> numpy.ndarray:
        answer = post({"features": references, "entities": {"entity_id": ids}})
        columns = dict(zip(answer["metadata"]["feature_names"], answer["results"]))
        return numpy.array([columns[name]["values"] for name in NAMES]).T

    return read


def django_http(target: str) -> Read:
    post = _post(target)

    def read(ids: list[str]) -> numpy.ndarray:
        features = post({"ids": ids})["features"]
        return numpy.array([[features[entity_id][name] for name in NAMES] for entity_id in ids])

    return read


def _feature_client():
    sys.path.insert(0, str(HERE.parent.parent / "examples" / "model_server"))
    import feature_client

    return feature_client


def _feast_sdk():
    """The SDK in this process, straight to Redis: no server between."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(HERE / "feast_repo"))
    references = [f"features:{name}" for name in NAMES]
    return lambda ids: store.get_online_features(features=references, entity_rows={"entity_id": ids})


def _post(url: str):
    """urllib3 by itself: `requests`, which is built on it, takes longer."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=1)

    def post(body: dict) -> dict:
        payload = json.dumps(body).encode()
        response = pool.request("POST", url, body=payload, headers={"Content-Type": "application/json"})
        if response.status != 200:
            raise RuntimeError(f"{url} answers {response.status}: {response.data[:500]!r}")
        return json.loads(response.data)

    return post


KINDS = {
    "ours, matrix": ours_matrix,
    "ours, rows": ours_rows,
    "Feast SDK, to_dict": feast_sdk_to_dict,
    "Feast SDK, to_df": feast_sdk_to_df,
    "Feast server, HTTP": feast_http,
    "Django REST, HTTP": django_http,
}


def main(kind: str, entities: str, seconds: str, seed: str, target: str) -> None:
    read = KINDS[kind](target)
    made = [(numbers, ids_of(numbers)) for numbers in batches(int(entities), BATCHES_MADE, int(seed))]
    for numbers, ids in made[:CHECKED]:
        check(kind, numbers, read(ids))
    times = []
    started = time.perf_counter()
    while (begin := time.perf_counter()) - started < float(seconds):
        read(made[len(times) % BATCHES_MADE][1])
        times.append(time.perf_counter() - begin)
    p50, p99 = (numpy.percentile(times, [50, 99]) * 1e6).tolist()
    print(json.dumps({"calls": len(times), "calls_per_second": len(times) / sum(times), "p50_us": p50, "p99_us": p99}))


if __name__ == "__main__":
    main(*sys.argv[1:])
