"""Write the tables of docs/quality.md, between its markers, from the study's JSON.

python benchmarks/quality/table.py [--json docs/measurements/quality.json] [--page docs/quality.md]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from vditc.errors import InputError
from vditc.files import write_text

REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- tables: written by benchmarks/quality/table.py -->", "<!-- end of tables -->"
RECIPES = "recipe"  # in the column of bits, for a row that is a recipe of its own
# heading, key, digits after the point, factor
COLUMNS: tuple[tuple[str, str, int, float], ...] = (
    ("bits per weight", "mean_bits", 2, 1.0),
    ("right digits, %", "digit_accuracy", 1, 100.0),
    ("right directions, %", "motion_accuracy", 1, 100.0),
    ("flicker", "flicker", 3, 1.0),
    ("PSNR, dB", "psnr", 1, 1.0),
    ("SSIM", "ssim", 3, 1.0),
    ("error of the last latents", "final_latent_error", 3, 1.0),
    ("output MSE x 1000", "output_mse", 2, 1000.0),
    ("calibration, s", "calibration_seconds", 0, 1.0),
    ("peak memory, MB", "peak_rss_bytes", 0, 1e-6),
)


def cell(row: dict[str, Any], key: str, places: int, factor: float) -> str:
    """Mean ± standard deviation over the seeds, or the one value that there is."""
    if row.get(key) is None:
        return "–"
    mean, spread = row[key] * factor, (row.get("std") or {}).get(key)
    return f"{mean:.{places}f}" + ("" if spread is None else f" ± {spread * factor:.{places}f}")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of one model's table."""
    lines = ["| bits | method | " + " | ".join(heading for heading, *_ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        own = row["recipe"] if row["bits"] is None or row["recipe"] != f"{row['method']}-{row['bits']}" else row["method"]
        cells = [row["bits"] or RECIPES, own, *(cell(row, key, places, factor) for _, key, places, factor in COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def section(model: str, rows: list[dict[str, Any]]) -> list[str]:
    """Heading, what was measured, the table, and what was refused."""
    done, refused = [r for r in rows if "refused" not in r], [r for r in rows if "refused" in r]
    facts = sorted({f"{len(r['seed'])} x {r['clips']} clips; {r['sampled']}; {r['hardware']}" for r in done})
    lines = [f"### {model}", "", *(f"{fact}." for fact in facts), "", *table(done)]
    return lines + (["", "Refused:", "", *(f"- {r['recipe']}: {r['refused']}" for r in refused)] if refused else [])


def page(text: str, results: list[dict[str, Any]], where: str) -> str:
    """The page with new tables; InputError when it has no markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(found="no markers", wanted=f"{BEGIN} and {END}", where=where, fix="put them where the tables belong")
    sections = [section(model, list(rows)) for model, rows in itertools.groupby(results, key=lambda r: r["model"])]
    return before + begin + "\n" + "".join("\n" + "\n".join(lines) + "\n" for lines in sections) + "\n" + end + after


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--json", type=Path, default=REPOSITORY / "docs/measurements/quality.json")
    ask.add_argument("--page", type=Path, default=REPOSITORY / "docs/quality.md")
    args = ask.parse_args()
    try:
        write_text(args.page, page(args.page.read_text(), json.loads(args.json.read_text()), str(args.page)))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
