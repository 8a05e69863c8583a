"""Takes the tour of docs/tour.md with a client that knows nothing but reflection: no generated code, no proto file.

The steps can be named one by one, so that a test can empty a cache or stop a server between them. Any surprise ends
the program with exit code 1 and says what it was.
"""

import argparse
import sys
import time
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "featurestore.v1.FeatureStoreService"
HEALTH = "grpc.health.v1.Health"
CALL_SECONDS = 10.0


class Surprise(Exception):
    """The server answered something else than it should."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Surprise(what)


class Tourist:
    """Calls methods by name; requests and answers are JSON, as the reflected descriptors say."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.service = DescriptorPool(self.database).FindServiceByName(SERVICE)

    def call(self, method_name: str, **request: Any) -> dict[str, Any]:
        method = self.service.FindMethodByName(method_name)
        check(method is not None, f"{SERVICE} has no method {method_name}")
        message = json_format.ParseDict(request, message_factory.GetMessageClass(method.input_type)())
        path = f"/{SERVICE}/{method_name}"
        serializer = type(message).SerializeToString
        parser = message_factory.GetMessageClass(method.output_type).FromString
        if method.client_streaming:
            answers = self.channel.stream_stream(path, serializer, parser)(iter([message]), timeout=CALL_SECONDS)
            (answer,) = answers
        else:
            answer = self.channel.unary_unary(path, serializer, parser)(message, timeout=CALL_SECONDS)
        return as_json(answer)

    def row(self, entity_id: str) -> dict[str, Any]:
        (row,) = self.call("GetFeatures", entity_ids=[entity_id])["rows"]
        check(row["entity_id"] == entity_id, f"asked for {entity_id}, was answered {row['entity_id']}")
        return row


