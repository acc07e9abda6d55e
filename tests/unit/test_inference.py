"""Differences, rules, verdicts, looks, failures and plans, against known answers and scipy."""

from __future__ import annotations

import math
import random
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from inference.contrasts import Term, estimate_contrast
from inference.differences import differences, kappa
from inference.estimates import Estimate
from inference.failures import blow_ups, failure_interval, failure_p_value
from inference.looks import Look, futile, scheduled_looks
from inference.planning import Plan
from inference.quantiles import ALPHA, f_quantile, sidak_level, sidak_p, t_critical
from inference.rules import ConfidenceSequence, DeclaredSeeds
from inference.samples import deviation, shared_seeds
from inference.verdicts import BETTER, EQUAL, INCONCLUSIVE, WORSE, Results, Verdict, judge

BASELINE = (3.00, 3.02, 3.01, 2.99, 3.03)
ARMS = (
    (2.97, 2.98, 2.985, 2.955, 3.00),
    (3.01, 3.00, 3.02, 3.00, 3.02),
    (3.00, 3.03, 3.01, 3.00, 3.02),
    (3.05, 2.99, 3.20, 2.97, 3.06),
)


def sample(values) -> dict[int, float]:
    return dict(enumerate(values))


def results(values, **rest) -> Results:
    return Results(sample(values), **rest)


def drawn(rng: random.Random, n: int, mean: float = 3.0, sd: float = 0.02) -> list[float]:
    return [rng.gauss(mean, sd) for _ in range(n)]


# Known answers


def test_known_verdicts():
    found = judge(results(BASELINE), [results(arm) for arm in ARMS])
    assert [verdict.word for verdict in found] == [BETTER, *[INCONCLUSIVE] * 3]
    assert [verdict.difference.df for verdict in found] == [8, 4, 8, 4]
    known = [(-0.04862, -0.01538), (-0.02714, 0.02714), (-0.01573, 0.01973), (-0.12524, 0.21324)]
    for verdict, interval in zip(found, known, strict=True):
        assert verdict.interval == pytest.approx(interval, abs=5e-6)
    p_values = [verdict.p_adjusted for verdict in found]
    assert p_values == pytest.approx([0.0011, 1, 0.9945, 0.7950], abs=5e-5)


def test_known_constants():
    assert [kappa(n) for n in (3, 4, 5, 10)] == pytest.approx(
        [0.6931, 0.7887, 0.8392, 0.9270], abs=5e-5
    )
    guards = [f_quantile(0.7, n - 1, 2 * (n - 1)) for n in (3, 4, 5, 10)]
    assert guards == pytest.approx([1.651, 1.532, 1.460, 1.306], abs=5e-4)
    critical = [
        t_critical(2 * (n - 1), sidak_level(ALPHA, m)) for m, n in ((4, 5), (8, 5), (8, 10))
    ]
    assert critical == pytest.approx([3.193, 3.661, 3.085], abs=5e-4)


@pytest.mark.parametrize(
    ("family", "constants"),
    [
        (1, {5: 5.36, 10: 3.97, 20: 3.63}),
        (8, {4: math.inf, 5: 12.49, 10: 5.47, 20: 4.57}),
    ],
)
def test_known_constants_of_the_confidence_sequence(family, constants):
    rule = ConfidenceSequence(family)
    assert [rule.critical(n - 1, n) for n in constants] == pytest.approx(
        list(constants.values()), abs=5e-3
    )


def test_known_looks():
    assert scheduled_looks(20) == [Look(5, 0.025), Look(10, 0.0125), Look(20, 0.0125)]
    assert scheduled_looks(7) == [Look(5, 0.025), Look(7, 0.025)]
    assert scheduled_looks(5) == [Look(5, 0.05)]
    assert scheduled_looks(3) == [Look(3, 0.05)]


def test_known_failure_p_values():
    assert failure_p_value((4, 0), (10, 10)) == pytest.approx(0.0433, abs=5e-5)
    assert failure_p_value((0, 5), (10, 10)) == pytest.approx(0.0163, abs=5e-5)


# Differences


def test_without_others_it_is_the_paired_t_test():
    [own] = differences(sample(BASELINE), [sample(ARMS[0])])
    reference = stats.ttest_rel(ARMS[0], BASELINE)
    assert own.p_value() == pytest.approx(reference.pvalue)
    low, high = reference.confidence_interval()
    assert own.half_width(0.05) == pytest.approx((high - low) / 2)
    assert own.test == "paired t"


