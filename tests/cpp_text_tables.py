"""Tables of libvditc's text side; `python tests/cpp_text_tables.py runtimes/cpp/src/text` writes them.

Character classes and mappings are those of the tokenizers package, which carries several versions of Unicode: it is asked about every code
point. What it cannot be asked (which characters stand in front in a grapheme, which end one) is Python's unicodedata's.
"""

from __future__ import annotations

import html
import html.entities
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from cpp_charsmap import charsmap
from tokenizers import Regex, normalizers, pre_tokenizers

IGNORED = range(0xE0000, 0xE1000)  # no character but tags and variation selectors
POINTS = [c for c in [*range(0x32000), *IGNORED] if not 0xD800 <= c <= 0xDFFF]  # nothing else has a property
HANGUL = range(0xAC00, 0xD7A4)
WIDTH = 150


def _ranges(points: Iterable[int]) -> list[int]:
    """Gaps and lengths of the runs, in turn."""
    made: list[int] = []
    end = 0
    for c in sorted(points):
        if made and c == end:
            made[-1] += 1
        else:
            made += [c - end, 1]
        end = c + 1
    return made


def _matched(pattern: str) -> set[int]:
    """Code points that a regular expression of one character matches."""
    split = pre_tokenizers.Split(Regex(f"{pattern}+"), "removed", invert=True)
    return {ord(c) for piece, _ in split.pre_tokenize_str("".join(map(chr, POINTS))) for c in piece}


def _split(tokenizer: pre_tokenizers.PreTokenizer, around: str = "{}") -> list[str]:
    return [piece for piece, _ in tokenizer.pre_tokenize_str("".join(around.format(chr(c)) for c in POINTS))]


def _mapped(normalizer: normalizers.Normalizer, texts: Sequence[str]) -> list[str]:
    """Of every text; none of them has a line end."""
    made: list[str] = normalizer.normalize_str("\n".join(texts)).split("\n")
    assert len(made) == len(texts)
    return made


def _changes(normalizer: normalizers.Normalizer) -> dict[int, str]:
    points = [c for c in POINTS if c != 10 and c not in HANGUL]
    return {c: new for c, new in zip(points, _mapped(normalizer, [chr(c) for c in points]), strict=True) if new != chr(c)}


def _mapping(changes: dict[int, str]) -> list[int]:
    """For each: the gap from the one before, the length, the characters."""
    made, before = [], 0
    for c, new in sorted(changes.items()):
        made += [c - before, len(new), *map(ord, new)]
        before = c
    return made


def _shifts(changes: dict[int, str]) -> list[int]:
    """Runs of single characters that move alike: gap, length, step, distance (above 2^31: downwards)."""
    made: list[int] = []
    end = before = 0
    for c, new in sorted(changes.items()):
        distance = (ord(new) - c) % 2**32
        step = c - before
        if made and distance == made[-1] and step <= 2 and (made[-3] == 1 or step == made[-2]):
            made[-3], made[-2] = made[-3] + 1, step
        else:
            made += [c - end, 1, 1, distance]
        before = end = c
    return made


def _pairs(decomposed: dict[int, str]) -> list[int]:
    """first, second, composed."""
    points = [c for c, parts in decomposed.items() if len(parts) > 1]
    nfc = normalizers.NFC()
    firsts = _mapped(nfc, [decomposed[c][:-1] for c in points])
    again = _mapped(nfc, [decomposed[c] for c in points])
    made: list[int] = []
    for c, first, whole in sorted(zip(points, firsts, again, strict=True)):
        if whole == chr(c) and len(first) == 1:
            made += [ord(first), ord(decomposed[c][-1]), c]
    return made


def _classes() -> list[int]:
    """Of combining marks that move, in the package: gap, length, class. A class never changes between versions of Unicode."""
    marks = [c for c in POINTS if unicodedata.combining(chr(c))]
    first, last = "\u0334", "\u0345"  # of the classes 1 and 240, the lowest and the highest
    nfd = normalizers.NFD()
    before, behind = ["a" + chr(c) + first for c in marks], ["a" + last + chr(c) for c in marks]
    moved = zip(marks, before, _mapped(nfd, before), behind, _mapped(nfd, behind), strict=True)
    made: list[int] = []
    end = 0
    for c in [c for c, x, x_moved, y, y_moved in moved if x != x_moved or y != y_moved]:
        k = unicodedata.combining(chr(c))
        if made and c == end and made[-1] == k:
            made[-2] += 1
        else:
            made += [c - end, 1, k]
        end = c + 1
    return made


