"""EleutherAI's lm-evaluation-harness asks a trained language model: its tasks and metrics, fedpeft's model.

Needs the extra `harness`; nothing imports this module where lm-eval is not installed. Only task files of the user's are
read, and no hub is asked for data. A task file may name Python code beside it, which lm-eval runs.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from fedpeft.data.encode import bos_of
from fedpeft.data.limited import within_limits
from fedpeft.data.rendering import TokenIds
from fedpeft.errors import ConfigInvalid, DataInvalid, FedpeftError
from fedpeft.tasks import Convention
from fedpeft.tuning.generation.decoder import Decoder, Sampling
from fedpeft_client.inference.answers import Answerer
from fedpeft_client.inference.likelihood import likelihoods

__all__ = ["HarnessModel", "Measured", "measure"]

LONGEST = 2048
"""Tokens of a context, of a model that reads any number."""
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One metric of one task.

    Args:
        task: its name in the task file.
        metric: its name there, with the filter behind a comma unless that is "none".
        value: of lm-eval.
        examples: it is of.
    """

    task: str
    metric: str
    value: float
    examples: int


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """What lm-eval takes for a model; it is asked as ``Answerer`` is.

    Args:
        asked: a language model.

    Raises:
        ConfigInvalid: the model writes no text behind a text.
    """

    def __init__(self, asked: Answerer) -> None:
        super().__init__()
        if not isinstance(asked.decoder, Decoder):
            raise ConfigInvalid(
                "Expected a causal language model, whose continuations lm-eval measures, found another; use "
                "`adapter eval`."
            )
        self._asked, self._decoder, self.tokenizer = asked, asked.decoder, asked.tokenizer
        self._bos = bos_of(cast("Any", asked.tokenizer))
        self.chats = asked.convention is Convention.MESSAGES and bool(asked.tokenizer.chat_template)

    @property
    def eot_token_id(self) -> int:
        """The token that closes a text."""
        return int(cast("int", self.tokenizer.eos_token_id))

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, as in training."""
        return self.eot_token_id if self._bos is None else self._bos

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's records."""
        return "fedpeft"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids as in training: one BOS where the base has one, none behind a chat template, which writes it."""
        ids: list[int] = list(self.tokenizer([string], add_special_tokens=False)["input_ids"][0])
        wanted = not self.chats if add_special_tokens is None else add_special_tokens
        return [self._bos, *ids] if wanted and self._bos is not None and ids[:1] != [self._bos] else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the base's chat template writes it, within limits: it is a stranger's program."""

        def made() -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        (text,) = within_limits([made], str, str)
        if isinstance(text, DataInvalid):
            raise text
        return text

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each in windows as long as the model reads, in nats."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._decoder.longest or LONGEST,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((_ids(context), _ids(continuation)))
                owners.append(number)
        found = [0.0] * len(requests)
        for owner, one in zip(owners, self._likelihoods(pairs), strict=True):
            found[owner] += one[0]
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        return self._likelihoods([(_ids(context), _ids(continuation)) for _, context, continuation in requests])

    def _likelihoods(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, bool]]:
        found = likelihoods(
            self._asked.model,
            pairs,
            vocabulary=self._decoder.vocabulary,
            longest=self._decoder.longest or LONGEST,
            padding=self._decoder.abilities.padding,
        )
        return [(one.log_probability, one.greedy) for one in found]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to a text of ``until``; greedy unless the task says ``do_sample`` with a temperature."""
        questions, how, stop = [], [], []
        for request in requests:
            context, wanted = request.args
            sampling, until = _sampling(wanted)
            room = (self._decoder.longest or LONGEST) - sampling.max_tokens
            if room < 1:
                raise DataInvalid(
                    f"Expected answers shorter than the {self._decoder.longest} tokens that the model reads, found "
                    f"{sampling.max_tokens}; lower generation_kwargs.max_gen_toks in the task file."
                )
            questions.append(_ids(self.tok_encode(context)[-room:]))
            how.append(sampling)
            stop.append(until)
        return [answer.text for answer in self._asked.answers(questions, how, stop=stop)]


def measure(asked: Answerer, files: Sequence[Path], *, limit: int | None = None) -> list[Measured]:
    """Every metric of the tasks in these files.

    Args:
        asked: the model, as it was trained: conversations go through the chat template.
        files: of lm-eval's YAML, over local data (``dataset_path: json`` and ``data_files``).
        limit: at most so many examples a task; None: all.

    Raises:
        ConfigInvalid: the model is no language model.
        DataInvalid: a file is no task, or its data is not here; with what lm-eval said.
    """
    model = HarnessModel(asked)
    _stay_offline()
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    try:
        tasks = TaskManager(include_defaults=False).load([str(file) for file in files])
        found = evaluate(
            model,
            tasks,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            apply_chat_template=model.chats,
        )
    except FedpeftError:
        raise
    except Exception as error:  # lm-eval, datasets and code of the task have no common exception
        said = f"{type(error).__name__}: {error}"
        raise DataInvalid(
            f"Expected lm-eval's task files over local data, lm-eval said {said:.300}; name data files by "
            "dataset_kwargs.data_files, from this folder; no hub is asked."
        ) from error
    return [one for name, metrics in found["results"].items() for one in _told(name, metrics, found["n-samples"])]


def _told(task: str, metrics: Mapping[str, Any], samples: Mapping[str, Any]) -> list[Measured]:
    count = int(samples[task]["effective"]) if task in samples else 0
    return [
        Measured(task=task, metric=key.removesuffix(",none"), value=float(value), examples=count)
        for key, value in metrics.items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    ]


def _sampling(wanted: Mapping[str, Any]) -> tuple[Sampling, tuple[str, ...]]:
    until = wanted.get("until") or ()
    samples = bool(wanted.get("do_sample", False))
    return (
        Sampling(
            max_tokens=int(wanted.get("max_gen_toks", 256)),
            temperature=float(wanted.get("temperature", 1.0)) if samples else 0.0,
            top_p=float(wanted.get("top_p", 1.0)) if samples else 1.0,
        ),
        (until,) if isinstance(until, str) else tuple(map(str, until)),
    )


def _ids(tokens: Sequence[int]) -> TokenIds:
    return np.asarray(tokens, dtype=np.int32)


def _stay_offline() -> None:
    """For this process: libraries that are loaded have read the environment already."""
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    for name in ("huggingface_hub.constants", "datasets.config"):
        if (loaded := sys.modules.get(name)) is not None:
            loaded.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
