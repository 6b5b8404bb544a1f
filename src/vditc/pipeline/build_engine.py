"""One lowered graph becomes an engine: whole, in segments, or as the files that a device builds it from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from vditc.build_memory import available_memory
from vditc.build_options import AUTO, BuildOptions
from vditc.errors import InputError
from vditc.files import data_digest, room_for, sha256, whole_file, write_text
from vditc.graph_passes.cut_segments import Segment, cut_segments, remove_segments
from vditc.memory import Memory, builder_memory
from vditc.pipeline.device_files import Part, data_files, write_device_files
from vditc.pipeline.engine_folder import drop_others
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.runtimes.backend import BUILT, TO_BUILD, Backend, EngineFacts
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.graph_inputs import graph_outputs, input_specs
from vditc.runtimes.registry import backend
from vditc.runtimes.trt_backend import LAYERS
from vditc.runtimes.trt_process import TIMING_CACHE
from vditc.runtimes.trt_runner import PLAN
from vditc.segments import NAME, Segments
from vditc.target import Target

_NOTE = "segment.json"  # what is known of a segment that is done


def build_engine(
    *,
    root: Path,
    folder: Path,
    lowered: Path,
    target: Target,
    profile: Profile,
    work: Path,
    progress: Progress,
    library: Path | None,
    options: BuildOptions,
    memory: Memory | None = None,
    out: Path | None = None,
) -> EngineFacts:
    """Build `lowered` into `folder`, which lies in `root` as the graph and the plugin library do; facts as `Backend.build` gives them.

    Where a device builds the target's engines, what it needs for that is written instead; `memory` is an estimate that it is told.
    `out`: where the files are written instead of `folder`, by somebody who moves them there. With the option `segments` the graphs that
    a device builds lie beside `lowered`; of a build that was killed the segments that are done stay in `work`, and are not built again.
    Errors as `Backend.build`; VditcError for more segments than blocks.
    """
    maker, inputs, place = backend(target.backend), input_specs(lowered), out or folder
    maker.check(target, options)
    segments = segments_of(lowered, profile, options)
    chain = Segments({s.name: s.blocks for s in segments}, graph_outputs(lowered)) if segments else None
    if chain is not None and maker.builds_here(target):
        progress.note(f"{target.name}: {len(segments)} segments of {', '.join(str(len(s.blocks)) for s in segments)} blocks")
        return _build_segments(maker, segments, chain, lowered, target, place, work, progress, library, options)
    facts = EngineFacts(status=TO_BUILD, backend=maker.name)
    if chain is None:
        facts = maker.build(
            lowered=lowered,
            target=target,
            profile=profile,
            inputs=inputs,
            out=place,
            work=work,
            progress=progress,
            plugins=library,
            options=options,
        )
    if facts.status == TO_BUILD:
        write_device_files(
            root=root,
            folder=folder,
            parts=[Part(s.name, s.graph, s.inputs, s.blocks, s.profile) for s in segments] or [Part("model", lowered, inputs)],
            target=target,
            profile=profile,
            library=library,
            memory=memory,
            options=options,
            out=out,
            segments=chain,
        )
    drop_others(place, (PLAN,) if facts.status == BUILT else (), cut=chain is not None)
    return facts


def build_alone(
    *,
    lowered: Path,
    out: Path,
    target: Target,
    profile: Profile,
    work: Path,
    progress: Progress,
    library: Path | None,
    options: BuildOptions,
) -> EngineFacts:
    """A graph that is in no bundle: `build_engine` into `out`, which holds copies of everything where a device builds.

    VditcError when the disk is full.
    """
    backend(target.backend).check(target, options)
    if target.backend == "onnxruntime" or backend(target.backend).builds_here(target):
        root, kept = lowered.parent, library
    else:
        root, kept = out, None if library is None else out / "plugins" / target.platform / library.name
        copies = {path: out / "lowered" / path.name for path in (lowered, *data_files(lowered))}
        with room_for(out, sum(path.stat().st_size for path in copies)):
            for source, to in [*copies.items(), *([(library, kept)] if library is not None and kept is not None else [])]:
                with whole_file(to) as temporary:
                    shutil.copyfile(source, temporary)
        lowered = copies[lowered]
    return build_engine(
        root=root,
        folder=out,
        lowered=lowered,
        target=target,
        profile=profile,
        work=work,
        progress=progress,
        library=kept,
        options=options,
    )


def segments_of(lowered: Path, profile: Profile, options: BuildOptions) -> tuple[Segment, ...]:
    """The segments that the options ask for, written beside `lowered`; () for one engine of everything. VditcError as `cut_segments`."""
    if options.segments in (None, 1):
        remove_segments(lowered)
        return ()
    count, budget = None if options.segments == AUTO else int(options.segments or 1), options.memory
    if count is None and budget is None:
        budget = available_memory()
    found = cut_segments(
        lowered, input_specs(lowered), profile, count, memory=lambda load: builder_memory(load.products, load.weights), budget=budget
    )
    if len(found) == 1:
        found[0].graph.unlink()
        return ()
    return found


def _build_segments(
    maker: Backend,
    segments: tuple[Segment, ...],
    chain: Segments,
    lowered: Path,
    target: Target,
    out: Path,
    work: Path,
    progress: Progress,
    library: Path | None,
    options: BuildOptions,
) -> EngineFacts:
    """One after the other in `work`; all of them come into `out` when the last is there."""
    alone = dataclasses.replace(options, segments=None)
    same = {
        "data": [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in data_files(lowered)],
        "target": dataclasses.asdict(target),
        "options": alone.to_json(),
        "library": library and sha256(library),
    }
    made, cache = dict[str, EngineFacts](), out / TIMING_CACHE
    for segment in segments:
        place = work / segment.name
        key = data_digest({**same, "graph": sha256(segment.graph), "profile": segment.profile.to_json()})
        if (facts := _done(place, key)) is None:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            if cache.is_file():
                shutil.copyfile(cache, place / TIMING_CACHE)
            facts = maker.build(
                lowered=segment.graph,
                target=target,
                profile=segment.profile,
                inputs=segment.inputs,
                out=place,
                work=place / "work",
                progress=progress,
                plugins=library,
                options=alone,
            )
            write_text(place / _NOTE, json.dumps({"key": key, "plan": sha256(place / PLAN), "facts": facts.to_json()}))
        made[segment.name], cache = facts, place / TIMING_CACHE
    out.mkdir(parents=True, exist_ok=True)
    said = {name: json.loads((work / name / LAYERS).read_text()) for name in made}
    write_text(out / LAYERS, json.dumps({"segments": said}, indent=1, sort_keys=True) + "\n")
    built = BuiltWith.read(work / segments[0].name)
    assert built is not None
    dataclasses.replace(built, options=options).write(out)
    if cache.is_file():
        shutil.move(cache, out / TIMING_CACHE)
    for name, plan in zip(made, chain.plans, strict=True):
        (work / name / PLAN).replace(out / plan)
        shutil.rmtree(work / name)
    write_text(out / NAME, chain.to_text())
    drop_others(out, chain.plans, cut=True)
    for segment in segments:
        segment.graph.unlink()
    return EngineFacts.joined(made, chain.blocks)


def _done(place: Path, key: str) -> EngineFacts | None:
    """What an earlier build of the same segment left, whole."""
    try:
        note = json.loads((place / _NOTE).read_text())
        whole = note["key"] == key and note["plan"] == sha256(place / PLAN)
        return EngineFacts.from_json(note["facts"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None