def test_seeds_that_are_not_shared_are_left_out():
    baseline = {**sample(BASELINE), 77: 9.0}
    [own] = differences(baseline, [{**sample(ARMS[0]), 88: 1.0}])
    assert own == differences(sample(BASELINE), [sample(ARMS[0])])[0]
    assert own.baseline_mean == pytest.approx(np.mean(BASELINE))
    assert own.mean == pytest.approx(np.mean(ARMS[0]))
    assert shared_seeds({1: 0.0, 2: 0.0}, {2: 0.0, 3: 0.0}) == [2]


def test_without_two_shared_seeds_it_is_welchs_test():
    arm = {"a": 2.9, "b": 3.1, "c": 2.95, 0: 3.0}
    [own] = differences(sample(BASELINE), [arm])
    reference = stats.ttest_ind(list(arm.values()), BASELINE, equal_var=False)
    assert (own.test, own.paired, own.n) == ("Welch t", False, 4)
    assert own.df == pytest.approx(reference.df)
    assert own.p_value() == pytest.approx(reference.pvalue)


def test_an_arm_borrows_from_the_others_unless_it_is_noisier():
    """A second derivation of the variance of each known arm, with numpy and scipy.stats."""
    d = np.array(ARMS) - np.array(BASELINE)
    s2, n = d.var(axis=1, ddof=1), 5
    typical = s2 / (stats.chi2.ppf(0.5, n - 1) / (n - 1))
    found = differences(sample(BASELINE), [sample(arm) for arm in ARMS])
    for arm, own in enumerate(found):
        pool = np.median(np.delete(typical, arm))
        borrows = s2[arm] / pool <= stats.f.ppf(0.7, n - 1, 2 * (n - 1))
        variance = (pool + s2[arm]) / 2 if borrows else s2[arm]
        assert own.error == pytest.approx(math.sqrt(variance / n))
        assert own.test == ("moderated paired t" if borrows else "paired t")


def test_two_arms_do_not_borrow():
    assert {own.test for own in differences(sample(BASELINE), [sample(a) for a in ARMS[:2]])} == {
        "paired t"
    }


def test_arms_without_variance_have_no_estimate_and_lend_nothing():
    shifted = [x + 0.1 for x in BASELINE]
    alone = differences(sample(BASELINE), [sample(arm) for arm in ARMS])
    *others, none = differences(sample(BASELINE), [sample(a) for a in (*ARMS, shifted)])
    assert none is None
    assert others == alone


def test_too_few_seeds_have_no_estimate():
    assert differences(sample(BASELINE), [{}, {0: 1.0}, {"x": 1.0}]) == [None] * 3
    assert deviation([1.0]) is None


# Verdicts


def families(trials: int = 30):
    rng = random.Random(1)
    for _ in range(trials):
        arms, n = rng.randint(1, 6), rng.choice([3, 5, 8])
        shift = rng.choice([0, 0.02, 0.2])
        yield drawn(rng, n), [drawn(rng, n, 3 + rng.uniform(-shift, shift)) for _ in range(arms)]


def test_swapping_arm_and_baseline_turns_the_sign():
    turned = {BETTER: WORSE, WORSE: BETTER}
    for base, (arm, *_) in families():
        [one] = judge(results(base, allowance=0.002), [results(arm, allowance=0.001)])
        [other] = judge(results(arm, allowance=0.001), [results(base, allowance=0.002)])
        assert other.word == turned.get(one.word, one.word)
        assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
        assert other.p_adjusted == pytest.approx(one.p_adjusted)


def test_the_order_of_arms_does_not_matter():
    for base, arms in families(10):
        forth = judge(results(base), [results(arm) for arm in arms])
        back = judge(results(base), [results(arm) for arm in reversed(arms)])
        assert forth == back[::-1]


@pytest.mark.parametrize("rule", [DeclaredSeeds, ConfidenceSequence])
def test_p_is_below_alpha_exactly_where_the_interval_excludes_0(rule):
    rng, decided = random.Random(2), 0
    for base, arms in families(150):
        rules = rule(len(arms), alpha=rng.choice([0.05, 0.0125]))
        own = rng.choice([0.0, 0.004, 0.03])
        found = judge(
            results(base, allowance=0.002), [results(arm, allowance=own) for arm in arms], rules
        )
        for verdict in found:
            low, high = verdict.interval
            assert (verdict.p_adjusted < ALPHA) == (low > 0 or high < 0)
            decided += low > 0 or high < 0
    assert decided > 5


