"""What /classify is asked and what it answers, for every task whose model has outputs of its own."""

from typing import Any

from fedpeft.data import Record
from fedpeft.tasks import Target
from fedpeft_client.inference import Choice
from fedpeft_client.inference.outputs import question_of, texts_of
from fedpeft_client.serving.registry import Served
from fedpeft_client.serving.requests import RequestRefused

__all__ = ["as_json", "asked_texts"]


def asked_texts(served: Served, row: Record) -> tuple[str, ...]:
    """A row as this model takes it.

    Raises:
        RequestRefused: it asks something that the model was not trained on.
    """
    tags = served.target is Target.TAGS
    is_pair = served.pairs or (served.pairs is None and "text_pair" in row)
    wanted = ("words",) if tags else ("text", "text_pair") if is_pair else ("text",)
    if row.keys() != set(wanted) and not (tags and row.keys() == {"text"}):
        raise RequestRefused(
            f"Expected {', '.join(wanted)}, which {served.name} was trained on, found {', '.join(row)}.", "input"
        )
    if is_pair and not tags:  # as they are: the command line's tab between them would change a text that holds one
        return str(row["text"]), str(row["text_pair"])
    return texts_of(question_of(row) or "", served.target, pairs=False)


def as_json(served: Served, one: Choice) -> dict[str, Any]:
    """As vLLM's /classify where there is one class; numbers, sets of labels and tags under names of their own."""
    match served.target:
        case Target.VALUE:
            return {"value": one.value}
        case Target.TAGS:
            return {"words": [word for word, _ in one.tags], "tags": [tag for _, tag in one.tags]}
        case target:
            said = {"labels": list(one.labels)} if target is Target.CLASSES else {"label": one.label}
            probs = [one.probabilities[name] for name in served.outputs]
            return {**said, "probs": probs, "classes": list(served.outputs), "num_classes": len(probs)}
