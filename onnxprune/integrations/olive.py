"""A pass of Microsoft's Olive that prunes: `OnnxPrune`, whose parameters are the fields of `Options`.

Olive knows passes by a package configuration; `python -m onnxprune.integrations.olive FILE` writes the one of the Olive
that is installed, with this pass in it. Knows Olive (the package olive-ai) and the API, no graph.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from olive.data.config import DataConfig
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam
from olive.search.search_parameter import Categorical

from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.files import write_texts
from onnxprune.options import Options, flag

RATIOS = (0.2, 0.3, 0.4, 0.5)
"""Where Olive is to search for the ratio ("SEARCHABLE_VALUES")."""
DATA = "data_config"


class OnnxPrune(Pass):  # type: ignore[misc, unused-ignore]
    """Removes whole channels, heads and hidden units of an ONNX model, proves the result and refits what is left."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        default, hints = Options(), get_type_hints(Options)
        own = {
            name: PassConfigParam(
                type_=str if name == "calib" else hint,
                default_value=getattr(default, name),
                search_defaults=Categorical(list(RATIOS)) if name == "ratio" else None,
                description=f"As {flag(name)} of onnxprune (onnxprune help flags).",
            )
            for name, hint in hints.items()
        }
        data = "Olive's data to calibrate on, in place of `calib`, which takes what --calib of onnxprune does."
        beside = "Weights in a file beside the model; by default where the model came with one, or is over 2 GB."
        return own | {
            DATA: PassConfigParam(type_=DataConfig | dict, default_value=None, description=data),
            "save_as_external_data": PassConfigParam(type_=bool, default_value=None, description=beside),
        }

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        asked = {name: getattr(config, name) for name in get_type_hints(Options)}
        if data := getattr(config, DATA):
            if asked["calib"] is not None:
                raise UsageError(f"`calib` and `{DATA}` both say what to calibrate on; leave one of them out")
            made = DataConfig.model_validate(data) if isinstance(data, dict) else data
            asked["calib"] = made.to_data_container().create_calibration_dataloader(
                model_path=model.model_path, io_config=model.io_config
            )
        result = api.prune(model.model_path, **asked)
        path = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        path.parent.mkdir(parents=True, exist_ok=True)
        result.save(path, config.save_as_external_data)
        beside = path.with_name(f"{path.name}.data").exists()
        name = path.name if beside else None
        return ONNXModelHandler(model_path=str(path.parent if beside else path), onnx_file_name=name)


def package_config() -> dict[str, Any]:
    """The package configuration of the Olive that is installed, with the pass OnnxPrune."""
    config: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text("utf-8"))
    config["passes"] |= json.loads(files("onnxprune.integrations").joinpath("olive.json").read_text("utf-8"))["passes"]
    return config


def main(argv: Sequence[str]) -> int:
    """Write `package_config` to the file that is given."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python -m onnxprune.integrations.olive FILE.json", file=sys.stderr)
        return 2
    write_texts({Path(argv[0]): json.dumps(package_config(), indent=4) + "\n"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
