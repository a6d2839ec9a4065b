"""Errors travel: what another process raises says the same here."""

from __future__ import annotations

import pickle

import pytest

from mconv.convert import errors
from mconv.convert.errors import MconvError, ShapeError

CLASSES = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, MconvError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling(kind: type[MconvError]) -> None:
    error = kind("what", "hint", "t", (1, 2), (2, 1)) if kind is ShapeError else kind("what", "hint")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.what, again.hint, again.exit_code) == ("what", "what", "hint", kind.exit_code)
    assert vars(again) == vars(error)


def test_the_closed_set() -> None:
    assert {kind.__name__: kind.exit_code for kind in CLASSES} == {
        "MconvError": 3, "SourceError": 3, "FormatError": 3, "MappingError": 3, "ShapeError": 3,
        "QuantizationError": 3, "ValidationError": 1, "UsageError": 2, "DiskError": 4, "PublishError": 5,
    }  # fmt: skip
