"""Errors that a user can mend. Each message says where, what was found, what was expected and what to do."""

from pydantic import ValidationError


class RasidError(Exception):
    """Base of all errors that Rasid raises on purpose; the command line shows the message without a traceback."""


class DataError(RasidError):
    """An article or a corpus file breaks the record format or the ontology."""


class ConfigError(RasidError):
    """A run config or an ontology file is wrong."""


class ModelError(RasidError):
    """A checkpoint is missing, incomplete or of another architecture."""


def describe(error: ValidationError) -> str:
    """All problems of a pydantic error on one line: `field.path: problem; field.path: problem`."""
    return "; ".join(f"{'.'.join(str(p) for p in e['loc']) or 'record'}: {e['msg']}" for e in error.errors())


def first_line(error: BaseException) -> str:
    """What an error of another library says, on one line; the name of its class if it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
