"""Writes tests/plugins/goldens anew: `PYTHONPATH=tests:tests/plugins python tests/plugins/make_goldens.py`. The same sources give the same bytes."""

from __future__ import annotations

from golden_cases import FOLDER, cases

FOLDER.mkdir(exist_ok=True)
for old in FOLDER.iterdir():
    old.unlink()
for case in cases():
    case.write(FOLDER)
print(f"{sum(p.stat().st_size for p in FOLDER.iterdir()) / 1e6:.2f} MB, {len(list(FOLDER.iterdir()))} files")
