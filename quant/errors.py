"""Errors that a user sees.  Each says where, what, what was expected, what was got, and what to do."""

from __future__ import annotations


class IsobitError(Exception):
    """Any failure with a message for the user; the command line prints it and exits with 2 (CheckError: 1)."""


class ExprError(IsobitError):
    """A definition left the integer language, or a width, range or bound could not be proved."""


class CheckError(IsobitError):
    """A Program is not well formed, or one of its values could overflow."""


class InputError(IsobitError):
    """A file, an array or an argument from the user cannot be used."""
