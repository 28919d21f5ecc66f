"""Numbers from logits against scikit-learn, scipy and sums done by hand."""
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from fer_lib.faces import EMOTIONS
from fer_lib.metrics import confusion, interval, measures, over_seeds, per_class, resampled


@pytest.fixture(scope="module")
def made():
    """Logits that are right more often than not, 400 faces of uneven classes."""
    rng = np.random.default_rng(0)
    labels = rng.choice(7, 400, p=[0.14, 0.03, 0.14, 0.25, 0.17, 0.11, 0.16])
    logits = rng.normal(0, 1.2, (400, 7)) + 1.5 * np.eye(7)[labels]
    return logits.astype(np.float16).astype(np.float32), labels


def test_headline_measures_equal_scikit_learns(made):
    logits, labels = made
    found, predicted = measures(logits, labels), logits.argmax(1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["macro_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["n"] == 400


def test_per_class_measures_equal_scikit_learns(made):
    logits, labels = made
    table = per_class(logits, labels)
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, logits.argmax(1), labels=range(7), zero_division=0)
    assert table.emotion.tolist() == list(EMOTIONS) and table.support.tolist() == support.tolist()
    assert np.allclose(table[["precision", "recall", "f1"]], np.stack([precision, recall, f1], 1))


def test_confusion_has_labels_in_rows(made):
    logits, labels = made
    assert (confusion(logits, labels) == sk.confusion_matrix(labels, logits.argmax(1))).all()


def test_nll_equals_scikit_learns_log_loss(made):
    logits, labels = made
    p = np.exp(logits.astype(float))
    assert measures(logits, labels)["nll"] == pytest.approx(sk.log_loss(labels, p / p.sum(1, keepdims=True)), abs=1e-6)


def of_probabilities(rows: list[dict[int, float]]) -> np.ndarray:
    """Logits whose softmax has the given values and shares the rest equally."""
    p = np.array([[row.get(c, (1 - sum(row.values())) / (7 - len(row))) for c in range(7)] for row in rows])
    return np.log(p)


def test_calibration_error_equals_a_sum_by_hand():
    """Confidences 0.90, 0.92 share a bin of 15 (0.867 to 0.933), 0.55 and 0.50 lie in others."""
    logits = of_probabilities([{0: 0.90}, {1: 0.92}, {2: 0.55}, {3: 0.50}])
    labels = np.array([0, 2, 2, 3])  # right, wrong, right, right
    by_hand = (2 * abs((0.90 + 0.92) / 2 - 0.5) + abs(0.55 - 1) + abs(0.50 - 1)) / 4
    assert measures(logits, labels)["ece"] == pytest.approx(by_hand)


def test_calibration_error_of_a_sure_and_right_network_is_zero():
    found = measures(np.eye(7) * 60.0, np.arange(7))
    assert found["ece"] == pytest.approx(0, abs=1e-9) and found["brier"] == pytest.approx(0, abs=1e-9) and found["accuracy"] == 1


def test_brier_and_nll_equal_sums_by_hand():
    found = measures(of_probabilities([{0: 0.7, 1: 0.3 - 5e-9}]), np.array([1]))
    assert found["brier"] == pytest.approx(0.7**2 + 0.7**2, abs=1e-6) and found["nll"] == pytest.approx(-np.log(0.3), abs=1e-6)
    uniform = measures(np.zeros((7, 7)), np.arange(7))
    assert uniform["nll"] == pytest.approx(np.log(7)) and uniform["brier"] == pytest.approx((6 / 7) ** 2 + 6 / 49)


def test_an_emotion_without_faces_counts_in_no_mean():
    labels = np.array([0, 0, 3, 3])
    logits = np.eye(7)[[0, 1, 3, 3]] * 5.0
    found = measures(logits, labels)
    assert found["accuracy"] == 0.75 and found["macro_accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)  # the emotion that was only predicted is no class here
    assert per_class(logits, labels).support.tolist() == [2, 0, 0, 2, 0, 0, 0]


def test_no_faces_is_an_error():
    with pytest.raises(ValueError, match="subset is empty"):
        measures(np.zeros((0, 7)), np.zeros(0, int))


def test_resampled_measures_scatter_around_the_measure(made):
    logits, labels = made
    draws = resampled(logits, labels)
    found = measures(logits, labels)
    assert draws["accuracy"].shape == (2000,) and draws["recall"].shape == (2000, 7)
    assert draws["accuracy"].mean() == pytest.approx(found["accuracy"], abs=0.002)
    assert draws["accuracy"].std() == pytest.approx(np.sqrt(found["accuracy"] * (1 - found["accuracy"]) / 400), rel=0.06)


def test_interval_covers_the_truth_about_95_times_in_100():
    rng, true, hits = np.random.default_rng(0), 0.6, 0
    for seed in range(80):
        labels = rng.integers(0, 7, 300)
        predicted = np.where(rng.random(300) < true, labels, (labels + rng.integers(1, 7, 300)) % 7)
        low, high = interval(np.eye(7)[predicted], labels, "accuracy", seed=seed)
        hits += low <= true <= high
    assert 0.88 <= hits / 80 <= 0.99


def test_interval_is_a_function_of_its_seed(made):
    assert interval(*made, "macro_f1", seed=1) == interval(*made, "macro_f1", seed=1) != interval(*made, "macro_f1", seed=2)


def test_over_seeds_gives_scipys_t_interval():
    values = [0.66, 0.68, 0.665, 0.69]
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found["low"], found["high"], found["n"]) == (pytest.approx(low), pytest.approx(high), 4)
    assert found["sd"] == pytest.approx(np.std(values, ddof=1)) and found["mean"] == pytest.approx(np.mean(values))


def test_one_seed_has_neither_spread_nor_interval():
    found = over_seeds([0.66])
    assert found["mean"] == 0.66 and found["n"] == 1 and np.isnan([found["sd"], found["low"], found["high"]]).all()
