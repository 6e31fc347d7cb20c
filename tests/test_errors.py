import pytest

from fedpeft.errors import DataInvalid, ResourceMissing, foreign, said_by

PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), OverflowError("no"), RecursionError("no"), KeyError("no"), PanicException("no"), OSError("no")],
)
def test_whatever_a_library_raises_becomes_one_refusal_of_ours(error: BaseException) -> None:
    with pytest.raises(DataInvalid, match="no"), foreign(DataInvalid):
        raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(), GeneratorExit(), MemoryError(), ResourceMissing("disk")]
)
def test_signals_a_lack_of_memory_and_refusals_of_ours_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)), foreign(DataInvalid):
        raise error


@pytest.mark.parametrize("cause", [True, False])
def test_an_interrupt_of_which_a_library_makes_another_error_stays_one(cause: bool) -> None:
    interrupt = KeyboardInterrupt()

    def importing() -> None:
        try:
            raise interrupt
        except KeyboardInterrupt as pressed:
            raise ImportError("initialization failed") from (pressed if cause else None)

    with pytest.raises(KeyboardInterrupt) as caught, foreign(DataInvalid):
        importing()
    assert caught.value is interrupt


def test_what_a_library_refuses_after_an_interrupt_was_dealt_with_is_a_refusal() -> None:
    def read() -> None:
        with foreign(DataInvalid):
            int("no")

    def read_after_an_interrupt() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            read()

    with pytest.raises(DataInvalid):
        read_after_an_interrupt()


def test_what_an_exception_says_is_one_printable_line_of_bounded_length() -> None:
    assert said_by(ValueError("first\x1b[31m\nsecond")) == "first [31m"
    assert said_by(KeyError()) == "KeyError"
    assert len(said_by(ValueError("x" * 10_000))) <= 200
