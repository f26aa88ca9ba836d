"""Decoding in processes of its own: what a codec does, or is made to do, hurts no one else.

1. `headers.py` reads what a file says of itself, and `cost.py` what decoding it will take.
2. `waiting.py` is the line of images that wait until a worker and enough memory are free.
3. `process.py` is the service's end of a worker, `worker.py` the program that it runs; between
   them go one line of JSON each way and two files in memory (`shared.py`): the image and its tiles.
4. `structure.py` counts, in the worker, what would make a decoder slow.
"""
