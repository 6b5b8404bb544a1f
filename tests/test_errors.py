from __future__ import annotations

import pytest

from vditc.errors import InputError, QualityError, VditcError


@pytest.mark.parametrize(("kind", "code"), [(VditcError, 1), (InputError, 2), (QualityError, 3)])
def test_exit_codes_and_parts(kind: type[VditcError], code: int) -> None:
    error = kind(found="a", wanted="b", where="c", fix="d")
    assert str(error) == "c: found a; wanted b; d"
    assert (error.exit_code, error.found, error.wanted, error.where, error.fix) == (code, "a", "b", "c", "d")
    assert isinstance(error, VditcError)
