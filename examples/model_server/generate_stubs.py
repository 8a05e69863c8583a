"""Generates the Python stubs of the feature store's API into `generated/`: run it once, at install.

The stubs are not committed; they belong to the installed grpcio-tools and follow the proto.
"""

import importlib.resources
import pathlib
import sys

from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTOS = HERE.parent.parent / "proto"
GENERATED = HERE / "generated"


def main() -> int:
    GENERATED.mkdir(exist_ok=True)
    google = importlib.resources.files("grpc_tools") / "_proto"
    return protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={google}",
            f"--python_out={GENERATED}",
            f"--pyi_out={GENERATED}",
            f"--grpc_python_out={GENERATED}",
            "featurestore/v1/featurestore.proto",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
