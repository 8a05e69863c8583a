"""Calls two servers with a service config, of which one sheds every call: what it promises to clients must be so.

Without the retry policy about half of the calls are answered RESOURCE_EXHAUSTED; with it every one is answered OK, by
the other server, and so is a write with a request_id. Any surprise ends the program with exit code 1.
"""

import argparse
import collections
import json
import pathlib
import sys
import time
from typing import Any

import grpc

import reflection_tour

CALLS = 4  # each may fail once, and after the fifth failure the policy's retryThrottling stops retries


def outcomes(service_config: dict[str, Any], arguments: argparse.Namespace) -> collections.Counter[str]:
    """Reads and a write over a new channel to both servers: how many ended with which code."""
    target = f"ipv4:{arguments.full},{arguments.other}"
    options = [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.default_authority", "featurestore"),  # two addresses are none
        ("grpc.use_local_subchannel_pool", 1),
    ]
    counted: collections.Counter[str] = collections.Counter()
    with grpc.insecure_channel(arguments.other) as direct:
        tourist = reflection_tour.Tourist(direct)
        tourist.row("A")  # the descriptors are there now
        with grpc.insecure_channel(target, options=options) as channel:
            wait_for_both(channel)
            tourist.channel = channel
            for n in range(CALLS):
                try:
                    if n == CALLS - 1:
                        record = {"entity_id": "written with a request_id"}
                        tourist.call("UpsertFeatures", request_id="retry-policy-1", record=record)
                    else:
                        reflection_tour.check(tourist.row("A")["status"] == "ROW_STATUS_FOUND", "A is not found")
                    counted["OK"] += 1
                except grpc.RpcError as error:
                    counted[error.code().name] += 1
    return counted


def wait_for_both(channel: grpc.Channel) -> None:
    """round_robin begins with one connection. Info has no retry policy, so its answers show which server was asked."""
    info = channel.unary_unary(f"/{reflection_tour.SERVICE}/Info")
    answered: set[str] = set()
    for _ in range(1000):
        try:
            info(b"", timeout=30, wait_for_ready=True)
            answered.add("other")
        except grpc.RpcError as error:
            reflection_tour.check(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            answered.add("full")
        if answered == {"full", "other"}:
            return
        time.sleep(0.01)
    raise reflection_tour.Surprise(f"only one server answers: {answered}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service-config", required=True, type=pathlib.Path, help="a JSON file")
    parser.add_argument("--full", required=True, help="a server that sheds every call but health, host:port")
    parser.add_argument("--other", required=True, help="a server over the same tiers, which has the record A")
    arguments = parser.parse_args()

    service_config = json.loads(arguments.service_config.read_text())
    without = {name: value for name, value in service_config.items() if name != "methodConfig"}
    try:
        shed = outcomes(without, arguments)
        print(f"without the retry policy: {dict(shed)}")
        reflection_tour.check(shed["RESOURCE_EXHAUSTED"] > 0 and shed["OK"] > 0, "it is not balanced, or none shed")
        retried = outcomes(service_config, arguments)
        print(f"with the retry policy: {dict(retried)}")
        reflection_tour.check(retried == {"OK": CALLS}, "not every call was answered by the other server")
    except (reflection_tour.Surprise, grpc.RpcError) as surprise:
        print(f"FAILED: {surprise}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
