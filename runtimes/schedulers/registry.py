"""Finds the walk of a scheduler_config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vditc.errors import InputError
from vditc.runtimes.schedulers import cogvideox_ddim, cogvideox_dpm, ddim, dpm, edm, euler, flow_match_euler, unipc
from vditc.runtimes.schedulers.betas import BETAS
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.walk import Walk

Build = Callable[[Mapping[str, Any], int, Given, str], Walk]
CLASSES: dict[str, tuple[Build, Mapping[str, Any]]] = {  # class of diffusers -> what makes its walk, its options
    "FlowMatchEulerDiscreteScheduler": (flow_match_euler.build, flow_match_euler.DEFAULTS),
    "UniPCMultistepScheduler": (unipc.build, unipc.DEFAULTS),
    "DPMSolverMultistepScheduler": (dpm.build, dpm.DEFAULTS),
    "DDIMScheduler": (ddim.build, ddim.DEFAULTS),
    "CogVideoXDDIMScheduler": (cogvideox_ddim.build, cogvideox_ddim.DEFAULTS),
    "CogVideoXDPMScheduler": (cogvideox_dpm.build, cogvideox_ddim.DEFAULTS),
    "EulerDiscreteScheduler": (euler.build, euler.DEFAULTS),
    "EDMEulerScheduler": (edm.build, edm.EULER),
    "EDMDPMSolverMultistepScheduler": (edm.build, edm.DPM),
}
# Schedulers that vditc does not have -> DDIM walks the same noise levels in their place, and the bundle says so.
BY_DDIM = (
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "PNDMScheduler",
)
SHARED = (*BETAS, "prediction_type", "timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "set_alpha_to_one")


def solver_config(config: Mapping[str, Any], solver: str | None, where: str) -> dict[str, Any]:
    """The configuration of the class that walks: its own, a stand-in's, or that of `solver` over the same noise levels.

    InputError for a class that vditc does not have, or that cannot walk these levels.
    """
    own = str(config.get("_class_name"))
    if own not in CLASSES and own not in BY_DDIM:
        raise InputError(
            found=f"scheduler {own}",
            wanted=f"one of {', '.join([*CLASSES, *BY_DDIM])}",
            where=where,
            fix="save the pipeline with one of these schedulers",
        )
    name = solver or (own if own in CLASSES else "DDIMScheduler")
    if name == own:
        return dict(config)
    if name not in CLASSES:
        raise InputError(found=f"--solver {name}", wanted=f"auto or one of {', '.join(CLASSES)}", where=where, fix="choose one of these")
    flow = own == "FlowMatchEulerDiscreteScheduler" or bool(config.get("use_flow_sigmas"))
    takes_flow = name == "FlowMatchEulerDiscreteScheduler" or "use_flow_sigmas" in CLASSES[name][1]
    families = [c for c in (own, name) if c.startswith(("CogVideoX", "EDM"))]
    if (
        (flow and not takes_flow)
        or (not flow and name == "FlowMatchEulerDiscreteScheduler")
        or len({c[:3] for c in families}) + len(families) == 2
    ):
        raise InputError(
            found=f"{name} over the noise levels of {own}",
            wanted="a solver of the same kind of model",
            where=where,
            fix="choose one of flows for a flow, of CogVideoX for CogVideoX, of EDM for EDM",
        )
    return {"_class_name": name, **_carried(config, name, flow)}


def _carried(config: Mapping[str, Any], name: str, flow: bool) -> dict[str, Any]:
    """Options of `config` that say which noise levels a model has, as scheduler `name` writes them."""
    known = CLASSES[name][1]
    if flow:
        shift = config.get("flow_shift", config.get("shift", 1.0))
        carried = (
            {"shift": shift} if "shift" in known else {"flow_shift": shift, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        )
        rest = (
            "num_train_timesteps",
            "use_dynamic_shifting",
            "base_shift",
            "max_shift",
            "base_image_seq_len",
            "max_image_seq_len",
            "shift_terminal",
        )
        return carried | {n: config[n] for n in rest if n in known and n in config}
    plain = {
        n: config[n] for n in (*SHARED, "snr_shift_scale", "sigma_min", "sigma_max", "sigma_data", "rho") if n in known and n in config
    }
    return plain | ({"clip_sample": False} if "clip_sample" in known else {})


def scheduler_of(config: Mapping[str, Any], steps: int, given: Given | None = None, where: str = "scheduler_config.json") -> Walk:
    """The walk of a configuration of one of CLASSES, `_class_name` included, in so many steps.

    InputError for a class that vditc does not have, options that the class has not or vditc does not compute, or steps that it cannot walk.
    """
    if steps < 1:
        raise InputError(found=f"{steps} steps", wanted="at least 1", where="sampling", fix="raise the number of steps")
    return CLASSES[solver_config(config, None, where)["_class_name"]][0](solver_config(config, None, where), steps, given or Given(), where)
