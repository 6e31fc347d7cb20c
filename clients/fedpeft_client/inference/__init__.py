"""Using a trained adapter: the base, the adapter, an answer."""

from fedpeft.tuning.generation.decoder import Sampling
from fedpeft_client.inference.answers import Answer, Answerer, Piece
from fedpeft_client.inference.models import ReceivedModel, TrainedModel
from fedpeft_client.inference.outputs import Choice

__all__ = ["Answer", "Answerer", "Choice", "Piece", "ReceivedModel", "Sampling", "TrainedModel"]
