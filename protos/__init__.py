"""The contract, and what all three processes do alike; no tensor library.

A module may enter here if both ends of a call must agree on it, or if all three processes do it:

- `internvl/v1`: the messages. Generated code is checked in (`make protos`) so that a clone runs,
  type checks and builds images without protoc. It is made by grpcio-tools 1.75 (protobuf 6.31
  gencode): TensorRT-LLM 1.2.1 brings protobuf 6.33, and code made by 7.x refuses that runtime.
- `checkpoint/`: a checkpoint folder, as both services find and read it, and the fingerprint by
  which the gateway sees whether it is the same for both.
- `identity.py`: what names an image embedding. The gateway names it before the vision service has
  seen the image: both derive the name alike.
- `signature.py`: proof that a vision service made an embedding's rows; the LLM service checks it.
- `errors.py`: the error vocabulary, free of gRPC; `status.py`: its gRPC status, both ways.
- `transport.py`: sizes and options that both ends of a connection share.
- `process/`: how a process runs: `settings.py` its options, `logs.py` its log and the request id,
  `server.py` a gRPC server from health to drain, `calls.py` what happens to each of its calls,
  `doctor.py` what this machine can run.
"""

import os

# Read when gRPC is imported. What it writes below errors is no line of our logs, and it does so of
# each handshake that fails: strangers could fill a disk with it.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