def test_the_family_stays_when_arms_drop_out():
    all_four = judge(results(BASELINE), [results(arm) for arm in ARMS])
    first, *_ = judge(results(BASELINE), [results(arm) for arm in ARMS[:3]], DeclaredSeeds(4))
    alone = judge(results(BASELINE), [results(ARMS[1])], DeclaredSeeds(4))[0]
    assert first.difference.value == all_four[0].difference.value
    assert alone.interval == pytest.approx(all_four[1].interval)


def test_an_allowance_widens_the_interval_on_its_side():
    [plain] = judge(results(BASELINE), [results(ARMS[0])])
    [tuned] = judge(results(BASELINE, allowance=0.01), [results(ARMS[0], allowance=0.004)])
    assert tuned.interval == pytest.approx((plain.interval[0] - 0.004, plain.interval[1] + 0.01))


def test_equal_and_negligible():
    close = [x + d for x, d in zip(BASELINE, (1e-3, -1e-3, 5e-4, -5e-4, 2e-4), strict=True)]
    [verdict] = judge(results(BASELINE), [results(close)])
    assert verdict.word == EQUAL
    assert verdict.farthest < 0.01
    lower = [x - 0.005 + d for x, d in zip(BASELINE, (1e-4, -1e-4, 5e-5, 0, 2e-5), strict=True)]
    [verdict] = judge(results(BASELINE), [results(lower)])
    assert (verdict.word, verdict.negligible) == (BETTER, True)
    assert not judge(results(BASELINE), [results(ARMS[0])])[0].negligible


def test_three_seeds_are_a_screening():
    screened = [
        judge(results(BASELINE[:n]), [results(ARMS[0][:n])])[0].screening for n in (2, 3, 4)
    ]
    assert screened == [True, True, False]


def test_why_there_is_no_verdict():
    [few, none, same] = judge(
        results(BASELINE),
        [results([3.0]), results([]), results(BASELINE)],
    )
    assert few.reason == "the arm has 1 finished run; at least 2 are needed"
    assert none.reason == "the arm has 0 finished runs; at least 2 are needed"
    assert same.reason == "every seed has the loss of the baseline, as the same model would"
    [verdict] = judge(results([3.0]), [results(BASELINE)])
    assert verdict.reason == "the baseline has 1 finished run; at least 2 are needed"
    assert verdict.word == INCONCLUSIVE


@pytest.mark.parametrize(
    ("values", "arm", "baseline", "word"),
    [
        (ARMS[0], 0, 1, BETTER),
        (ARMS[0], 1, 1, BETTER),
        (ARMS[0], 1, 0, INCONCLUSIVE),
        ([x + 0.1 for x in ARMS[0]], 1, 0, WORSE),
        ([x + 0.1 for x in ARMS[0]], 0, 1, INCONCLUSIVE),
        ([x + 0.03 for x in ARMS[0]], 0, 0, EQUAL),
        ([x + 0.03 for x in ARMS[0]], 1, 1, INCONCLUSIVE),
    ],
)
def test_failures_bar_verdicts_in_their_favour(values, arm, baseline, word):
    [verdict] = judge(
        results(BASELINE, failures=baseline), [results(values, failures=arm)], margin=0.02
    )
    assert verdict.word == word
    if word == INCONCLUSIVE:
        assert " among finished runs, but 1 of 6 runs of the " in verdict.reason


# Looks


@pytest.mark.parametrize("most", [2, 3, 5, 6, 9, 10, 11, 20, 37, 100, 640])
def test_looks_spend_alpha(most):
    looks = scheduled_looks(most)
    assert sum(look.alpha for look in looks) == pytest.approx(ALPHA)
    assert looks[-1].n == most
    assert [look.n for look in looks] == sorted({look.n for look in looks})


def test_the_confidence_sequence_needs_paired_seeds_and_borrows_nothing():
    rule = ConfidenceSequence(4)
    found = rule.estimates(sample(BASELINE), [sample(arm) for arm in ARMS])
    assert {own.test for own in found} == {"paired t"}
    assert rule.estimates(sample(BASELINE), [{"a": 1.0, "b": 2.0}]) == [None]


