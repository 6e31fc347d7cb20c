import subprocess
import sys

import fedpeft.data


def test_reading_data_loads_no_model_library() -> None:
    heavy = {"torch", "transformers", "peft", "pyarrow", "datasets", "pandas", "flwr", "rich"}
    code = f"import sys, fedpeft.data, fedpeft.data.check; print(sorted({heavy!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    for name in fedpeft.data.__all__:
        assert getattr(fedpeft.data, name).__doc__ or name in ("IGNORED", "Record")
