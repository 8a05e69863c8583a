"""A client of the feature store to copy: channel options, deadlines, retries, and features as a numpy array.

It knows nothing of any model.
"""

import dataclasses
import json
import pathlib
import random
import sys
import time
from collections.abc import Iterator, Sequence

import grpc
import numpy
from google.rpc import error_details_pb2
from grpc_status import rpc_status

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "generated"))
try:
    from featurestore.v1 import featurestore_pb2 as pb
    from featurestore.v1 import featurestore_pb2_grpc
except ModuleNotFoundError as missing:
    if not (missing.name or "").startswith("featurestore"):
        raise
    sys.exit("the stubs are missing: run generate_stubs.py first")

SERVICE = "featurestore.v1.FeatureStoreService"

# Reads 2 s and writes 10 s are the server's own limits; waiting longer gains nothing. A bulk stream has no limit, so
# its deadline only bounds how long a load may hang.
READ_SECONDS = 2.0
WRITE_SECONDS = 10.0
BULK_SECONDS = 300.0

RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
BULK_ATTEMPTS = 5

# gRPC itself repeats calls that the server was too busy for or could not answer, within the call's deadline, and stops
# when most of them fail. A BulkUpsert is not in the list: FeatureClient.bulk_upsert resumes it where it broke.
RETRIES = {
    "methodConfig": [
        {
            "name": [
                {"service": SERVICE, "method": "GetFeatures"},
                {"service": SERVICE, "method": "UpsertFeatures"},  # safe with a request_id
                {"service": SERVICE, "method": "DeleteFeatures"},  # safe with a request_id
                {"service": SERVICE, "method": "Info"},
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": [code.name for code in RETRYABLE],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

OPTIONS = [
    ("grpc.service_config", json.dumps(RETRIES)),
    # gRPC's default is 4 MiB; the server answers up to 16 MiB (limits.max_response_bytes).
    ("grpc.max_receive_message_length", 16 << 20),
    # Notices a server that vanished without a word.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The features of some entities: one row each, in the order asked for, one column a feature."""

    values: numpy.ndarray  # float64, NaN where the status is not PRESENT
    field_statuses: numpy.ndarray  # of the values' shape, each a FieldStatus
    row_statuses: list[int]  # each a RowStatus
    degraded: bool  # a tier failed while answering: right, but perhaps slow

    def all_present(self) -> bool:
        """Whether every cell holds a number."""
        return bool((self.field_statuses == pb.FIELD_STATUS_PRESENT).all())

    def absent(self, entity_ids: Sequence[str], names: Sequence[str]) -> list[str]:
        """Says of each cell without a number, in words, what is there instead."""
        rows, columns = numpy.nonzero(self.field_statuses != pb.FIELD_STATUS_PRESENT)
        return [
            f"{entity_ids[row]}.{names[column]}: {pb.FieldStatus.Name(int(self.field_statuses[row, column]))}"
            f" (row {pb.RowStatus.Name(self.row_statuses[row])})"
            for row, column in zip(rows, columns)
        ]


class FeatureClient:
    """One channel to the feature store; use it as a context manager, share it between threads."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, options=OPTIONS)
        self._stub = featurestore_pb2_grpc.FeatureStoreServiceStub(self._channel)

    def __enter__(self) -> "FeatureClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def info(self) -> pb.InfoResponse:
        """Describes the server."""
        return self._stub.Info(pb.InfoRequest(), timeout=READ_SECONDS)

    def matrix(self, view: str, entity_ids: Sequence[str], names: Sequence[str]) -> Matrix:
        """Reads the named features of all entities in one call."""
        request = pb.GetFeaturesRequest(
            feature_view=view,
            entity_ids=entity_ids,
            feature_names=names,
            format=pb.RESPONSE_FORMAT_MATRIX_FLOAT64,
        )
        response = self._stub.GetFeatures(request, timeout=READ_SECONDS)
        matrix = response.matrix
        shape = (matrix.row_count, len(matrix.feature_names))
        return Matrix(
            # No copy and no loop: the response's bytes are the array.
            values=numpy.frombuffer(matrix.values, dtype="<f8").reshape(shape),
            field_statuses=numpy.frombuffer(matrix.field_statuses, dtype=numpy.uint8).reshape(shape),
            row_statuses=list(matrix.row_statuses),
            degraded=response.degraded,
        )

    def bulk_upsert(self, requests: Sequence[pb.BulkUpsertRequest]) -> Iterator[pb.BulkUpsertResponse]:
        """Writes a stream of messages and yields the answer to each, in order.

        A stream that breaks is resumed with the first message that has no answer: what was answered is durable, and
        records that are written twice are the same records.
        """
        answered = 0
        failures = 0
        while answered < len(requests):
            try:
                for response in self._stub.BulkUpsert(iter(requests[answered:]), timeout=BULK_SECONDS):
                    if response.sequence != requests[answered].sequence:
                        raise RuntimeError(f"answer {response.sequence} to message {requests[answered].sequence}")
                    answered += 1
                    failures = 0
                    yield response
                if answered < len(requests):
                    raise RuntimeError(f"the stream ended after {answered} of {len(requests)} answers")
            except grpc.RpcError as error:
                failures += 1
                if error.code() not in RETRYABLE or failures == BULK_ATTEMPTS:
                    raise
                time.sleep(retry_delay(error, failures))


def retry_delay(error: grpc.RpcError, failures: int) -> float:
    """How many seconds to wait: what the server's RetryInfo asks for, else ever longer; never in step with others."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.RetryInfo()
    asked = 0.0
    for detail in status.details if status else ():
        if detail.Unpack(info):
            asked = info.retry_delay.ToTimedelta().total_seconds()
    return max(asked, min(0.05 * 2**failures, 1.0)) * random.uniform(1.0, 1.2)
