"""Metrics from summed lanes are those of the libraries on the same examples, however they lie on devices."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.tasks.correlation import BINS, Correlation
from fedpeft.tasks.entities import Entities, entities_of, entity_types
from fedpeft.tasks.measure import Confusion, LabelSets, Measure

TAGS = ("O", "B-a", "I-a", "B-b", "I-b", "E-a", "S-b")


def over_devices(measure: Measure, scores: np.ndarray, truth: np.ndarray, parts: int) -> dict[str, float]:
    """Metrics from the sums of several devices, row by row one example each."""
    pieces = np.array_split(np.arange(len(scores)), parts)
    sums = [measure.tally(scores[rows], truth[rows], list(range(len(rows)))) for rows in pieces if len(rows)]
    return measure.metrics(np.sum(sums, axis=0))


@pytest.mark.parametrize("seed", range(5))
def test_macro_and_class_f1_are_scikit_learn_s(seed: int) -> None:
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(seed)
    names = [f"c{number}" for number in range(int(draw.integers(2, 8)))]
    truth = draw.integers(0, len(names), 60)
    scores = draw.normal(size=(60, len(names))).astype(np.float32) + 1.5 * np.eye(len(names), dtype=np.float32)[truth]
    found = over_devices(Confusion(names), scores, truth, 4)
    answers = scores.argmax(1)
    there = sorted({*truth.tolist(), *answers.tolist()})
    assert found["f1_macro"] == pytest.approx(f1_score(truth, answers, average="macro"))
    each = f1_score(truth, answers, average=None, labels=there)
    assert [found[f"f1/{names[one]}"] for one in there] == pytest.approx(each.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_multi_label_f1_is_scikit_learn_s(seed: int) -> None:
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(seed)
    truth = (draw.random((50, 6)) < 0.3).astype(np.float32)
    truth[0], scores = 1.0, draw.normal(size=(50, 6)).astype(np.float32)  # every label occurs
    found = over_devices(LabelSets([f"l{number}" for number in range(6)]), scores, truth, 3)
    for name in ("micro", "macro"):
        assert found[f"f1_{name}"] == pytest.approx(f1_score(truth, scores > 0, average=name))


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=9),
        min_size=1,
        max_size=6,
    )
)
def test_entity_f1_is_seqeval_s(sentences: list[list[tuple[str, str]]]) -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.metrics.sequence_labeling import get_entities

    truth = [[right for right, _ in words] for words in sentences]
    answers = [[answer for _, answer in words] for words in sentences]
    for tags in (*truth, *answers):
        assert list(entities_of(tags)) == get_entities(tags)
    measure = Entities(TAGS)
    rows = [(number, *pair) for number, words in enumerate(sentences) for pair in words]
    scores = np.eye(len(TAGS), dtype=np.float32)[[TAGS.index(answer) for _, _, answer in rows]]
    right = np.array([TAGS.index(tag) for _, tag, _ in rows])
    found = measure.metrics(measure.tally(scores, right, [number for number, _, _ in rows]))
    there = any(get_entities(tags) for tags in (*truth, *answers))
    assert bool(found) == there
    if there:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where one side has no entity, scores are 0 by definition
            expected = [score(truth, answers) for score in (f1_score, precision_score, recall_score)]
        assert [found[f"entity_{name}"] for name in ("f1", "precision", "recall")] == pytest.approx(expected)


def test_tags_that_are_no_entities_have_no_types() -> None:
    assert entity_types(("NOUN", "VERB")) == ()
    assert entity_types(("O", "B-a", "I-c")) == ("a", "c")


@pytest.mark.parametrize("seed", range(5))
def test_pearson_is_numpy_s_and_spearman_is_scipy_s_of_binned_values(seed: int) -> None:
    from scipy.stats import spearmanr

    draw = np.random.default_rng(seed)
    truth = np.round(draw.uniform(0, 5, 200) * 5) / 5  # on a scale, with ties, as people's scores are
    answers = (0.4 * truth + draw.normal(1.0, 0.8, 200)).astype(np.float32)
    found = over_devices(Correlation(0.0, 5.0), answers[:, None], truth.astype(np.float32), 6)
    assert found["pearson"] == pytest.approx(np.corrcoef(truth, answers)[0, 1], abs=1e-6)
    bins = np.rint(np.clip(answers, 0, 5) / 5 * (BINS - 1))
    assert found["spearman"] == pytest.approx(spearmanr(np.rint(truth / 5 * (BINS - 1)), bins).statistic, abs=1e-6)
    assert found["spearman"] == pytest.approx(spearmanr(truth, answers).statistic, abs=0.01)


def test_examples_that_do_not_differ_have_no_correlation() -> None:
    measure = Correlation(0.0, 1.0)
    same, varied = np.full((5, 1), 0.4, np.float32), np.linspace(0, 1, 5, dtype=np.float32)
    assert measure.metrics(measure.tally(same, varied, range(5))) == {}
    assert measure.metrics(np.zeros(sum(lanes.number for lanes in measure.lanes))) == {}


@pytest.mark.parametrize(
    ("measure", "outputs"), [(Confusion("abc"), 3), (LabelSets("abcd"), 4), (Entities(TAGS), 7), (Correlation(0, 5), 1)]
)
def test_lanes_keep_within_their_bounds_and_metrics_do_not_see_their_scale(measure: Measure, outputs: int) -> None:
    draw = np.random.default_rng(0)
    scores = (3 * draw.normal(size=(40, outputs))).astype(np.float32)
    truth = {3: draw.integers(0, 3, 40), 7: draw.integers(0, 7, 40), 1: draw.uniform(0, 5, 40)}.get(outputs)
    truth = draw.integers(0, 2, (40, 4)) if truth is None else truth
    sums = measure.tally(scores, truth, [number // 4 for number in range(40)])
    most = np.concatenate([np.full(lanes.number, lanes.most) for lanes in measure.lanes])
    assert sums.shape == most.shape
    assert (np.abs(sums / 40) <= most).all()
    assert measure.metrics(sums) == pytest.approx(measure.metrics(0.37 * sums))
