"""Bundles: what ``stif-rt export bundle`` writes and ``Runtime.load`` reads. A folder of

``manifest.json``: the ``Manifest``, with the checksum of every other file;
``weights.safetensors``: the whole network, as ``checkpoints.save_model`` writes it. Running reads the implicit
functions from it, ``stif-rt export verify`` compares with its encoder;
``encoder.onnx``: the encoder, unless PyTorch is to run it;
``encoder.engine``: the engine that TensorRT built from it.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from stif_rt.dtypes import DTYPES, parse_dtype
from stif_rt.errors import BadFileError
from stif_rt.files import whole_folder, write_whole
from stif_rt.model.checkpoints import LARGEST_VALUE, check_parameters, load_model, without_values
from stif_rt.model.config import WIDTHS, Config
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.model.stif import IMPLICIT_NETWORKS, AnyEncoder
from stif_rt.model.weight_files import read_safetensors
from stif_rt.schema import from_mapping, parse_json

FORMAT = 2
"""2 brought the velocity, and the fields of configurations that format 1 does not know: ``LATER_FIELDS``."""
MANIFEST, WEIGHTS, GRAPH, ENGINE = "manifest.json", "weights.safetensors", "encoder.onnx", "encoder.engine"
ENGINES = ("onnx", "tensorrt", "tensorrt-rtx", "torch")
"""What can run a bundle's encoder."""
FORMS = ("standard", "grid-sample", "plugin")
"""Forms of the deformable convolution in ``encoder.onnx``."""
DEFAULT_FORMS = {"onnx": "standard", "tensorrt": "plugin", "tensorrt-rtx": "grid-sample"}
"""The form that each engine runs fastest."""
OPSETS = range(19, 26)
"""Opsets that ``encoder.onnx`` can have: 19 brought DeformConv, the converter of opsets knows no later ones."""


LATER_FIELDS = ("motion", "blend", "bicubic", "feature_stride", "scale", "sif_time", *WIDTHS)


class Size(NamedTuple):
    """Size of the frames that an encoder is given; height and width are multiples of ``Config.multiple``."""

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

    def check(self, size: Size, multiple: int) -> None:
        """Raises ValueError for frames of another size. multiple: what their sides are padded to."""
        if all(low <= n <= high for low, n, high in zip(self.smallest, size, self.largest, strict=True)):
            return
        sizes = f"{self.largest} only" if self.fixed else f"from {self.smallest} to {self.largest}"
        raise ValueError(
            f"this encoder was exported for frames {sizes} (sides padded to multiples of {multiple}), not {size}; "
            "export it again with another --size"
        )


@dataclass(frozen=True)
class Manifest:
    """The contents of a bundle.

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
        values = parse_json(text)
        if not isinstance(values, dict) or type(values.get("format")) is not int:
            raise ValueError("it has no format version")
        if values["format"] > FORMAT:
            raise ValueError(
                f"it has format version {values['format']} and this stif-rt reads up to {FORMAT}: upgrade stif-rt"
            )
        if "config" in values:
            values["config"] = Config.from_dict(values["config"])
        manifest = from_mapping(cls, values, "manifest")
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raises ValueError where the fields are unknown to this version or contradict each other."""
        later = [name for name in LATER_FIELDS if getattr(self.config, name) != getattr(Config(), name)]
        if self.format < 2 and later:
            raise ValueError(f"it has format version {self.format}, which has no {', '.join(later)}: export it again")
        if self.engine not in ENGINES:
            raise ValueError(f"it names the encoder engine {self.engine!r}; there are: {', '.join(ENGINES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"it names the dtype {self.dtype!r}; there are: {', '.join(DTYPES)}")
        needed = [WEIGHTS] if self.engine == "torch" else [WEIGHTS, GRAPH]
        if self.engine in DEFAULT_FORMS and self.engine != "onnx":
            needed.append(ENGINE)
        missing = [name for name in needed if name not in self.files]
        if missing:
            raise ValueError(f"it lists no {missing[0]}")
        if self.engine == "torch":
            return
        if self.form not in FORMS:
            raise ValueError(f"it names the form {self.form!r}; there are: {', '.join(FORMS)}")
        if self.sizes is None:
            raise ValueError(f"it does not say which sizes its encoder for {self.engine!r} takes")
        if not all(0 < a <= b <= c for a, b, c in zip(*self.sizes, strict=True)):
            raise ValueError(f"its sizes do not grow from smallest to largest: {', '.join(map(str, self.sizes))}")
        multiple = self.config.multiple
        if any(side % multiple for size in self.sizes for side in size[1:]):
            sizes = ", ".join(map(str, self.sizes))
            raise ValueError(f"its sizes are not multiples of {multiple}, as its network needs them: {sizes}")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are complete and unchanged."""

    folder: Path
    manifest: Manifest

    def functions(self) -> ImplicitFunctions:
        """The implicit functions, float32 on the CPU. Nothing of the encoder is read or built."""
        with without_values():
            functions = ImplicitFunctions(self.manifest.config)
        path = self.folder / WEIGHTS
        state, _ = read_safetensors(path, lambda name: name.split(".")[0] in IMPLICIT_NETWORKS)
        check_parameters(path, functions.state_dict(), state, "this bundle's implicit functions", LARGEST_VALUE)
        functions.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        return functions

    def encoder(self) -> AnyEncoder:
        """The encoder's network, float32 on the CPU."""
        return load_model(self.folder / WEIGHTS).encoder


def read_bundle(folder: Path) -> Bundle:
    """The bundle in a folder. Raises BadFileError, saying what is wrong, for one that cannot be used as it is."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BadFileError(f"{folder} is not a bundle: it has no {MANIFEST}")
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also JSON's and Unicode's
        raise BadFileError(f"{path} cannot be used: {error}") from error
    for name, checksum in manifest.files.items():
        if Path(name).name != name:
            raise BadFileError(f"{path} cannot be used: it lists {name!r}, which is not a file of the bundle")
        if not (folder / name).is_file():
            raise BadFileError(f"bundle {folder} is incomplete: {name} is missing")
        if file_checksum(folder / name) != checksum:
            raise BadFileError(
                f"bundle {folder} is damaged or was changed: {name} does not have the manifest's checksum"
            )
    _, metadata = read_safetensors(folder / WEIGHTS, lambda name: False)
    if "config" not in metadata or Config.from_dict(parse_json(metadata["config"])) != manifest.config:
        raise BadFileError(f"{path} cannot be used: it has another configuration than {WEIGHTS}")
    return Bundle(folder, manifest)


@contextlib.contextmanager
def new_bundle(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that becomes the bundle ``target`` when the block ends without an error, and is removed otherwise.

    Raises:
        FileExistsError: ``target`` exists and is not to be overwritten, or is no bundle.
        FileNotFoundError: the folder around it does not exist.
    """
    if overwrite and target.exists() and not (target / MANIFEST).is_file():
        raise FileExistsError(f"{target} exists and is not a bundle, so it is not replaced")
    with whole_folder(target, overwrite) as folder:
        yield folder


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, with the checksums of all other files of the folder."""
    manifest = replace(manifest, files={path.name: file_checksum(path) for path in sorted(folder.iterdir())})
    manifest.check()
    write_whole(folder / MANIFEST, manifest.to_json())


def file_checksum(path: Path) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
