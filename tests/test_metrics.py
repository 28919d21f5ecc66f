"""Numbers from logits against scikit-learn, scipy and sums done by hand."""
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from statsmodels.stats.multitest import multipletests

from fer_lib.faces import EMOTIONS
from fer_lib.metrics import (batched_macro_f1, confusion, holm, interval, mcnemar, measures, over_seeds, paired, per_class, reliability,
                             resampled, two_level, verdict, wilson)


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


def test_reliability_bins_hold_the_calibration_error(made):
    logits, labels = made
    frame = reliability(logits, labels)
    gap = (frame["n"] * (frame["confidence"] - frame["accuracy"]).abs()).sum() / frame["n"].sum()
    assert frame["n"].sum() == 400 and (frame["n"] > 0).all() and gap == pytest.approx(measures(logits, labels)["ece"])
    assert frame["confidence"].between(frame["bin"] / 15, (frame["bin"] + 1) / 15).all()


def test_reliability_interval_is_wilsons():
    logits = of_probabilities([{0: 0.90}] * 10)
    row = reliability(logits, np.array([0] * 8 + [1] * 2)).iloc[0]
    found = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert row["accuracy"] == 0.8 and (row["low"], row["high"]) == (pytest.approx(found.low), pytest.approx(found.high))
    assert wilson(1, 38)[1] == 1 and wilson(0, 38)[0] == 0


def test_batched_macro_f1_is_the_mean_of_scikit_learns(made):
    logits, labels = made
    drawn = np.random.default_rng(3).permutation(400)[:399].reshape(-1, 21)  # 19 batches, one face dropped
    scores = [sk.f1_score(labels[batch], logits[batch].argmax(1), average="macro", zero_division=0) for batch in drawn]
    assert batched_macro_f1(logits, labels, batch=21, seed=3) == pytest.approx(np.mean(scores))
    assert batched_macro_f1(logits, labels, batch=400) == pytest.approx(measures(logits, labels)["macro_f1"])
    with pytest.raises(ValueError, match="fill no batch"):
        batched_macro_f1(logits[:9], labels[:9])


def test_paired_change_is_scipys_paired_t_test():
    a, b = [0.61, 0.63, 0.60, 0.64], [0.65, 0.64, 0.66, 0.65]
    found, known = paired(a, b), stats.ttest_rel(b, a)
    ends = known.confidence_interval(0.95)
    assert (found["low"], found["high"], found["p"]) == (pytest.approx(ends.low), pytest.approx(ends.high), pytest.approx(known.pvalue))
    assert found["change"] == pytest.approx(0.03) and found["n"] == 4


def test_one_pair_has_a_change_and_no_interval():
    found = paired([0.6], [0.65])
    assert found["change"] == pytest.approx(0.05) and np.isnan([found[name] for name in ("sd", "low", "high", "p")]).all()
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([0.6, 0.7], [0.65])


def simulated(rng: np.random.Generator, n_seeds: int, n: int) -> tuple:
    """Two recipes on n faces: labels, right [2, S, n], and the true change of macro accuracy, of all faces and of these faces.

    A face is right when the sum of its emotion's and the recipe's ease, its own (shared and the recipe's), the run's and the run's
    on this face (both shared by the two runs of a seed in part) is above 0; all normal, so the truth is known.
    """
    labels = rng.choice(7, n, p=[0.14, 0.03, 0.14, 0.25, 0.17, 0.11, 0.16])
    ease = np.linspace(-0.2, 1.2, 7) + np.array([[0], [0.1]]) * np.linspace(0, 2, 7)  # (2, 7)
    face = rng.normal(0, 1, n) + rng.normal(0, 0.5, (2, n))
    run = rng.normal(0, 0.03, (n_seeds, 1)) + rng.normal(0, 0.03, (2, n_seeds, 1))
    chance = rng.normal(0, 0.3, (n_seeds, n)) + rng.normal(0, 0.6, (2, n_seeds, n))
    right = ease[:, labels][:, None] + face[:, None] + run + chance > 0
    within = 2 * 0.03**2 + 0.3**2 + 0.6**2
    everywhere = np.diff(stats.norm.cdf(ease / np.sqrt(within + 1 + 0.5**2)), axis=0)[0]
    gain = np.diff(stats.norm.cdf((ease[:, labels] + face) / np.sqrt(within)), axis=0)[0]
    return labels, right, everywhere.mean(), np.mean([gain[labels == c].mean() for c in range(7)])


def coverage(n_seeds: int, repetitions: int, n: int = 1000, n_resamples: int = 200) -> tuple[float, float]:
    """Shares of simulated studies whose interval holds the truth: `paired` that of these faces, `two_level` that of all faces."""
    rng, hits = np.random.default_rng(n_seeds), []
    for i in range(repetitions):
        labels, right, everywhere, here = simulated(rng, n_seeds, n)
        macro = np.mean([right[..., labels == c].mean(-1) for c in range(7)], 0)  # (2, S)
        seeds, both = paired(*macro), two_level(*right, labels, n_resamples=n_resamples, seed=i)
        hits.append((seeds["low"] <= here <= seeds["high"], both["low"] <= everywhere <= both["high"]))
    return tuple(np.mean(hits, 0))


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_over_seeds_cover_the_truth_about_95_times_in_100(n_seeds):
    assert all(0.92 <= share <= 0.98 for share in coverage(n_seeds, 200))


