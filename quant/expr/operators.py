"""Python's operators, routed to the language's primitives: what a symbol and an interval have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from isobit.quant.errors import ExprError


class Operators(ABC):
    """A value whose operators are primitives by name; subclasses say what a primitive does to them."""

    @abstractmethod
    def apply(self, primitive: str, *args: Any) -> Any:
        """The primitive on `args`, of which at least one is of this class."""

    def __bool__(self) -> bool:
        raise ExprError("a definition branches on a value: use select(), or make the operand a parameter")

    def __add__(self, other: Any) -> Any:
        return self.apply("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return self.apply("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return self.apply("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.apply("sub", other, self)

    def __neg__(self) -> Any:
        return self.apply("sub", 0, self)

    def __mul__(self, other: Any) -> Any:
        return self.apply("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self.apply("mul", other, self)

    def __lshift__(self, other: Any) -> Any:
        return self.apply("shl", self, other)

    def __rlshift__(self, other: Any) -> Any:
        return self.apply("shl", other, self)

    def __rshift__(self, other: Any) -> Any:
        return self.apply("shr", self, other)

    def __rrshift__(self, other: Any) -> Any:
        return self.apply("shr", other, self)

    def __and__(self, other: Any) -> Any:
        return self.apply("and", self, other)

    def __rand__(self, other: Any) -> Any:
        return self.apply("and", other, self)

    def __or__(self, other: Any) -> Any:
        return self.apply("or", self, other)

    def __ror__(self, other: Any) -> Any:
        return self.apply("or", other, self)

    def __xor__(self, other: Any) -> Any:
        return self.apply("xor", self, other)

    def __rxor__(self, other: Any) -> Any:
        return self.apply("xor", other, self)

    def __lt__(self, other: Any) -> Any:
        return self.apply("lt", self, other)

    def __gt__(self, other: Any) -> Any:
        return self.apply("lt", other, self)

    def __le__(self, other: Any) -> Any:
        return self.apply("le", self, other)

    def __ge__(self, other: Any) -> Any:
        return self.apply("le", other, self)
