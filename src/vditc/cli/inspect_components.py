"""What `vditc inspect` shows of a bundle's text encoder and VAE decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from vditc.cli.app import console


def show_components(components: Mapping[str, Any]) -> None:
    """A row for every graph and target, and on what device an engine was built; nothing for a bundle of the transformer alone."""
    if not components:
        return
    from vditc.engine_facts import device_words

    table = Table("part", "stored", "target", "computes in", "engine", title="components", title_justify="left")
    built = []
    for name, about in components.items():
        for target, known in about["targets"].items():
            for graph, facts in known["graphs"].items():
                engine = facts.get("engine", facts)
                size = f", {engine['plan_bytes'] / 1e6:.2f} MB" if "plan_bytes" in engine else ""
                table.add_row(f"{name}/{graph}", about["stored"], target, known["compute"], f"{engine['status']}{size}")
                if "device" in facts:
                    by = f"{engine['backend']} {engine.get('version')} on {device_words(facts['device'])}"
                    built.append(f"{name}/{graph} for {target} built by {by}")
    console.print(table)
    for line in built:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
