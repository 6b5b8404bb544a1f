"""What pipelines do to a prompt before it is tokenized, by name."""

from __future__ import annotations

import html
import importlib.util
import re
from collections.abc import Sequence

from vditc.errors import InputError

STEPS = ("ftfy", "html", "whitespace")


def clean_prompt(prompt: str, steps: Sequence[str]) -> str:
    """`ftfy` mends broken Unicode, `html` unescapes entities twice, `whitespace` makes every run of spaces and line ends one space.

    InputError for `ftfy` without that package: another text would be encoded than the pipeline encodes.
    """
    for step in steps:
        match step:
            case "ftfy":
                prompt = _ftfy(prompt)
            case "html":
                prompt = html.unescape(html.unescape(prompt)).strip()
            case "whitespace":
                prompt = re.sub(r"\s+", " ", prompt).strip()
    return prompt


def installed_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """Those that the pipeline itself takes on this machine: diffusers leaves `ftfy` out where it is not installed."""
    return tuple(s for s in steps if s != "ftfy" or importlib.util.find_spec("ftfy") is not None)


def _ftfy(prompt: str) -> str:
    if importlib.util.find_spec("ftfy") is None:
        raise InputError(
            found="ftfy is not installed",
            wanted="ftfy, with which this bundle cleans prompts",
            where="text encoder",
            fix="pip install ftfy",
        )
    import ftfy

    return str(ftfy.fix_text(prompt))