def _joined() -> set[int]:
    """Characters that go on with the grapheme of a letter: seen as the package drops what stands behind a mapped letter."""
    seen = normalizers.Precompiled(charsmap({"a": "X"}))
    points = [c for c in POINTS if c not in (10, ord("a"))]
    return {c for c, new in zip(points, _mapped(seen, ["a" + chr(c) for c in points]), strict=True) if new == "X"}


def _controls(joined: set[int]) -> set[int]:
    """What no grapheme goes beyond."""
    kinds = {"Cc", "Cf", "Zl", "Zp"}
    return {c for c in POINTS if unicodedata.category(chr(c)) in kinds and c not in joined and c not in PREPENDED} | {
        0xAD,
        *set(IGNORED) - joined,
    }


# Grapheme_Cluster_Break=Prepend of Unicode's GraphemeBreakProperty.txt.
PREPENDED = {
    *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0xD4E, 0x110BD, 0x110CD, 0x111C2, 0x111C3, 0x1193F, 0x11941,
    0x11A3A, *range(0x11A84, 0x11A8A), 0x11D46, 0x11F02,
}  # fmt: skip


def unicode_tables() -> str:
    """unicode_tables.inc."""
    lower = _changes(normalizers.Lowercase())
    canonical, compatible = _changes(normalizers.NFD()), _changes(normalizers.NFKD())
    letters, numbers = _matched(r"\p{L}"), _matched(r"\p{N}")
    words = {ord(piece[1]) for piece in _split(pre_tokenizers.Whitespace(), "a{}a ") if len(piece) == 3}
    blank = set(POINTS) - {ord(c) for piece in _split(pre_tokenizers.WhitespaceSplit()) for c in piece}
    assert blank == _matched(r"\s"), "the package's two ideas of white space differ now"
    joined = _joined()
    tables = {
        "LETTERS": _ranges(letters),
        "NUMBERS": _ranges(numbers),
        "WORDS": _ranges(words),
        "BLANKS": _ranges(blank),
        "LOWER": _shifts({c: new for c, new in lower.items() if len(new) == 1}),
        "LOWER_LONG": _mapping({c: new for c, new in lower.items() if len(new) > 1}),
        "CANONICAL": _mapping(canonical),
        "COMPATIBLE": _mapping({c: new for c, new in compatible.items() if canonical.get(c) != new}),
        "PAIRS": _pairs(canonical),
        "MARKS": _classes(),
        "JOINED": _ranges(joined),
        "PREPENDED": _ranges(PREPENDED),
        "CONTROLS": _ranges(_controls(joined)),
    }
    body = "\n".join(f"const uint32_t {name}[] = {{\n{_wrapped([str(n) for n in numbers])}\n}};" for name, numbers in tables.items())
    return f"// Written by tests/cpp_text_tables.py, which says what is in it.\n{body}\n"


def _wrapped(words: list[str]) -> str:
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) + 1 > WIDTH - 10:
            lines.append(line)
            line = ""
        line += word + ","
    return "\n".join([*lines, line])


def _literal(text: str) -> str:
    """Of C: all but letters and digits as three octal digits."""
    return '"' + "".join(chr(b) if (chr(b).isalnum() and b < 128) or b == 59 else f"\\{b:03o}" for b in text.encode()) + '"'


def html_entities() -> str:
    """html_entities.inc: HTML's names, and those that ftfy reads in capitals too."""
    names = html.entities.html5
    capitals = {}
    for name, char in names.items():
        if name.endswith(";") and name == name.lower() and html.unescape("&" + name.upper()) == "&" + name.upper():
            capitals[name.upper()] = char.upper()
    body = "\n".join(
        f"const Entity {table}[] = {{\n{_wrapped([f'{{{_literal(n)}, {_literal(c)}}}' for n, c in sorted(entries.items())])}\n}};"
        for table, entries in (("ENTITIES", names), ("CAPITALS", capitals))
    )
    return f"// Written by tests/cpp_text_tables.py.\n{body}\n"


TABLES = {"unicode_tables.inc": unicode_tables, "html_entities.inc": html_entities}

if __name__ == "__main__":
    for file, made in TABLES.items():
        (Path(sys.argv[1]) / file).write_text(made())
