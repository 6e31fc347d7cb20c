"""Using a trained adapter: the base, the adapter, an answer."""

from fedpeft_client.inference.answers import Answer, Answerer, Choice, Piece
from fedpeft_client.inference.generation import Sampling
from fedpeft_client.inference.models import ReceivedModel, TrainedModel

__all__ = ["Answer", "Answerer", "Choice", "Piece", "ReceivedModel", "Sampling", "TrainedModel"]
