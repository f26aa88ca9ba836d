"""The vision engine in a process of its own, or in one beside a language model's.

`engine.py` is the service's side and `host.py` the other one. Tiles and embeddings lie in memory
that both map (`slots.py`), and messages say what is in it (`messages.py`).
"""
