"""Several exported adapters become one: adapter arithmetic on directories (``fedpeft adapter merge``).

LoRA directories merge by every rule of ``fedpeft.export.arithmetic``, matrix by matrix; a matrix that one of them
lacks counts as unchanged there. What is no factor (a class head, biases, norms) is a whole value and not a change:
it becomes the weighted mean, whatever the rule. Other directories, and ``union.safetensors``, merge by ``linear``
alone, as weighted means of values of one shape: a trained value is no difference from a start that we know.
No model is loaded and no torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save

from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid, SpecMismatch, foreign
from fedpeft.export.arithmetic import LowRank, Rule, combine
from fedpeft.export.card import model_card
from fedpeft.export.summary import ExportSummary, damaged, no_export, read_object, read_summary
from fedpeft.export.tokenizer_files import copy_tokenizer
from fedpeft.files import write_file

__all__ = ["Exported", "merge_adapters", "read_exported"]

Arrays = dict[str, npt.NDArray[np.float32]]
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An exported adapter as it lies on disk.

    Args:
        folder: where.
        settings: adapter_config.json.
        tensors: adapter_model.safetensors.
        summary: inspect.json.
        whole: union.safetensors, and the text of union.json; None when the PEFT files are complete.
    """

    folder: Path
    settings: Mapping[str, object]
    tensors: Arrays
    summary: Mapping[str, object]
    whole: tuple[Arrays, str] | None

    @property
    def place(self) -> Path:
        """The folder with its files: ``folder``, or a run's final one."""
        final = self.folder / "adapters" / "final"
        return final if final.is_dir() else self.folder


def read_exported(folder: Path) -> Exported:
    """Read ``folder``, or the final adapter of the run that lies there.

    Raises:
        DataInvalid: no adapter exported by fedpeft.
        IntegrityFailed: a file of it is not as it was written.
    """
    final = folder / "adapters" / "final"
    place = final if final.is_dir() else folder
    summary = read_summary(place)
    settings = read_object(place / "adapter_config.json")
    if absent := [name for name in ("peft_type", "task_type") if name not in settings]:
        raise damaged(place / "adapter_config.json", f"no {absent[0]}")
    tensors = _read_tensors(place / "adapter_model.safetensors")
    whole = None
    if (place / "union.json").exists():
        content = (place / "union.json").read_text(encoding="utf-8", errors="replace")  # checked by whoever parses it
        whole = (_read_tensors(place / "union.safetensors"), content)
    return Exported(folder=folder, settings=settings, tensors=tensors, summary=asdict(summary), whole=whole)


def _read_tensors(path: Path) -> Arrays:
    if not path.exists():
        raise no_export(path)
    with foreign(lambda said: damaged(path, said)):
        tensors: Arrays = load_file(path)
    return tensors


def merge_adapters(
    sources: Sequence[Exported],
    weights: Sequence[float],
    rule: Rule,
    out: Path,
    *,
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
) -> ExportSummary:
    """Write the merged adapter to ``out`` and say what it holds.

    Args:
        sources: two or more, of one base.
        weights: one each.
        density: of TIES and DARE.
        rank: of SVD.
        seed: of DARE.

    Raises:
        ConfigInvalid: they are of different bases or kinds, or the rule does not apply to them.
        SpecMismatch: a head or another whole value has different shapes.
    """
    _check(sources, weights)
    first = sources[0]
    if any(source.whole is not None for source in sources):
        return _merge_whole(sources, weights, rule, out)
    if first.settings["peft_type"] == "LORA" and not first.settings.get("use_dora"):
        tensors, own = _merge_lora(sources, weights, rule, density=density, rank=rank, seed=seed)
    else:
        _linear_only(rule, str(first.settings["peft_type"]))
        tensors, own = _means([source.tensors for source in sources], weights), {}
    settings = {**first.settings, **own}
    summary = _summary(first, sum(values.size for values in tensors.values()))
    _write(out, settings, tensors, summary)
    copy_tokenizer(first.place, out)
    return summary


def _merge_lora(
    sources: Sequence[Exported], weights: Sequence[float], rule: Rule, *, density: float, rank: int | None, seed: int
) -> tuple[Arrays, dict[str, object]]:
    if any(source.settings.get("target_parameters") for source in sources):
        raise ConfigInvalid(
            "Expected adapters of linear modules, found LoRA on a mixture's experts, whose factors lie side by side in "
            "one tensor; fold each into a base of its own: `fedpeft adapter export --full`."
        )
    factors = [_factors(source) for source in sources]
    draw = generator(seed, "dare")
    found: dict[str, LowRank] = {}
    for path in sorted({path for one in factors for path in one}):
        present = [(one[path], weight) for one, weight in zip(factors, weights, strict=True) if path in one]
        changes, own = [change for change, _ in present], [weight for _, weight in present]
        found[path] = combine(changes, own, rule, density=density, rank=rank, draw=draw)
    largest = max(len(merged.down) for merged in found.values())
    tensors: Arrays = {}
    for path, merged in found.items():  # padded to one rank: see ``peft_matrix``
        missing = largest - len(merged.down)
        tensors[f"{_PREFIX}{path}{_DOWN}"] = _narrow(np.pad(merged.down, ((0, missing), (0, 0))))
        tensors[f"{_PREFIX}{path}{_UP}"] = _narrow(np.pad(merged.up, ((0, 0), (0, missing))))
    rest = [
        {name: values for name, values in one.tensors.items() if not name.endswith((_DOWN, _UP))} for one in sources
    ]
    tensors |= _means(rest, weights)
    return tensors, {
        "r": largest,
        "lora_alpha": largest,  # the scales are in the factors
        "target_modules": sorted(found),
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
    }


