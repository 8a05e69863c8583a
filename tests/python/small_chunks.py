"""Sends many small messages on streams of BulkUpsert over one channel, and begins to read the answers only when all were handed to
gRPC or gRPC takes no more; meanwhile it makes other calls on that channel. Ends with 0 if every message was answered, in order."""

import argparse
import sys
import threading
import time

import grpc

SERVICE = "/featurestore.v1.FeatureStoreService/"
# A GetFeaturesRequest, encoded: entity_ids (field 2) = ["a"].
READ = b"\x12\x01a"


def varint(number: int) -> bytes:
    more = bytes([number & 0x7F | (0x80 if number > 0x7F else 0)])
    return more + (varint(number >> 7) if number > 0x7F else b"")


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(sequence: int, records: int) -> bytes:
    """A BulkUpsertRequest, encoded: sequence (field 2), and records (field 3) of entity_id (field 1)."""
    return varint(2 << 3) + varint(sequence) + field(3, field(1, b"python")) * records


def sequence_of(answer: bytes) -> int:
    """Of a BulkUpsertResponse, encoded: sequence (field 1), which is the first of its fields that is not zero."""
    number, at = 0, 1
    while answer:
        number |= (answer[at] & 0x7F) << 7 * (at - 1)
        if answer[at] < 0x80:
            return number
        at += 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="where the server listens, host:port")
    parser.add_argument("--messages", type=int, required=True, help="on each stream")
    parser.add_argument("--records", type=int, required=True, help="in each message")
    parser.add_argument("--streams", type=int, required=True, help="at once")
    given = parser.parse_args()

    with grpc.insecure_channel(given.target) as channel:
        sent = [0] * given.streams

        def messages(stream: int):
            for sequence in range(1, given.messages + 1):
                sent[stream] = sequence
                yield message(sequence, given.records)

        bulk, read = channel.stream_stream(SERVICE + "BulkUpsert"), channel.unary_unary(SERVICE + "GetFeatures")
        answers = [bulk(messages(stream), timeout=300) for stream in range(given.streams)]
        before, reads = None, 0
        while before != sent:
            before = list(sent)
            for _ in range(5):
                read(READ, timeout=20)
                reads += 1
                time.sleep(0.05)
        print(f"{sent} messages were taken unread, and {reads} other calls were answered")

        failures = []

        def check(stream: int) -> None:
            try:
                got = [sequence_of(answer) for answer in answers[stream]]
            except grpc.RpcError as error:
                failures.append(f"stream {stream}: {error.code()}: {error.details()}")
                return
            if got != list(range(1, given.messages + 1)):
                failures.append(f"stream {stream}: {len(got)} answers, not in order: {got[:10]}")

        threads = [threading.Thread(target=check, args=(stream,)) for stream in range(given.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("\n".join(failures) or "all were answered")
        return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
