"""The TensorRT engine: plans for the vision tower, built once and then served.

- `record.py` says what a plan was made from: the builder writes the record, the engine reads it.
- `engine.py` runs a plan on a CUDA stream.
- `build.py` is the command `internvl-vision-build`. `vit_graph.py` writes the tower as an ONNX
  graph, from the pieces in `onnx_graph.py`; `builder.py` makes a plan of the graph: a program for
  one GPU and one version of TensorRT.
- `doctor.py` says what is missing here to run plans or to build them.
"""
