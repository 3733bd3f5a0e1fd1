"""The integer expression language: one definition of a scalar computation, many interpretations of it."""

from isobit.quant.expr.language import bound, clip, clz, floordiv, select, table

__all__ = ["bound", "clip", "clz", "floordiv", "select", "table"]
