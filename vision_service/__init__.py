"""The vision service: an encoded image file in, its embedding out.

A request passes through the modules in this order:

1. `servicer.py` turns messages into plain values and back; nothing else knows the protos.
2. `encoder.py` names the embedding and asks the cache; on a miss it does steps 3 to 5.
3. `preprocessor.py` runs `tiling.py` (file -> uint8 tiles) on a bounded pool of threads.
4. `batcher.py` joins the tiles of all requests and calls the engine on its one thread.
5. `engines/` holds the engines: tiles -> embeddings.

`checkpoint.py` reads the checkpoint, `recipe.py` says what decides an embedding, `settings.py` has
the options, and `__main__.py` puts it all together.
"""
