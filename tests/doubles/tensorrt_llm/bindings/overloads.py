"""Methods with several signatures, as the bindings have them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints

from .values import conforms


class Overloaded:
    """A method that calls the first of its functions whose signature the arguments fit.

    Attributes:
        functions: in the order in which the bindings define them.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.functions = functions

    def __get__(self, instance: object, owner: type) -> Any:
        return self if instance is None else partial(self._call, instance)

    def _call(self, *given: Any, **named: Any) -> Any:
        for function in self.functions:
            if _fits(function, given, named):
                return function(*given, **named)
        raise TypeError("incompatible function arguments")


def _fits(function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    try:
        bound = inspect.signature(function).bind(*given, **named)
    except TypeError:
        return False
    hints = get_type_hints(function, include_extras=True) | {"self": Any}
    return all(conforms(value, hints[name]) for name, value in bound.arguments.items())
