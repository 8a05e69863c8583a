"""Prints the status of a health name, by Check once or by Watch at each change.

Output: one line a status (SERVING, NOT_SERVING, SERVICE_UNKNOWN, UNKNOWN), written at once. Exit code 0 when a status
was told (with --until: that one), 1 otherwise.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

STATUS = health_pb2.HealthCheckResponse.ServingStatus


def watch(stub: health_pb2_grpc.HealthStub, request: health_pb2.HealthCheckRequest, timeout: float) -> Iterator[str]:
    for answer in stub.Watch(request, timeout=timeout):
        yield STATUS.Name(answer.status)


def poll(stub: health_pb2_grpc.HealthStub, request: health_pb2.HealthCheckRequest, timeout: float) -> Iterator[str]:
    end = time.monotonic() + timeout
    while (left := end - time.monotonic()) > 0:
        try:
            yield STATUS.Name(stub.Check(request, timeout=left).status)
        except grpc.RpcError as error:
            # Check has no other way to say what Watch calls SERVICE_UNKNOWN.
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            yield "SERVICE_UNKNOWN"
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="where the server listens, host:port")
    parser.add_argument("--watch", action="store_true", help="use Watch: print every change until --until or --timeout")
    parser.add_argument("--until", choices=STATUS.keys(), help="go on until this status is told")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds (%(default)s)")
    parser.add_argument("service", nargs="?", default="", help='the health name; none: "", the whole server')
    arguments = parser.parse_args()

    told = None
    try:
        with grpc.insecure_channel(arguments.target) as channel:
            ask = watch if arguments.watch else poll
            request = health_pb2.HealthCheckRequest(service=arguments.service)
            for status in ask(health_pb2_grpc.HealthStub(channel), request, arguments.timeout):
                if status != told:
                    print(status, flush=True)
                told = status
                if status == arguments.until or not (arguments.watch or arguments.until):
                    return 0
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED or told is None:
            print(f"FAILED: {arguments.target} answered {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    if arguments.until or told is None:
        print(f"FAILED: {arguments.until or 'no status'} within {arguments.timeout:g} s, but {told}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
