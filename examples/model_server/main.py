"""A model server whose features come from the feature store, checked against the data that it was loaded with.

Trains a classifier on scikit-learn's breast-cancer data, loads the data's 569 rows into the feature store, then
predicts from what the store answers. Every input must equal the original bit for bit and every prediction the one made
from the original; the exit code is 0 only then.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import grpc
import numpy
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from feature_client import FeatureClient, pb

VIEW = "breast_cancer"
MODEL_VERSION = "v1.0.0"
RECORDS_PER_MESSAGE = 100
ENTITIES_PER_CALL = 100


class Surprise(Exception):
    """The store answered something else than it should."""


class ModelServer:
    """Answers what the model says of entities that it knows by id only."""

    def __init__(self, model: RandomForestClassifier, client: FeatureClient, names: Sequence[str]) -> None:
        self._model = model
        self._client = client
        self._names = names

    def features(self, entity_ids: Sequence[str]) -> numpy.ndarray:
        """The model's input, one row an entity. A model must not guess at a missing number: it is refused here."""
        matrix = self._client.matrix(VIEW, entity_ids, self._names)
        if not matrix.all_present():
            raise Surprise("no number for " + "; ".join(matrix.absent(entity_ids, self._names)[:5]))
        return matrix.values

    def predict(self, features: numpy.ndarray) -> numpy.ndarray:
        """The probability of each class, one row an entity."""
        return self._model.predict_proba(features)


def record(entity_id: str, names: Sequence[str], numbers: Sequence[float]) -> pb.FeatureRecord:
    """One row of the data as the store takes it."""
    features = {name: pb.Value(double_val=number) for name, number in zip(names, numbers)}
    return pb.FeatureRecord(entity_id=entity_id, features=features)


def show_bad_name(client: FeatureClient, name: str) -> None:
    """Sends a feature name as it is in the data, and shows what the store says to it."""
    request = pb.BulkUpsertRequest(feature_view=VIEW, sequence=1, records=[record("bad-name", [name], [1.0])])
    (response,) = client.bulk_upsert([request])
    expected = f'records[0].features["{name}"]'
    if (response.written, response.failed, len(response.results)) != (0, 1, 1):
        raise Surprise(f"the feature name {name!r} was not refused: {response}")
    (result,) = response.results
    if result.outcome != pb.WRITE_OUTCOME_FAILED or result.error.field != expected or not result.error.reason:
        raise Surprise(f"the feature name {name!r} was refused, but not at {expected}: {result}")
    code = next(code.name for code in grpc.StatusCode if code.value[0] == result.error.code)
    print(f"the store's answer to the feature name {name!r}:")
    print(f"  field:   {result.error.field}")
    print(f"  code:    {code}, reason {result.error.reason}")
    print(f"  message: {result.error.message}")
    print(f"so spaces become underscores: {name!r} -> {mapped(name)!r}")


def mapped(name: str) -> str:
    """The data's feature name as the store takes it."""
    return name.replace(" ", "_")


def load(client: FeatureClient, entity_ids: Sequence[str], names: Sequence[str], data: numpy.ndarray) -> None:
    """Writes every row of the data and checks the answer to each."""
    requests = [
        pb.BulkUpsertRequest(
            feature_view=VIEW,
            sequence=number,
            records=[
                record(entity_id, names, row.tolist())
                for entity_id, row in zip(
                    entity_ids[start : start + RECORDS_PER_MESSAGE], data[start : start + RECORDS_PER_MESSAGE]
                )
            ],
            model_version=MODEL_VERSION,
            warm_cache=True,
            all_results=True,
        )
        for number, start in enumerate(range(0, len(data), RECORDS_PER_MESSAGE), start=1)
    ]
    begin = time.perf_counter()
    written = 0
    for request, response in zip(requests, client.bulk_upsert(requests), strict=True):
        for index, (sent, result) in enumerate(zip(request.records, response.results, strict=True)):
            told = (result.index, result.entity_id, result.outcome)
            if told != (index, sent.entity_id, pb.WRITE_OUTCOME_WRITTEN) or result.revision <= 0:
                raise Surprise(f"message {request.sequence}, record {index} ({sent.entity_id}): {result}")
        if (response.written, response.skipped_stale, response.failed) != (len(request.records), 0, 0):
            raise Surprise(f"the counts of message {request.sequence} do not fit its results: {response}")
        written += response.written
    seconds = time.perf_counter() - begin
    if written != len(data):
        raise Surprise(f"{written} of {len(data)} records were written")
    print(f"loaded {written} records of {len(names)} features in {len(requests)} messages, {seconds * 1000:.0f} ms")


