"""The vision service: an encoded image file in, its embedding out.

A request passes through the modules in this order:

1. `wire.py` reads the message, and builds the answer's messages from the result; `servicer.py` is
   what gRPC calls. Nothing else knows the protos.
2. `encoder.py` checks the request, names the embedding and asks `cache.py`; on a miss it goes on.
3. `preprocessor.py` has the image decoded and tiled (`tiling.py`: file -> uint8 tiles) by one of a
   few worker processes; `pictures/` holds what a file becomes, `decoding/` what it takes to trust
   none of them.
4. `batcher.py` joins the tiles of all requests and calls the engine on its one thread.
5. `engines/` holds the engines: tiles -> embeddings. `create.py` there knows which there are.

`checkpoint.py` reads the checkpoint, `recipe.py` says what decides an embedding, `embedding.py`
what one is, `settings.py` has the options, and `__main__.py` puts it all together. Two more
programs ask whether it works here: `doctor.py` without a checkpoint, `selftest.py` with one.
"""
