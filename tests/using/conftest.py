"""Runs that are there: bases of toys built once, run directories with a committed round, no training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = """
[run]
name = "toy"
[base]
model = "x"
[task]
kind = "{kind}"
max_length = 64
{labels}
[data]
source = "x"
partition = {{by = "iid", clients = 3}}
[rounds]
count = {rounds}
[adapter]
{methods}
[[device]]
clients = ["*"]
methods = "auto"
"""
LORA = 'lora = {rank = 4, targets = ["q", "v"], layers = [0, 2]}'


@dataclass(frozen=True)
class Runs:
    """Makes run directories on one base."""

    store: Path
    digest: str
    kind: str

    def make(
        self, folder: Path, *, seed: int, methods: str = LORA, labels: tuple[str, ...] = ("good", "so so", "bad"),
        convention: str = "messages", moved_by: float = 0.3, losses: tuple[float, ...] = (0.5, 0.4),
        moves_frozen: bool = True, count: int = 50,
    ) -> Path:  # fmt: skip
        """A run whose adapter is drawn from ``seed``, anew in each round but the last, which evaluates alone.

        Row r has ``losses[r - 1]``, of the state that round r began with; unless told otherwise the last state is kept.
        ``count`` is of the rounds that the configuration says: a run of fewer has not ended.
        """
        from fedpeft.adapter import AdapterState
        from fedpeft.base import ArtifactStore, load_model
        from fedpeft.config import parse
        from fedpeft.entropy import derive_seed
        from fedpeft.methods import attach
        from fedpeft_server.run.run_directory import RunDirectory

        own = f"labels = {list(labels)}".replace("'", '"')
        named = {"causal-lm": "", "embeddings": "", "preference": "", "regression": "range = [0, 5]"}.get(
            self.kind, own
        )
        text = CONFIG.format(kind=self.kind, labels=named, methods=methods, rounds=count)
        config = parse(text, source="run.toml", simulation=True).model_copy(update={"directory": folder})
        artifact = ArtifactStore(self.store).get(self.digest)
        head = derive_seed(config.run.seed, "head")
        record, outputs = config.task.record, config.task.outputs
        problem = record.problem_type or "single_label_classification"
        model = load_model(artifact, task=record.form, labels=outputs, head_seed=head, problem_type=problem)
        union = attach(model, config.adapter, seed=config.run.seed)
        start, draw = union.initial_state(), np.random.Generator(np.random.Philox(seed))
        with RunDirectory.create(
            config, source=text, adapter=start.spec, base_digest=self.digest, command=(), convention=convention
        ) as run:
            for number, loss in enumerate(losses, 1):
                if number < len(losses):
                    free = [block for block in start.spec.blocks if block.trainable or moves_frozen]
                    moved = {block.block_id: moved_by * draw.standard_normal(block.size) for block in free}
                    values = {b: (start[b] + moved.get(b, 0)).astype(np.float32) for b in start}
                    state = AdapterState(start.spec, values).to_safetensors()
                commit(run, number, state, loss)
            return run.path


def commit(run: object, number: int, state: bytes, loss: float) -> None:
    from fedpeft.ids import RoundId
    from fedpeft_server.run.records import RoundMetrics

    row = RoundMetrics(
        round=number, loss=loss, accuracy=0.5, evaluators=3, devices_invited=3, devices_ready=3, devices_survived=3,
        bytes_up=1, bytes_down=1, seconds=1.0,
    )  # fmt: skip
    run.commit(RoundId(number), state, {}, row)  # type: ignore[attr-defined]


def _runs(name: str, kind: str, folder: Path, change: Callable[[Path], object] = lambda source: None) -> Runs:
    from fedpeft.base import build
    from fedpeft.testing.zoo import save_model

    source = save_model(name, folder / "model")
    change(source)
    artifact = build(str(source), quantize="int8", store=folder / "store")
    return Runs(folder / "store", artifact.digest, kind)


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On a Llama of toys with a chat template."""
    return _runs(
        "llama",
        "causal-lm",
        tmp_path_factory.mktemp("llama"),
        lambda source: (source / "chat_template.jinja").write_text(CHATML),
    )


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On a BERT of toys."""
    return _runs("bert", "classify", tmp_path_factory.mktemp("bert"))
