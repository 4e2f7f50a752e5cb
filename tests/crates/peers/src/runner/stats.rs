//! What the rounds have in common, and whether they agree.

/// Of an odd or even number of values, the middle; the lowest; the highest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Whether one of two sides of 1 is preferred: a sign test.
    pub(crate) told_apart: Option<bool>,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&low, &high) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        let above = sorted.iter().filter(|value| **value > 1.0).count();
        Some(Spread {
            median,
            low,
            high,
            told_apart: told_apart(above, sorted.len()),
        })
    }

    /// In words, for "ours by theirs".
    pub(crate) fn verdict(&self) -> &'static str {
        match self.told_apart {
            None => "too few rounds",
            Some(false) => "not told apart",
            Some(true) if self.median > 1.0 => "ahead",
            Some(true) => "behind",
        }
    }
}

/// Whether `above` of `rounds` being on one side says that there is a difference: where there is
/// none, one in twenty says so too. `None`: not even all on one side would say it.
fn told_apart(above: usize, rounds: usize) -> Option<bool> {
    let most = above.max(rounds - above);
    let chance = |at_least: usize| -> f64 {
        // Both tails of a fair coin: 2 * sum of C(rounds, k) / 2^rounds.
        let mut term = 2.0 * 0.5_f64.powi(i32::try_from(rounds).unwrap_or(i32::MAX));
        let mut sum = 0.0;
        for heads in (at_least..=rounds).rev() {
            sum += term;
            #[allow(clippy::cast_precision_loss)] // as many as there are rounds
            let step = heads as f64 / (rounds - heads + 1) as f64;
            term *= step;
        }
        sum
    };
    (chance(rounds) <= 0.05).then(|| chance(most) <= 0.05)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_test() {
        // From the binomial distribution's tables.
        assert_eq!(told_apart(5, 5), None);
        assert_eq!(told_apart(6, 6), Some(true));
        assert_eq!(told_apart(6, 7), Some(false));
        assert_eq!(told_apart(12, 15), Some(true));
        assert_eq!(told_apart(4, 15), Some(false));
        assert_eq!(told_apart(3, 15), Some(true));
    }

    #[test]
    fn the_middle() {
        let odd = Spread::of([3.0, 1.0, 2.0]).expect("three values");
        assert!((odd.median - 2.0).abs() < 1e-9 && (odd.high - 3.0).abs() < 1e-9);
        let even = Spread::of([4.0, 1.0, 2.0, 3.0]).expect("four values");
        assert!((even.median - 2.5).abs() < 1e-9 && (even.low - 1.0).abs() < 1e-9);
        assert!(Spread::of([]).is_none());
    }
}
