"""Reads one entity as a client with OpenTelemetry's instrumentation does, and prints the trace id and the id of its span."""

import argparse
import sys

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

METHOD = "/featurestore.v1.FeatureStoreService/GetFeatures"
# A GetFeaturesRequest, encoded: entity_ids (field 2) = ["a"].
REQUEST = b"\x12\x01a"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="where the server listens, host:port")
    target = parser.parse_args().target

    finished = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(finished))
    trace.set_tracer_provider(provider)
    GrpcInstrumentorClient().instrument()
    with grpc.insecure_channel(target) as channel:
        channel.unary_unary(METHOD)(REQUEST, timeout=10)
    (span,) = finished.get_finished_spans()
    print(f"{span.context.trace_id:032x} {span.context.span_id:016x}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
