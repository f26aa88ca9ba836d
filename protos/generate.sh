#!/bin/sh
# Generates protos/internvl/v1/*_pb2* into a folder, by default the repository itself. `make protos`
# runs it with the dev environment first in PATH, where python and the plugins of mypy-protobuf are.
set -e
cd "$(dirname "$0")/.."
out=${1:-.}
exec python -m grpc_tools.protoc -I . "--python_out=$out" "--grpc_python_out=$out" \
  "--mypy_out=$out" "--mypy_grpc_out=$out" protos/internvl/v1/*.proto
