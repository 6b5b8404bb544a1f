from __future__ import annotations

from pathlib import Path

import pytest

from vditc.errors import InputError
from vditc.toml_data import Table


def table(path: Path, text: str) -> Table:
    path.write_text(text)
    return Table.load(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.toml"


def test_values_of_every_kind(file: Path) -> None:
    found = table(file, 'n = 1\nx = 2\nwords = ["a", "b"]\n[sub]\nok = true\n[[many]]\n[[many]]\nk = 1\n')
    assert found.need("n", int) == 1
    x = found.take("x", float)
    assert (x, type(x)) == (2.0, float)
    assert found.strings("words") == ("a", "b")
    sub = found.table("sub")
    assert sub is not None and sub.take("ok", bool) is True
    assert [t.take("k", int) for t in found.tables("many")] == [None, 1]
    found.done()


def test_absent_keys(file: Path) -> None:
    found = table(file, "")
    assert (found.take("a", int), found.take("a", int, 3)) == (None, 3)
    assert (found.strings("b"), found.table("c"), found.tables("d")) == ((), None, [])
    with pytest.raises(InputError, match=r"a\.toml: found no such key; wanted name = str; add name"):
        found.need("name", str)


@pytest.mark.parametrize(("text", "kind"), [("a = true", int), ("a = 1", bool), ("a = 1.5", int), ('a = "1"', int), ("a = 1", str)])
def test_wrong_types_are_refused(file: Path, text: str, kind: type) -> None:
    with pytest.raises(InputError, match=rf"a\.toml: found a = .*; wanted {kind.__name__}"):
        table(file, text).take("a", kind)


def test_lists_hold_what_they_should(file: Path) -> None:
    with pytest.raises(InputError, match=r"found a = \['x', 1\]; wanted a list of strings"):
        table(file, 'a = ["x", 1]').strings("a")
    with pytest.raises(InputError, match=r"found a = \[1\]; wanted \[\[a\]\] tables"):
        table(file, "a = [1]").tables("a")


def test_unread_keys_are_refused_where_they_are(file: Path) -> None:
    found = table(file, "good = 1\nbda = 2\n[[rules]]\n[[rules]]\nwieght = 1\n")
    found.take("good", int)
    with pytest.raises(InputError, match=r"found unknown keys bda, rules; wanted only good; remove or correct the spelling"):
        found.done()
    second = found.tables("rules")[1]
    with pytest.raises(InputError, match=r"a\.toml \[\[rules\]\] #2: found unknown key wieght"):
        second.done()


def test_unreadable_files(file: Path) -> None:
    with pytest.raises(InputError, match="wanted a readable TOML file"):
        Table.load(file)
    with pytest.raises(InputError, match=r"found no TOML \(.*line 1"):
        table(file, "a = = 1")
    file.write_bytes(b"a = '\xff'")
    with pytest.raises(InputError, match="found no TOML"):
        Table.load(file)
