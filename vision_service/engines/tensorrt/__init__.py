"""The builder of TensorRT plans: `internvl-vision-build --checkpoint ... --output ...`.

1. `settings.py` has the options, and `__main__.py` puts it all together.
2. `vit_graph.py` writes the tower as an ONNX graph, with the pieces that `onnx_graph.py` has.
3. `tensorrt_builder.py` makes a plan of the graph: a program for one GPU and one TensorRT.
4. `record.py` says what a plan was made from; the engine reads it before it runs the plan.
"""
