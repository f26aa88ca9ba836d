"""The contract between the gateway and the two services, and nothing else.

A module may enter here only if both ends of a call must agree on it:

- `internvl/v1`: the messages. Generated code is checked in (`make protos`) so that a clone runs,
  type checks and builds images without protoc. It is made by grpcio-tools 1.75 (protobuf 6.31
  gencode): TensorRT-LLM 1.2.1 brings protobuf 6.33, and code made by 7.x refuses that runtime.
- `errors.py`: which exception is which gRPC status, in both directions.
- `identity.py`: how an embedding's id follows from the file, the recipe and the tile cap. The
  gateway names the embedding before the vision service has seen the image: both derive it alike.
- `serving.py`: limits, health, reflection, the error interceptor, request ids, drain.
- `logs.py`: log set-up, and the request id as context variable and call metadata.
"""
