"""Reads /metrics in both formats with Prometheus' own parsers, which refuse what is not as their formats have it.

Output: one line a family of the OpenMetrics text, its name and its type.
"""

import argparse
import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_prometheus

# As Prometheus 3 asks.
PREFERS_OPENMETRICS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def scrape(url: str, accept: str, content_type: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        assert answer.headers["Content-Type"] == content_type, answer.headers["Content-Type"]
        return answer.read().decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    url = parser.parse_args().url

    openmetrics = scrape(url, PREFERS_OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    prometheus = scrape(url, "*/*", "text/plain; version=0.0.4; charset=utf-8")
    families = list(read_openmetrics(openmetrics))

    def samples(families: list) -> set:
        return {(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples}

    # Both say the same.
    difference = samples(families) ^ samples(list(read_prometheus(prometheus)))
    assert not difference, difference
    for family in families:
        assert family.documentation.endswith("."), family
        assert family.unit or not family.name.endswith(("_seconds", "_bytes")), family
        print(family.name, family.type)
    return 0


if __name__ == "__main__":
    sys.exit(main())