def as_json(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def services(tourist: Tourist, _: argparse.Namespace) -> None:
    """Lists the services, by both versions of reflection, and checks that every element has its comment."""
    listed = sorted(tourist.database.get_services())
    print("services: " + ", ".join(listed))
    check(SERVICE in listed and HEALTH in listed, f"{SERVICE} or {HEALTH} is not listed")
    v1 = services_by_v1(tourist.channel)
    check({SERVICE, HEALTH} <= set(v1), f"grpc.reflection.v1 lists {v1}")

    file = tourist.database.FindFileContainingSymbol(SERVICE)
    commented = {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip() or location.trailing_comments.strip()
    }
    elements = list(commentable(file))
    bare = [name for path, name in elements if path not in commented]
    check(not bare, f"no comment through reflection on {', '.join(bare[:10])}")
    print(f"comments: on all {len(elements)} services, methods, messages, fields, enums and values")


def services_by_v1(channel: grpc.Channel) -> list[str]:
    # The package speaks v1alpha only; v1's messages are the same under another name.
    stream = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stream(iter([request]), timeout=CALL_SECONDS)
    return sorted(service.name for service in answer.list_services_response.service)


def commentable(file: descriptor_pb2.FileDescriptorProto):
    """Each element that a comment belongs to: its path, as SourceCodeInfo counts, and its name."""
    for m, message in enumerate(file.message_type):
        yield (4, m), message.name
        for f, field in enumerate(message.field):
            yield (4, m, 2, f), f"{message.name}.{field.name}"
    for e, enum in enumerate(file.enum_type):
        yield (5, e), enum.name
        for v, value in enumerate(enum.value):
            yield (5, e, 2, v), value.name
    for s, service in enumerate(file.service):
        yield (6, s), service.name
        for m, method in enumerate(service.method):
            yield (6, s, 2, m), f"{service.name}.{method.name}"


def upsert(tourist: Tourist, _: argparse.Namespace) -> None:
    """Writes CUST12345."""
    answer = tourist.call("UpsertFeatures", record=customer("CUST12345", 0.85, 0.30, 36))
    print(f"upsert CUST12345: {answer['outcome']}, revision {answer['revision']}, expires {answer['expire_time']}")
    check(answer["outcome"] == "WRITE_OUTCOME_WRITTEN", f"upsert answered {answer}")
    check(int(answer["revision"]) > 0, f"upsert answered {answer}")


def customer(entity_id: str, payment_history: float, utilization: float, months: int) -> dict[str, Any]:
    return {
        "entity_id": entity_id,
        "features": {
            "payment_history_score": {"double_val": payment_history},
            "credit_utilization": {"double_val": utilization},
            "account_age_months": {"int64_val": months},
        },
        "model_version": "v1.0.0",
        "ttl": "604800s",
    }


def read(tourist: Tourist, arguments: argparse.Namespace) -> None:
    """Reads CUST12345 and tells which tier answered."""
    row = tourist.row("CUST12345")
    print(f"read CUST12345: {row['status']}, source {row['source']}, {row['features']}")
    check(row["status"] == "ROW_STATUS_FOUND", f"read answered {row}")
    check(row["features"] == customer("CUST12345", 0.85, 0.30, "36")["features"], f"read answered {row['features']}")
    check(row["model_version"] == "v1.0.0", f"read answered model version {row['model_version']!r}")
    expected = ("SOURCE_L1", "SOURCE_L2") if arguments.expect_source is None else (f"SOURCE_{arguments.expect_source}",)
    check(row["source"] in expected, f"{row['source']} answered, not {' or '.join(expected)}")


def bulk(tourist: Tourist, _: argparse.Namespace) -> None:
    """Writes CUST001 and CUST002 in one call and reads them."""
    records = [customer("CUST001", 0.91, 0.12, 84), customer("CUST002", 0.42, 0.77, 9)]
    answer = tourist.call("BulkUpsert", sequence=7, records=records, all_results=True)
    print(f"bulk CUST001, CUST002: {answer['written']} written, {answer['failed']} failed")
    counts = tuple(int(answer[name]) for name in ("sequence", "written", "skipped_stale", "failed"))
    check(counts == (7, 2, 0, 0), f"bulk answered {answer}")
    outcomes = [(result["entity_id"], result["outcome"]) for result in answer["results"]]
    expected = [("CUST001", "WRITE_OUTCOME_WRITTEN"), ("CUST002", "WRITE_OUTCOME_WRITTEN")]
    check(outcomes == expected, f"bulk answered {outcomes}")
    for entity_id in ("CUST001", "CUST002"):
        row = tourist.row(entity_id)
        check(row["status"] == "ROW_STATUS_FOUND", f"{entity_id} was written and reads {row}")


def delete(tourist: Tourist, _: argparse.Namespace) -> None:
    """Deletes CUST12345, which is gone at once, from both tiers."""
    (result,) = tourist.call("DeleteFeatures", entity_ids=["CUST12345"])["results"]
    check(result["outcome"] == "WRITE_OUTCOME_DELETED", f"delete answered {result}")
    for consistency in ("CONSISTENCY_CACHED", "CONSISTENCY_STRONG"):
        answer = tourist.call("GetFeatures", entity_ids=["CUST12345"], consistency=consistency)
        (row,) = answer["rows"]
        print(f"delete CUST12345, then read {consistency}: {row['status']}")
        check(row["status"] == "ROW_STATUS_NOT_FOUND", f"deleted, and reads {row}")
        check(not row["features"], f"deleted, and reads {row}")


def expire(tourist: Tourist, _: argparse.Namespace) -> None:
    """Writes CUST777 with a ttl of 2 s and waits until it has expired."""
    begin = time.monotonic()
    tourist.call("UpsertFeatures", record=customer("CUST777", 0.5, 0.5, 1) | {"ttl": "2s"})
    status = ""
    while time.monotonic() - begin < 20:
        row = tourist.row("CUST777")
        status = row["status"]
        if status != "ROW_STATUS_FOUND":
            break
        time.sleep(0.05)
    seconds = time.monotonic() - begin
    print(f"CUST777 with ttl 2 s: {status} after {seconds:.1f} s")
    check(status in ("ROW_STATUS_EXPIRED", "ROW_STATUS_NOT_FOUND"), f"past its ttl it reads {status}")
    check(seconds >= 1.9, f"it expired after {seconds:.1f} s")


def info(tourist: Tourist, _: argparse.Namespace) -> None:
    """Shows hits, misses and the hit ratio, and checks that they fit one another."""
    before = tourist.call("Info")
    tourist.row("CUST001")
    after = tourist.call("Info")
    for name in ("l1", "l2"):
        tier = after[name]
        hits, misses, ratio = int(tier["hits"]), int(tier["misses"]), float(tier["hit_ratio"])
        print(f"info {name} ({tier['kind']}): {hits} hits, {misses} misses, hit ratio {ratio:.3f}")
        expected = hits / (hits + misses) if hits + misses else 0.0
        check(abs(ratio - expected) < 1e-9, f"{name}: {hits} hits and {misses} misses are not a ratio of {ratio}")
    looked_up = [int(answer["l1"]["hits"]) + int(answer["l1"]["misses"]) for answer in (before, after)]
    check(looked_up[1] > looked_up[0], "a read changed neither hits nor misses of l1")


STEPS = {step.__name__: step for step in (services, upsert, read, bulk, delete, expire, info)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="where the server listens, host:port")
    parser.add_argument("--expect-source", choices=["L1", "L2"], help="the tier that must answer the step read")
    parser.add_argument("steps", nargs="*", metavar="step", help=f"{', '.join(STEPS)}; none: all, in this order")
    arguments = parser.parse_args()
    unknown = [step for step in arguments.steps if step not in STEPS]
    if unknown:
        parser.error(f"no such step: {', '.join(unknown)}")
    try:
        with grpc.insecure_channel(arguments.target) as channel:
            tourist = Tourist(channel)
            for step in arguments.steps or STEPS:
                STEPS[step](tourist, arguments)
    except Surprise as surprise:
        print(f"FAILED: {surprise}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"FAILED: {arguments.target} answered {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except KeyError as missing:
        # What the pool, the database and a JSON answer say when something is not there.
        print(f"FAILED: {missing} is not there", file=sys.stderr)
        return 1
    print("OK")
    return 0


if __name__ == "__main__":
    sys.exit(main())
