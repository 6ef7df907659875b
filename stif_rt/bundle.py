"""Bundles: what ``stif-rt export bundle`` writes and ``Runtime.load`` reads. A folder of

``manifest.json``: the ``Manifest``, with the checksum of every other file;
``weights.safetensors``: the whole network, as ``checkpoints.save_model`` writes it. Running reads the implicit
functions from it, ``stif-rt export verify`` compares with its encoder;
``encoder.onnx``: the encoder, unless PyTorch is to run it;
``encoder.engine``: the engine that TensorRT built from it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from stif_rt.dtypes import DTYPES, parse_dtype
from stif_rt.model.config import Config
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.model.stif import IMPLICIT_NETWORKS

FORMAT = 1
MANIFEST, WEIGHTS, GRAPH, ENGINE = "manifest.json", "weights.safetensors", "encoder.onnx", "encoder.engine"
ENGINES = ("onnx", "tensorrt", "tensorrt-rtx", "torch")
"""What can run a bundle's encoder."""


class Size(NamedTuple):
    """Of the frames that an encoder is given; height and width are multiples of 4."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" + ("" if self.batch == 1 else f" in batches of {self.batch}")


class Sizes(NamedTuple):
    """The sizes that an exported encoder takes, and the one it is tuned for."""

    smallest: Size
    typical: Size
    largest: Size

    @property
    def fixed(self) -> bool:
        return self.smallest == self.largest

    def check(self, size: Size) -> None:
        """Raises ValueError for frames of another size."""
        if all(low <= n <= high for low, n, high in zip(self.smallest, size, self.largest, strict=True)):
            return
        taken = f"{self.largest} only" if self.fixed else f"from {self.smallest} to {self.largest}"
        raise ValueError(
            f"this encoder was exported for frames {taken} (sides padded to multiples of 4), not {size}; "
            "export it again with another --size"
        )


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    config: the network's. engine: one of ENGINES. dtype: of the encoder's weights and activations. form: of its
    deformable convolutions, and opset, in ``encoder.onnx``. sizes: of the frames that the encoder takes; None for any.
    engine_key: what the engine depends on (``tensorrt_engine.engine_key``).
    tools: versions of what made it. files: SHA-256 by name. format: version of this layout.
    """

    config: Config
    engine: str
    dtype: str
    form: str | None = None
    opset: int | None = None
    sizes: Sizes | None = None
    engine_key: dict[str, str] | None = None
    tools: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def torch_dtype(self) -> torch.dtype:
        return parse_dtype(self.dtype)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The inverse of ``to_json``. Raises ValueError for anything that this version does not understand."""
        values = json.loads(text)
        if not isinstance(values, dict) or not isinstance(values.get("format"), int):
            raise ValueError("it has no format version")
        if values["format"] > FORMAT:
            raise ValueError(
                f"it has format version {values['format']} and this stif-rt reads up to {FORMAT}: upgrade stif-rt"
            )
        try:
            values["config"] = Config.from_dict(values["config"])
            if values.get("sizes") is not None:
                values["sizes"] = Sizes(*(Size(*map(int, size)) for size in values["sizes"]))
            manifest = cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"a field is missing, unknown or malformed ({error})") from error
        if manifest.engine not in ENGINES:
            raise ValueError(f"it names the encoder engine {manifest.engine!r}; there are: {', '.join(ENGINES)}")
        if manifest.dtype not in DTYPES:
            raise ValueError(f"it names the dtype {manifest.dtype!r}; there are: {', '.join(DTYPES)}")
        if not isinstance(manifest.files, dict) or WEIGHTS not in manifest.files:
            raise ValueError(f"it lists no {WEIGHTS}")
        return manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are complete and unchanged."""

    folder: Path
    manifest: Manifest

    def functions(self) -> ImplicitFunctions:
        """The implicit functions, float32 on the CPU. Nothing of the encoder is read or built."""
        with torch.device("meta"):
            functions = ImplicitFunctions(self.manifest.config)
        try:
            with safe_open(self.folder / WEIGHTS, framework="pt") as file:
                names = [name for name in file.keys() if name.split(".")[0] in IMPLICIT_NETWORKS]  # noqa: SIM118
                state = {name: file.get_tensor(name).float() for name in names}
            functions.load_state_dict(state, assign=True)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"{self.folder / WEIGHTS} does not hold this bundle's implicit functions: {error}"
            ) from error
        return functions


def read_bundle(folder: Path) -> Bundle:
    """The bundle in a folder. Raises ValueError, saying what is wrong, for one that cannot be used as it is."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} is not a bundle: it has no {MANIFEST}")
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also JSON's and Unicode's
        raise ValueError(f"{path} cannot be used: {error}") from error
    for name, checksum in manifest.files.items():
        if Path(name).name != name:
            raise ValueError(f"{path} cannot be used: it lists {name!r}, which is not a file of the bundle")
        if not (folder / name).is_file():
            raise ValueError(f"bundle {folder} is incomplete: {name} is missing")
        if file_checksum(folder / name) != checksum:
            raise ValueError(f"bundle {folder} is damaged or was changed: {name} does not have the manifest's checksum")
    return Bundle(folder, manifest)


def file_checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