def test_a_confidence_sequence_is_wider_than_any_declared_interval():
    for n, family in ((5, 1), (20, 1), (10, 8)):
        declared = t_critical(n - 1, sidak_level(ALPHA, family))
        assert ConfidenceSequence(family).critical(n - 1, n) > declared


def looked_at(value: float, error: float, n: int = 5) -> Verdict:
    rng = random.Random(0)
    noise = drawn(rng, n, 0.0, 1.0)
    centre, sd = np.mean(noise), np.std(noise, ddof=1)
    arm = [
        b + value + error * math.sqrt(n) * (x - centre) / sd
        for b, x in zip(BASELINE, noise, strict=False)
    ]
    return judge(results(BASELINE), [results(arm)])[0]


def test_an_arm_goes_on_while_the_last_look_may_decide():
    last = DeclaredSeeds(8, 0.0125)
    assert futile(looked_at(0.0, 0.1), last, 20)
    assert not futile(looked_at(0.5, 0.1), last, 20)  # likely to be worse
    assert not futile(looked_at(0.0, 0.001), last, 20)  # likely to be equal


# Failures


@pytest.mark.parametrize(("failures", "runs"), [(0, 5), (1, 10), (5, 5), (3, 8)])
def test_failure_interval_is_the_exact_one(failures, runs):
    exact = stats.binomtest(failures, runs).proportion_ci(0.95, method="exact")
    assert failure_interval(failures, runs) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(
    ("failures", "runs"), [((2, 1), (3, 4)), ((0, 3), (4, 3)), ((1, 1), (2, 5))]
)
def test_failure_p_value_by_enumeration(failures, runs):
    """Every way to spread the failures over all runs is equally likely."""
    splits = [
        sum(run < runs[0] for run in failed)
        for failed in combinations(range(sum(runs)), sum(failures))
    ]
    shares = {k: splits.count(k) / len(splits) for k in set(splits)}
    seen = shares[failures[0]]
    less = sum(p for p in shares.values() if p < seen - 1e-12)
    tied = sum(p for p in shares.values() if abs(p - seen) < 1e-12)
    assert failure_p_value(failures, runs) == pytest.approx(less + tied / 2)


def test_blow_ups_are_far_above_their_arms_median():
    quiet, wild = [3.0, 3.01, 2.99, 3.0, 3.2], [3.0, 3.01, 3.0, 3.0, 3.05]
    assert blow_ups([quiet, wild]) == [[False] * 4 + [True], [False] * 5]
    noisy = [3.0, 3.1, 2.9, 3.05, 3.2]
    assert blow_ups([noisy, []]) == [[False] * 5, []]


# Plans


def test_power_is_that_of_the_noncentral_t():
    """Against scipy's noncentral t, for the error that the plan assumes."""
    [own] = differences(sample(BASELINE), [sample(ARMS[0])])
    plan = Plan.after(own, DeclaredSeeds(1, 0.02))
    error = own.error * math.sqrt(own.df / stats.chi2.ppf(0.3, own.df))
    for seeds in (5, 12):
        shift = 0.02 / (error * math.sqrt(own.n / seeds))
        critical = stats.t.ppf(0.99, seeds - 1)
        exact = stats.nct.sf(critical, seeds - 1, shift)
        assert plan.power(0.02, seeds) == pytest.approx(exact, abs=1e-4)


def test_plans_are_the_smallest_that_do():
    [own] = differences(sample(BASELINE), [sample(ARMS[0])])
    plan = Plan.after(own, DeclaredSeeds(1))
    seeds = plan.seeds_needed(0.01)
    assert plan.power(0.01, seeds) >= 0.8 > plan.power(0.01, seeds - 1)
    assert plan.power(plan.detectable(), own.n) == pytest.approx(0.8, abs=0.01)
    assert plan.seeds_needed(1e-9) is None
    assert plan.seeds_needed(0) is None


def test_sidak():
    assert sidak_p(sidak_level(0.05, 7), 7) == pytest.approx(0.05)
    assert sidak_p(1.0, 7) == 1


def test_plans_pay_for_the_allowance_and_the_rule():
    own = Estimate(0.0, 0.004, 4, 5, "paired t")
    plain = Plan.after(own, DeclaredSeeds(1))
    tuned = Plan.after(own, DeclaredSeeds(1), allowance=0.006)
    assert tuned.seeds_needed(0.01) > plain.seeds_needed(0.01)
    assert tuned.seeds_needed(0.016) == plain.seeds_needed(0.01)
    assert tuned.detectable() == pytest.approx(plain.detectable() + 0.006, rel=2e-3)
    assert tuned.seeds_needed(0.006) is None  # the interval never gets so narrow
    added = Plan.after(own, ConfidenceSequence(1))
    assert added.seeds_needed(0.01) > plain.seeds_needed(0.01)
    assert Plan.after(own, ConfidenceSequence(10**6)).detectable() is None


