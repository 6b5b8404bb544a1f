"""`vditc lower | passes`: graph passes, run and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vditc.cli.app import RichProgress, app
from vditc.cli.options import ForceOption, JsonOption, KeepTimePathOption, OutOption, TargetOption, fresh
from vditc.cli.stages import say
from vditc.errors import InputError
from vditc.target import Target

if TYPE_CHECKING:
    from vditc.graph_passes.catalogue import PassInfo
    from vditc.graph_passes.core import Observer


@app.command("lower")
def lower_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx")],
    target: TargetOption,
    out: OutOption,
    passes: Annotated[str, typer.Option(help="comma-separated passes instead of the target's pipeline: a,b{option=1}")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="print what every pass changed and what it refused")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="run the graph before and after every pass; fail at the first that changes the numbers")
    ] = False,
    print_after: Annotated[str, typer.Option(help="print the graph after this pass, or after `all`")] = "",
    keep_time_path: KeepTimePathOption = False,
    attention: Annotated[
        str, typer.Option(help="bf16: attention alone in bfloat16 in a graph of float16, which counts no more than 65,504 keys")
    ] = "",
    plugins: Annotated[
        bool,
        typer.Option("--plugins", help="hand layers of few bits, and attention where the recipe says so, to the plugin library"),
    ] = False,
    dump: Annotated[Path | None, typer.Option(help="folder for the graph after every pass that changed it")] = None,
    force: ForceOption = False,
) -> None:
    """Run a target's graph passes on a portable graph."""
    chosen, path = Target.load(target), fresh(out, force)
    if attention:
        if passes:
            raise InputError(
                found="--passes with --attention", wanted="one of them", where="lower", fix="name keep-attention-in-range in --passes"
            )
        chosen = chosen.attending(attention)
    folder = fresh(dump, force, folder=True, option="--dump") if dump is not None else None
    names = _split(passes) if passes else None

    from vditc.graph_passes.claims import CheckClaims
    from vditc.graph_passes.dump import DumpGraphs
    from vditc.graph_passes.stage import asked_attention, chosen_passes, lower
    from vditc.graph_passes.text import PrintGraphs

    int8 = asked_attention(model) if plugins and names is None else None
    run = chosen_passes(chosen, names, keep_time_path=keep_time_path, plugins=plugins, attention=int8)
    known = ["all", *dict.fromkeys(one.name for one in run)]
    if print_after and print_after not in known:
        raise InputError(found=print_after, wanted=f"one of {', '.join(known)}", where="--print-after", fix="name a pass that is run")
    observers: list[Observer] = []
    if print_after:
        observers.append(PrintGraphs(print_after))
    if folder is not None:
        observers.append(DumpGraphs(folder))  # before the checks: what fails them can be looked at
    verdicts = []
    if verify:
        from vditc.pipeline.verify_passes import VerifyPasses

        verifier = VerifyPasses(model)
        verdicts = verifier.verdicts
        observers += [CheckClaims(), verifier]
    facts = lower(
        model=model,
        target=chosen,
        out=path,
        progress=RichProgress(),
        passes=names,
        keep_time_path=keep_time_path,
        plugins=plugins,
        attention=int8,
        observers=observers,
    )
    if explain:
        for i, done in enumerate(facts.passes):
            verdict = verdicts[i] if verify else None
            what = "changed the graph" if done.modified else "nothing to do"
            say(f"{done.name}: {what}, {done.nodes_before} -> {done.nodes_after} nodes{f', {verdict}' if verdict else ''}")
            for figure, value in done.figures.items():
                say(f"  {figure.replace('_', ' ')}: {value:,}")
            for refusal in done.refusals:
                say(f"  left {refusal.node}: {refusal.reason}")
    if verify:
        say(f"verified {sum(v is not None for v in verdicts)} passes that changed the graph, {len(verdicts)} in all")
    say(f"wrote {path}")


@app.command("passes")
def passes_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="show one pass: before -> after, options, targets")] = None,
    as_json: JsonOption = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="the table of docs/graph_passes.md")] = False,
) -> None:
    """The graph passes: options with defaults, what they need, give and end."""
    from vditc.graph_passes.catalogue import catalogue, markdown_table, pass_info

    if markdown:
        print(markdown_table(), end="")
        return
    found = catalogue() if name is None else (pass_info(name),)
    if as_json:
        print(json.dumps([info.to_json() for info in found]))
    elif name is None:
        for info in found:
            say(f"{info.signature}: {info.what.rstrip('.')}{_rules(info, '; ')}")
    else:
        _show(found[0])


def _show(info: PassInfo) -> None:
    """One pass, in full."""
    from vditc.graph_passes.tolerances import KINDS

    say(f"{info.name}: {info.what}\n\n{info.example}\n")
    for option, one in info.options.items():
        say(f"option {option}: {one['type']}, {one['default']} by default")
    say(f"numbers: {KINDS[info.numerics]}{_rules(info, chr(10))}")
    say(f"targets: {', '.join(info.targets) or 'none has it in its pipeline; name it with --passes'}")


def _rules(info: PassInfo, before: str) -> str:
    rules = {"needs": info.needs, "gives": info.gives, "ends": info.ends}
    return "".join(f"{before}{verb} {', '.join(names)}" for verb, names in rules.items() if names)


def _split(passes: str) -> list[str]:
    """Split at commas outside braces; InputError when nothing is left."""
    parts, depth = [""], 0
    for character in passes:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    named = [p.strip() for p in parts if p.strip()]
    if not named:
        raise InputError(found=repr(passes), wanted="passes: a,b{option=1}", where="--passes", fix="name one, or leave --passes out")
    return named
