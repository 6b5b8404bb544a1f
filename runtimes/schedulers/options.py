"""What a scheduler_config.json says, checked: an option that nobody reads would be a walk that nobody asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vditc.errors import InputError

Choices = Mapping[str, Sequence[Any]]
# Options that diffusers leaves in the file when a scheduler was made from another one's configuration, and that the new one does not read.
LEFT_OVER = frozenset(("skip_prk_steps", "set_alpha_to_one", "clip_sample", "clip_sample_range", "interpolation_type", "timestep_type"))


class Options(Mapping[str, Any]):
    """The options of a scheduler class with the user's values; a mapping."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], choices: Choices, where: str) -> None:
        """`defaults`: every option that the class has. `choices`: the values that are known of some.

        InputError for an option that the class does not have, a value of another type, or one that vditc does not compute.
        """
        self.name, self.where = str(config.get("_class_name", "scheduler")), where
        given = {key: value for key, value in config.items() if not key.startswith("_") and (key in defaults or key not in LEFT_OVER)}
        if strangers := sorted(set(given) - set(defaults)):
            raise self.bad(
                f"{self.name} with {', '.join(strangers)}",
                f"options of {', '.join(defaults)}",
                "take out what this scheduler does not have",
            )
        self._values = {**defaults, **given}
        for name, value in given.items():
            if not _like(value, defaults[name]):
                raise self.bad(f"{name} = {value!r}", f"something like {defaults[name]!r}", "correct the scheduler's configuration")
        for name, known in choices.items():
            if self._values[name] not in known:
                raise self.bad(
                    f"{self.name} with {name} = {self._values[name]!r}",
                    " or ".join(map(repr, known)),
                    "correct the scheduler's configuration",
                )

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def one_of(self, *names: str) -> str | None:
        """Which of these switches is on; InputError for more than one."""
        chosen = [name for name in names if self[name]]
        if len(chosen) > 1:
            raise self.bad(" and ".join(chosen), "one of them", "correct the scheduler's configuration")
        return chosen[0] if chosen else None

    def bad(self, found: str, wanted: str, fix: str) -> InputError:
        """What is wrong with this configuration."""
        return InputError(found=found, wanted=wanted, where=self.where, fix=fix)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a configuration, as JSON that every reader takes: infinity is a word."""
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    return {name: str(value) if isinstance(value, float) and math.isinf(value) else value for name, value in given.items()}


def _like(value: Any, default: Any) -> bool:
    """Whether a value may stand where `default` does; None takes numbers and lists of numbers."""
    match default:
        case bool():
            return isinstance(value, bool)
        case int():
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case float():
            return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        case str():
            return isinstance(value, str)
        case list():
            return isinstance(value, list) and all(isinstance(v, int) for v in value)
    return value is None or isinstance(value, list | str) or (isinstance(value, int | float) and not isinstance(value, bool))
