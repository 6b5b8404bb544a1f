"""`vditc plugins build | path`: the library of kernels and TensorRT plugins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vditc.cli.app import RichProgress, app, console
from vditc.cli.options import JsonOption

plugins = typer.Typer(name="plugins", help="The plugin library: kernels for GPUs and TensorRT's plugins.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(plugins)

PlatformOption = Annotated[str | None, typer.Option("--platform", help="x86_64 or aarch64 [default: this machine]")]
CudaOption = Annotated[int, typer.Option("--cuda", help="13, or 12 for JetPack 6 (aarch64)")]
FolderOption = Annotated[Path | None, typer.Option("-o", "--out", help="folder of <platform>/libvditc_plugins.so [default: the cache]")]


@plugins.command("build")
def build_command(
    arch: Annotated[str, typer.Option("--arch", help="compute capabilities, as 86,89,90a [default: all of the platform]")] = "",
    out: FolderOption = None,
    platform: PlatformOption = None,
    cuda: CudaOption = 13,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="sources compiled side by side [default: all cores]")] = None,
    no_cutlass: Annotated[bool, typer.Option("--no-cutlass", help="without the tactics that are made of CUTLASS")] = False,
    tensorrt: Annotated[
        Path | None, typer.Option("--tensorrt", envvar="TENSORRT_ROOT", help="TensorRT's folder [default: vditc's own declarations]")
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="say what would be compiled for which GPUs, and do nothing")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build libvditc_plugins.so; what did not change since is not compiled again."""
    from vditc.plugins.build import Wanted, build, units

    wanted = Wanted.of(platform, [a.strip() for a in arch.split(",") if a.strip()], cuda=cuda, cutlass=not no_cutlass, tensorrt=tensorrt)
    if only_list:
        listed = units(wanted)
        if as_json:
            print(json.dumps({"platform": wanted.platform, "units": dict(listed)}))
            return
        width = max(len(name) for name, _ in listed)
        for name, architectures in listed:
            print(f"{name:{width}}  {' '.join(architectures)}".rstrip())
        return
    built = build(wanted, out, jobs=jobs, progress=RichProgress())
    if as_json:
        print(json.dumps({"path": str(built.path), "compiled": built.compiled, **built.facts}))
        return
    console.print(f"{built.path}", markup=False, highlight=False, soft_wrap=True)
    facts = built.facts
    console.print(
        f"{facts['bytes'] / 1e6:.2f} MB, sm {' '.join(facts['architectures'])}, CUDA {facts['cuda']}, CUTLASS {facts['cutlass'] or 'none'}, "
        f"TensorRT {facts['tensorrt'] or 'by own declarations'}, glibc {facts['glibc']}; {built.compiled or 'nothing'} compiled",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@plugins.command("path")
def path_command(platform: PlatformOption = None, cuda: CudaOption = 13, out: FolderOption = None) -> None:
    """Say where the library is that `vditc plugins build` put there."""
    from vditc.plugins.build import Wanted, library_path

    print(library_path(Wanted.of(platform, cuda=cuda).platform, out))
