"""A YAML document that knows in which line each of its values stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Location = tuple[int | str, ...]


class YAMLDocumentError(ValueError):
    """A text is no YAML document.

    Attributes:
        line: where.
    """

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class YAMLDocument:
    """What a document says.

    Attributes:
        data: as Python's values.
        root: as YAML's nodes; None: it is empty.
    """

    data: Any
    root: yaml.Node | None

    @classmethod
    def parse(cls, text: str) -> YAMLDocument:
        """Reads it; YAML's own plain types alone.

        Raises:
            YAMLDocumentError: it is not one; no value is repeated.
        """
        loader = Loader(text)
        try:
            root = loader.get_single_node()
            return cls(None if root is None else loader.construct_document(root), root)
        except (yaml.scanner.ScannerError, yaml.parser.ParserError) as error:
            raise YAMLDocumentError(f"this is not YAML: {error.problem}", _line(error)) from None
        except yaml.MarkedYAMLError as error:
            raise YAMLDocumentError("this is not YAML of plain values", _line(error)) from None
        except (yaml.YAMLError, ValueError, RecursionError):  # no text; a date that never was
            raise YAMLDocumentError("this is not YAML of plain values") from None
        finally:
            loader.dispose()

    def node(self, where: Location) -> tuple[yaml.Node | None, bool]:
        """Returns the node of a place, or the last one on the way to it, and whether it is it."""
        node = self.root
        for step in where:
            child = _child(node, step)
            if child is None:
                return node, False
            node = child
        return node, True

    def line(self, where: Location) -> int:
        """Returns the line of a place, or of what it should be in."""
        node, _ = self.node(where)
        return 1 if node is None else int(node.start_mark.line) + 1

    def doubles(self, where: Location) -> list[str]:
        """Returns the names that a mapping has twice, of which YAML itself takes the last."""
        node, is_there = self.node(where)
        if not (is_there and isinstance(node, yaml.MappingNode)):
            return []
        names = [str(name.value) for name, _ in node.value]
        return sorted({name for name in names if names.count(name) > 1})


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return int(mark.line) + 1 if mark else 1


def _child(node: yaml.Node | None, step: int | str) -> yaml.Node | None:
    children: dict[int | str, yaml.Node] = {}
    if isinstance(node, yaml.MappingNode):
        children = {name.value: value for name, value in node.value if isinstance(name.value, str)}
    elif isinstance(node, yaml.SequenceNode):
        children = dict(enumerate(node.value))
    return children.get(step)
