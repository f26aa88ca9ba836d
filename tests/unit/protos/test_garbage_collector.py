"""What a start has made is no work for the garbage collector any more."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: what is frozen is not freed there either.
PROGRAM = """
import gc
from protos.process.garbage_collector import freeze_started

class Node:
    pass

made, garbage = [Node() for _ in range(1000)], Node()
garbage.itself = garbage
del garbage
freeze_started()
later = Node()
seen = [each for each in gc.get_objects() if type(each) is Node]
print(len(made), gc.get_freeze_count() > 1000, seen == [later])
gc.unfreeze()
print(sum(type(each) is Node for each in gc.get_objects()))
"""


def test_only_what_comes_later_is_looked_through() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert result.stdout.decode().split("\n") == ["1000 True True", "1001", ""]