def serve_and_compare(
    server: ModelServer, entity_ids: Sequence[str], data: numpy.ndarray, expected: numpy.ndarray, rounds: int
) -> None:
    """Predicts for every entity, in calls of up to 100 in random order, and compares with the original."""
    order = numpy.random.default_rng(0)
    reads = []
    predictions = 0
    for _ in range(rounds):
        shuffled = order.permutation(len(entity_ids))
        for start in range(0, len(shuffled), ENTITIES_PER_CALL):
            rows = shuffled[start : start + ENTITIES_PER_CALL]
            ids = [entity_ids[row] for row in rows]
            begin = time.perf_counter()
            features = server.features(ids)
            reads.append(time.perf_counter() - begin)
            if features.tobytes() != data[rows].tobytes():
                raise Surprise(f"the store's numbers are not the original's, bit for bit, among {ids[0]} ... {ids[-1]}")
            if server.predict(features).tobytes() != expected[rows].tobytes():
                raise Surprise(f"a prediction is not the original's, among {ids[0]} ... {ids[-1]}")
            predictions += len(rows)
    p50, p99 = (numpy.percentile(reads, percent) * 1000 for percent in (50, 99))
    count = f"{predictions} predictions for {len(entity_ids)} entities"
    print(f"{count}: every input and every prediction equals the original's")
    print(
        f"{len(reads)} calls of up to {ENTITIES_PER_CALL} entities x {data.shape[1]} features: "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, slowest {max(reads) * 1000:.2f} ms"
    )


def run(target: str, rounds: int) -> None:
    source = load_breast_cancer()
    data = numpy.ascontiguousarray(source.data, dtype="<f8")
    raw_names = [str(name) for name in source.feature_names]
    names = [mapped(name) for name in raw_names]
    entity_ids = [f"sample-{row:03}" for row in range(len(data))]

    train_rows, test_rows = train_test_split(numpy.arange(len(data)), random_state=0)
    # One job: its sum over the trees, and so the last bit, does not depend on the threads' order.
    model = RandomForestClassifier(random_state=0, n_jobs=1).fit(data[train_rows], source.target[train_rows])
    accuracy = model.score(data[test_rows], source.target[test_rows])
    print(f"trained on {len(train_rows)} of {len(data)} samples; {accuracy:.1%} right on the other {len(test_rows)}")
    expected = model.predict_proba(data)

    with FeatureClient(target) as client:
        info = client.info()
        print(f"feature store {info.version} at {target}: L1 {info.l1.kind}, L2 {info.l2.kind}")
        show_bad_name(client, raw_names[0])
        load(client, entity_ids, names, data)
        serve_and_compare(ModelServer(model, client, names), entity_ids, data, expected, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="127.0.0.1:50051", help="where the feature store listens (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="how often every entity is predicted (%(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        run(arguments.target, arguments.rounds)
    except Surprise as surprise:
        print(f"FAILED: {surprise}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"FAILED: {arguments.target} answered {error.code().name}: {error.details()}", file=sys.stderr)
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            print("Is the feature store running there? Start one: cargo run --release", file=sys.stderr)
        return 1
    print("OK")
    return 0


if __name__ == "__main__":
    sys.exit(main())