def test_two_level_change_is_the_mean_over_seeds(made):
    rng, labels = np.random.default_rng(0), made[1]
    a, b = rng.random((3, 400)) < 0.6, rng.random((3, 400)) < 0.7
    recall = np.stack([[arm[:, labels == c].mean() for c in range(7)] for arm in (a, b)])
    assert two_level(a, b, labels, "accuracy")["change"] == pytest.approx(b.mean() - a.mean())
    assert two_level(a, b, labels)["change"] == pytest.approx(recall[1].mean() - recall[0].mean())
    found = two_level(a, b, labels, "recall")
    assert np.allclose(found["change"], recall[1] - recall[0]) and ((found["low"] < found["change"]) & (found["change"] < found["high"])).all()
    assert (found["n_seeds"], found["n"]) == (3, 400)


def test_two_level_takes_the_share_right_of_two_pictures_of_a_face(made):
    rng, labels = np.random.default_rng(0), made[1]
    whole, masked = (rng.random((2, 3, 400)) < [[[0.6]], [[0.7]]] for _ in range(2))
    once, twice = (two_level(*arms, labels) for arms in (whole, 0.5 * whole + 0.5 * whole))
    assert once == pytest.approx(twice)
    both = two_level(*(0.5 * whole + 0.5 * masked), labels)
    assert both["change"] == pytest.approx((once["change"] + two_level(*masked, labels)["change"]) / 2)
    assert both["high"] - both["low"] < once["high"] - once["low"]  # twice the pictures


def test_two_level_with_one_seed_is_the_bootstrap_over_faces(made):
    logits, labels = made
    right = logits.argmax(1) == labels
    found = two_level(np.zeros_like(right), right, labels, "macro_accuracy")
    assert (found["low"], found["high"]) == pytest.approx(interval(logits, labels, "macro_accuracy"), abs=0.006)
    assert found["change"] == pytest.approx(measures(logits, labels)["macro_accuracy"])


def test_equal_arms_change_by_nothing(made):
    right = np.random.default_rng(0).random((3, 400)) < 0.6
    found = two_level(right, right, made[1])
    assert found["change"] == found["low"] == found["high"] == 0


def test_two_level_refuses_what_does_not_fit(made):
    right = np.ones((2, 400), bool)
    with pytest.raises(ValueError, match="do not fit"):
        two_level(right, right[:1], made[1])
    with pytest.raises(ValueError, match="Unknown measure 'f1': use one of accuracy"):
        two_level(right, right, made[1], "f1")
    assert np.isnan(two_level(right[:, :1], right[:, :1], np.array([3]), "recall")["change"]).sum() == 6


def test_mcnemar_counts_faces_that_one_net_alone_gets_right():
    a, b = np.array([1, 1, 1, 0, 0, 0, 0, 1], bool), np.array([0, 1, 1, 1, 1, 1, 1, 1], bool)
    assert mcnemar(a, b) == {"a_only": 1, "b_only": 4, "p": pytest.approx(stats.binomtest(1, 5).pvalue)}


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    drawn = np.random.default_rng(0).random(7) / 4
    assert holm(drawn) == pytest.approx(multipletests(drawn, method="holm")[1])
    assert holm([0.01, np.nan, 0.03]) == pytest.approx([0.02, np.nan, 0.03], nan_ok=True)


@pytest.mark.parametrize("case, expected", [
    ((0.01, 0.05, 5, "+"), "reproduced"),
    ((-0.05, -0.01, 5, "+"), "not reproduced"),
    ((-0.05, -0.01, 5, "-"), "reproduced"),
    ((0.01, 0.05, 5, "-"), "not reproduced"),
    ((0.01, 0.05, 5, "+", 0.2), "reproduced"),           # the direction is what counts
    ((-0.01, 0.02, 5, "+", 0.03), "not reproduced"),     # holds 0, excludes the published value
    ((-0.01, 0.04, 5, "+", 0.03), "inconclusive"),
    ((-0.01, 0.04, 5, "+", np.nan), "inconclusive"),
    ((0.01, 0.05, 2, "+"), "inconclusive"),              # two seeds
    ((np.nan, np.nan, 1, "+"), "inconclusive"),
    ((np.nan, np.nan, 0, "+"), "not testable"),
    ((np.nan, np.nan, None, "0"), "not testable"),
    ((-0.01, 0.012, 5, "0"), "reproduced"),
    ((-0.02, 0.02, 5, "0"), "inconclusive"),             # holds 0, too wide to say "no change"
    ((0.001, 0.01, 5, "0"), "reproduced"),
    ((-0.028, 0.001, 5, "0"), "inconclusive"),            # may be a loss of 2.8 points
    ((0.016, 0.03, 5, "0"), "not reproduced"),
    ((-0.01, 0.04, 5, "keep"), "reproduced"),             # a gain keeps what there was
    ((-0.02, 0.01, 5, "keep"), "inconclusive"),
    ((-0.04, -0.016, 5, "keep"), "not reproduced"),
])
def test_verdict_follows_the_rule(case, expected):
    assert verdict(*case) == expected


def test_verdict_refuses_an_unknown_direction():
    with pytest.raises(ValueError, match="Unknown direction 'up': use one of"):
        verdict(0, 1, 5, "up")
