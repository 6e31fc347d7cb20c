"""A device whose model is in the agent's own process, where somebody's program trains it (``fedpeft.attach``)."""

from collections.abc import Callable, Mapping

from fedpeft.child import ChildDied
from fedpeft.errors import FedpeftError

__all__ = ["InProcess"]


class InProcess:
    """As ``fedpeft.child.Child`` to the agent. What it would do by ending a process it leaves undone.

    Args:
        handlers: what may be asked, by name.
    """

    def __init__(self, handlers: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self._handlers = handlers

    def ask(self, name: str, payload: bytes = b"", *, within_s: float | None = None) -> bytes:
        """One request; nothing limits its time.

        Raises:
            FedpeftError: what the device raised.
            ChildDied: it raised something else.
        """
        try:
            return self._handlers[name](payload)
        except (FedpeftError, OSError):
            raise
        except Exception as error:
            raise ChildDied(None) from error

    def rest(self) -> bool:
        """Its memory is the program's: False, it stays."""
        return False

    def kill(self) -> None:
        """The program ends by itself."""

    def close(self) -> None:
        """Nothing to end."""