def _factors(source: Exported) -> dict[str, LowRank]:
    """The low-rank changes of a LORA directory by path, with peft's scale."""
    settings = source.settings
    alphas, ranks = dict(settings.get("alpha_pattern") or {}), dict(settings.get("rank_pattern") or {})  # type: ignore[call-overload]
    found = {}
    for name, down in source.tensors.items():
        if not name.endswith(_DOWN):
            continue
        path = name.removeprefix(_PREFIX).removesuffix(_DOWN)
        alpha, rank = float(alphas.get(path, settings["lora_alpha"])), int(ranks.get(path, settings["r"]))
        found[path] = LowRank(
            down=down.astype(np.float64),
            up=source.tensors[name.removesuffix(_DOWN) + _UP].astype(np.float64),
            scale=alpha / (rank**0.5 if settings.get("use_rslora") else rank),
        )
    return found


def _merge_whole(sources: Sequence[Exported], weights: Sequence[float], rule: Rule, out: Path) -> ExportSummary:
    _linear_only(rule, "union.safetensors")
    wholes = [source.whole for source in sources]
    contents = {whole[1] for whole in wholes if whole is not None}
    if len(contents) != 1 or any(whole is None for whole in wholes):
        raise ConfigInvalid(
            "Expected adapters of one configuration to merge union.safetensors, found different ones; merge "
            "adapters of runs with the same [adapter] section."
        )
    first = sources[0]
    merged = _means([whole[0] for whole in wholes if whole is not None], weights)
    tensors = _means([source.tensors for source in sources], weights)
    blocks: tuple[str, ...] = tuple(first.summary["union_blocks"])  # type: ignore[arg-type]
    summary = _summary(first, sum(values.size for values in merged.values()), union_blocks=blocks)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "union.safetensors", save(merged))
    write_file(out / "union.json", contents.pop().encode())
    _write(out, first.settings, tensors, summary)
    copy_tokenizer(first.place, out)
    return summary


def _means(sources: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    """The weighted mean of every tensor over the sources that have it."""
    merged: Arrays = {}
    for name in sorted({name for one in sources for name in one}):
        present = [(one[name], weight) for one, weight in zip(sources, weights, strict=True) if name in one]
        if len({values.shape for values, _ in present}) > 1:
            shapes = ", ".join(str(values.shape) for values, _ in present)
            raise SpecMismatch(
                f"Expected {name} of one shape in all adapters, found {shapes}; merge adapters of one task."
            )
        total = sum(weight for _, weight in present)
        if abs(total) < 1e-9:
            raise ConfigInvalid(f"Expected weights whose sum is not 0 for {name}, found {total:g}; it has no mean.")
        if all(np.array_equal(values, present[0][0]) for values, _ in present):
            merged[name] = present[0][0]  # to the bit: what was frozen stays what it was
            continue
        mean = sum(weight * values.astype(np.float64) for values, weight in present) / total
        merged[name] = _narrow(np.asarray(mean))
    return merged


def _check(sources: Sequence[Exported], weights: Sequence[float]) -> None:
    if len(sources) < 2 or len(weights) != len(sources):
        raise ConfigInvalid(
            f"Expected at least two adapters and a weight for each, found {len(sources)} adapters and "
            f"{len(weights)} weights."
        )
    for what, found in (
        ("base model", [str(source.summary["base"]) for source in sources]),
        ("set of classes", [", ".join(one.summary.get("labels", ())) or "none named" for one in sources]),  # type: ignore[arg-type]
        ("kind of adapter", [f"{one.settings['peft_type']}, {one.settings['task_type']}" for one in sources]),
    ):
        if len(set(found)) > 1:
            raise ConfigInvalid(f"Expected adapters of one {what}, found {' and '.join(sorted(set(found)))}.")
    digests: dict[str, str] = {}  # one model quantized in two ways is one model; two models of one name are not
    for one in sources:
        digest, scheme = str(one.summary.get("base_digest") or ""), str(one.summary.get("base_quantize") or "")
        if digest and digests.setdefault(scheme, digest) != digest:
            raise ConfigInvalid(
                f"Expected adapters of one base model, found two by the name {one.summary['base']}: "
                f"{digests[scheme]} and {digest}."
            )


def _linear_only(rule: Rule, kind: str) -> None:
    if rule != "linear":
        raise ConfigInvalid(
            f"Expected LoRA files for the rule {rule}, found {kind}; use linear, the weighted mean of the values."
        )


def _summary(first: Exported, parameters: int, *, union_blocks: tuple[str, ...] = ()) -> ExportSummary:
    known = {**first.summary, "parameters": parameters, "union_blocks": union_blocks}
    known |= {"peft_blocks": tuple(first.summary["peft_blocks"]), "peft_lacks": tuple(first.summary["peft_lacks"])}  # type: ignore[arg-type]
    known |= {"labels": tuple(first.summary.get("labels", ()))}  # type: ignore[arg-type]
    known |= {"peft_max_logit_difference": None, "union_max_logit_difference": None}
    return ExportSummary(**known)  # type: ignore[arg-type]


def _write(out: Path, settings: Mapping[str, object], tensors: Arrays, summary: ExportSummary) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (("adapter_config.json", settings), ("inspect.json", asdict(summary))):
        write_file(out / name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    write_file(out / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_file(out / "README.md", model_card(summary, task_type=str(settings["task_type"])).encode())


def _narrow(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)