def test_seeds_needed_for_a_confidence_sequence_have_the_power():
    """With the true variance known exactly (df large), over 400 trials."""
    rule, rng = ConfidenceSequence(1), np.random.default_rng(3)
    n = Plan(0.01 / math.sqrt(5), 1e9, 5, rule).seeds_needed(0.01)
    found = 0
    for _ in range(400):
        draws = rng.normal(0.01, 0.01, n)
        error = draws.std(ddof=1) / math.sqrt(n)
        found += draws.mean() > rule.critical(n - 1, n) * error
    assert found / 400 == pytest.approx(0.8, abs=0.07)


# Crossed seeds


def grid_of(seeds: int, orders: int, seed: int = 0, sd=(0.02, 0.02, 0.01)) -> dict:
    """Losses over seeds crossed with orders of the data, each of which has an effect of its own."""
    rng = np.random.default_rng(seed)
    of_seed, of_order = sd[0] * rng.normal(size=seeds), sd[1] * rng.normal(size=orders)
    return {
        (s, d): 3.0 + of_seed[s] + of_order[d] + sd[2] * rng.normal()
        for s in range(seeds)
        for d in range(orders)
    }


def test_a_grid_of_seeds_and_orders_is_not_a_sample_of_independent_pairs():
    """Of 400 comparisons without a difference at most 5 % may be decided; as if the 16 runs of a
    grid were independent, a third would be."""
    false = naive = 0
    for trial in range(400):
        base, arm = grid_of(4, 4, 2 * trial), grid_of(4, 4, 2 * trial + 1)
        [crossed] = differences(base, [arm])
        assert (crossed.test, crossed.n) == ("crossed t", 4)
        false += crossed.p_value() < 0.05
        [alone] = differences(dict(enumerate(base.values())), [dict(enumerate(arm.values()))])
        naive += alone.p_value() < 0.05
    assert false / 400 < 0.08
    assert naive / 400 > 0.2


@pytest.mark.parametrize(("seeds", "orders", "df"), [(3, 3, 2), (2, 5, 4), (5, 5, 4)])
def test_a_grid_with_a_missing_cell_is_judged_on_the_full_grid_in_it(seeds, orders, df):
    """As independent pairs, 20 to 32 % of comparisons without a difference would be decided."""
    false = 0
    for trial in range(300):
        base, arm = (grid_of(seeds, orders, 2 * trial + k) for k in (0, 1))
        del arm[seeds - 1, orders - 1]
        [crossed] = differences(base, [arm])
        assert (crossed.test, crossed.df <= 2 * df) == ("crossed t", True)
        false += crossed.p_value() < 0.05
    assert false / 300 < 0.09


def test_seeds_that_share_orders_without_a_grid_have_no_verdict():
    """Nine seeds over three orders of the data, whose pairs are not independent."""
    base = {(s, s % 3): 3.0 + 0.01 * s for s in range(9)}
    arm = {cell: loss - 0.1 + 0.001 * cell[0] ** 2 for cell, loss in base.items()}
    assert differences(base, [arm]) == [None]
    assert estimate_contrast([Term(1, arm), Term(-1, base)]) is None
    [verdict] = judge(Results(base), [Results(arm)])
    assert verdict.word == INCONCLUSIVE
    assert "without forming a full grid" in verdict.reason
    unshared = {(s + 100, d): loss for (s, d), loss in arm.items()}
    assert "without forming a full grid" in judge(Results(base), [Results(unshared)])[0].reason


def test_one_order_of_the_data_for_all_seeds_leaves_them_independent():
    base = {(s, 7): 3.0 + 0.01 * s for s in range(5)}
    arm = {cell: loss + 0.001 * cell[0] ** 2 for cell, loss in base.items()}
    assert differences(base, [arm])[0].test == "paired t"


def test_seeds_with_orders_of_their_own_are_independent():
    base = {(s, s): 3.0 + 0.01 * s for s in range(5)}
    arm = {key: value + 0.02 * (-1) ** key[0] for key, value in base.items()}
    assert differences(base, [arm])[0].test == "paired t"
