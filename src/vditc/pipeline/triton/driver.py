"""The Python model of a repository: requests in, latents and frames out.

One answer a request, `frames` [clips, frames, height, width, 3] and `latents` [clips, C, F, H, W]; of a decoupled model several, each
with the number of its `clip`: first its `latents`, then `frames` [frames, height, width, 3] as they are decoded, and the number of their
`first_frame`. Only what a request asks for is computed.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from vditc.errors import InputError, VditcError
from vditc.pipeline.triton.request import Request
from vditc.pipeline.triton.served_pipeline import MAX_CLIPS, Pipeline
from vditc.pipeline.triton.server import Utils, error_of
from vditc.sampling import Array


class TritonPythonModel:
    """The name and the methods that the server calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens what lies beside model.py. `args`: of the server."""
        self.utils = cast(Utils, importlib.import_module("triton_python_backend_utils"))
        config = json.loads(args["model_config"])
        self.decoupled = self.utils.using_decoupled_model_transaction_policy(config)
        self.pipeline = Pipeline(Path(args["model_repository"]) / args["model_version"], self.utils, _max_clips(config))

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """One response a request, or, of a decoupled model, what is sent until the final flag; an error is a response too."""
        if self.decoupled:
            for request in requests:
                self._stream(request, request.get_response_sender())
            return None
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            asked = Request(self.utils, request)
            return self._response(self._whole(asked))
        except Exception as error:  # whatever it is: the server goes on
            return self._refusal(error)

    def _stream(self, request: Any, sender: Any) -> None:
        try:
            for outputs in self._pieces(Request(self.utils, request, sender.is_cancelled)):
                sender.send(self._response(outputs))
        except Exception as error:
            sender.send(self._refusal(error), flags=self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        else:
            sender.send(flags=self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _whole(self, asked: Request) -> dict[str, Array]:
        asked.check_wanted("request")
        work = self.pipeline.read(asked)
        latents, frames = [], []
        for clip in range(len(work.clips)):
            latents.append(self.pipeline.latents(work, clip, asked))
            if "frames" in asked.outputs:
                frames.append(np.concatenate(list(self.pipeline.frames(latents[-1], asked))))
        found = {"latents": np.concatenate(latents)} if "latents" in asked.outputs else {}
        return found | ({"frames": np.stack(frames)} if frames else {})

    def _pieces(self, asked: Request) -> Iterator[dict[str, Array]]:
        asked.check_wanted("request")
        work = self.pipeline.read(asked)
        for clip in range(len(work.clips)):
            latents, number = self.pipeline.latents(work, clip, asked), {"clip": np.array([clip], np.int32)}
            if "latents" in asked.outputs:
                yield {**number, "latents": latents}
            if "frames" in asked.outputs:
                done = 0
                for chunk in self.pipeline.frames(latents, asked):
                    yield {**number, "first_frame": np.array([done], np.int32), "frames": chunk}
                    done += len(chunk)

    def _response(self, outputs: dict[str, Array]) -> Any:
        return self.utils.InferenceResponse(output_tensors=[self.utils.Tensor(name, array) for name, array in outputs.items()])

    def _refusal(self, error: Exception) -> Any:
        if not isinstance(error, VditcError):  # nobody has foreseen it
            self.utils.Logger.log_error("".join(traceback.format_exception(error)))
        return self.utils.InferenceResponse(error=error_of(self.utils, error))


def _max_clips(config: Mapping[str, Any]) -> int:
    """Of a model's configuration; InputError, with which the server does not load the model, for another number than one above 0."""
    text = str(config.get("parameters", {}).get(MAX_CLIPS, {}).get("string_value", ""))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            found=f"{MAX_CLIPS} {text!r}",
            wanted="how many clips a request may ask for, 1 or more",
            where="config.pbtxt, parameters",
            fix='for example parameters { key: "max_clips", value: { string_value: "16" } }',
        )
    return int(text)
