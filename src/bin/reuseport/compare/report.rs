//! What the rounds have shown: a table, and what to conclude from it.

use core::fmt::Write as _;

use crate::output::ratio;

/// One way's turn in one round. Times are milliseconds, but for `cpu`.
pub(crate) struct Round {
    /// Connections a second.
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) longest: f64,
    /// What the least busy thread handled, by what the busiest did.
    pub(crate) fairness: f64,
    /// Context switches a connection.
    pub(crate) switches: f64,
    /// Microseconds of processor time a connection.
    pub(crate) cpu: f64,
}

pub(crate) type Of = fn(&Round) -> f64;

/// One way's rounds.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) rounds: Vec<Round>,
}

/// The median of the rounds, and how far they go.
#[derive(Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) mid: f64,
    pub(crate) high: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[0], values[values.len() - 1]);
        let mid = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Spread { low, mid, high }
    }

    /// How far the rounds are from the median at most, in percent of it.
    fn percent(&self) -> f64 {
        (self.high - self.mid).max(self.mid - self.low) / self.mid * 100.0
    }
}

/// The chance that of `rounds` between two equals at least `won` go to the same one of them.
fn chance(won: usize, rounds: usize) -> f64 {
    let mut ways = 1.0; // in which the other one wins so many
    let mut sum = 0.0;
    for lost in 0..=rounds - won {
        sum += ways;
        ways *= ratio(rounds - lost, lost + 1);
    }
    (sum / 2_f64.powi(i32::try_from(rounds).unwrap_or(i32::MAX) - 1)).min(1.0)
}

/// A cell of the table: a dash for a quotient by nothing.
fn number(value: f64, width: usize, digits: usize) -> String {
    if value.is_finite() {
        let digits = if value < 1000.0 { digits } else { 0 };
        format!("{value:>width$.digits$}")
    } else {
        format!("{:>width$}", '-')
    }
}

impl Row {
    pub(crate) fn new(name: &'static str) -> Row {
        let rounds = Vec::new();
        Row { name, rounds }
    }

    pub(crate) fn spread(&self, of: Of) -> Spread {
        Spread::of(self.rounds.iter().map(of))
    }

    fn median(&self, of: Of) -> f64 {
        self.spread(of).mid
    }

    /// How many times as much as the other way it has, round by round.
    fn times(&self, other: &Row, of: Of) -> impl Iterator<Item = f64> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        pairs.map(move |(mine, theirs)| of(mine) / of(theirs))
    }
}

/// All of it.
pub(crate) struct Report {
    /// How to have it again.
    pub(crate) command: String,
    /// What was compared.
    pub(crate) title: String,
    /// Connections, or datagrams.
    pub(crate) what: &'static str,
    pub(crate) rows: Vec<Row>,
    /// The ways that this kernel does not have.
    pub(crate) missing: Vec<&'static str>,
    /// The row that the others are measured by.
    pub(crate) base: usize,
}

impl Report {
    /// Whether one has more than the other, whatever the spread: in so many of the rounds that
    /// among equals this would be found of any two in less than 5 % of runs.
    fn exceeds(&self, one: &Row, other: &Row, of: Of) -> bool {
        let won = one.times(other, of).filter(|times| *times > 1.0).count();
        self.suffices(won, one.rounds.len())
    }

    fn suffices(&self, won: usize, rounds: usize) -> bool {
        let pairs = ratio(self.rows.len() * (self.rows.len() - 1), 2);
        chance(won, rounds) * pairs < 0.05
    }

    /// Drops the rounds in which not all ways have had their turn, and returns how many are left.
    pub(crate) fn keep_complete_rounds(&mut self) -> usize {
        let complete = self
            .rows
            .iter()
            .map(|row| row.rounds.len())
            .min()
            .unwrap_or(0);
        self.rows
            .iter_mut()
            .for_each(|row| row.rounds.truncate(complete));
        complete
    }

    pub(crate) fn table(&self) -> String {
        let (base, rate): (_, Of) = (&self.rows[self.base], |round| round.rate);
        let mut text = format!(
            "{:20}  conn/s  spread  {:>7}     p50     p99   p99.9     max  fair  \
             switches    cpu\n",
            "",
            base.name.split(' ').next_back().unwrap_or_default()
        );
        for row in &self.rows {
            let Spread { mid, .. } = row.spread(rate);
            let times = Spread::of(row.times(base, rate)).mid;
            let differs = self.exceeds(row, base, rate) || self.exceeds(base, row, rate);
            let sure = differs || row.name == base.name;
            let doubt = if sure { ' ' } else { '?' };
            _ = write!(text, "{:20}  {mid:>6.0}", row.name);
            let percent = number(row.spread(rate).percent(), 4, 0);
            _ = write!(text, "  {percent} %  {}{doubt}", number(times, 6, 2));
            for of in [|r: &Round| r.p50, |r| r.p99, |r| r.p999, |r| r.longest] as [Of; 4] {
                _ = write!(text, "  {}", number(row.median(of), 6, 2));
            }
            let cells: [(Of, _, _); 3] = [
                (|round| round.fairness, 4, 2),
                (|round| round.switches, 8, 2),
                (|round| round.cpu, 5, 1),
            ];
            for (of, width, digits) in cells {
                _ = write!(text, "  {}", number(row.median(of), width, digits));
            }
            text.push('\n');
        }
        for name in &self.missing {
            _ = writeln!(text, "{name:20}  not on this kernel");
        }
        text
    }

    pub(crate) fn conclusions(&self) -> String {
        let rounds = self.rows[0].rounds.len();
        let enough = (1..100).find(|enough| self.suffices(*enough, *enough));
        if let Some(enough) = enough.filter(|enough| *enough > rounds) {
            let rounds = match rounds {
                1 => "1 round is".to_owned(),
                _ => format!("{rounds} rounds are"),
            };
            return format!("{rounds} too few to conclude from; {enough} are enough.\n");
        }
        let most = self.conclude("Most conn/s", |round| round.rate);
        most + &self.conclude("Lowest p99", |round| 1.0 / round.p99)
    }

    /// Which way makes more than which, as far as the rounds agree.
    fn conclude(&self, what: &str, of: Of) -> String {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by(|a, b| b.median(of).total_cmp(&a.median(of)));
        let first = rows.remove(0);
        let (behind, alike): (Vec<&Row>, Vec<_>) = rows
            .into_iter()
            .partition(|row| self.exceeds(first, row, of));
        let Some(last) = behind.last() else {
            return format!("{what}: the rounds tell no way from {}.\n", first.name);
        };
        let Spread { low, mid, high } = Spread::of(first.times(last, of));
        let mut text = format!("{what}: {}, ahead of {}", first.name, last.name);
        if mid.is_finite() {
            _ = write!(text, " by a factor of {mid:.2}");
            _ = write!(text, " ({low:.2} to {high:.2} by round)");
        } else {
            text += ", which had none";
        }
        if !alike.is_empty() {
            let alike: Vec<_> = alike.iter().map(|row| row.name).collect();
            _ = write!(text, "; not told apart from {}", alike.join(", "));
        }
        text + ".\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, rates: &[f64]) -> Row {
        let round = |rate: &f64| Round {
            rate: *rate,
            p50: 1.0,
            p99: 1000.0 / rate,
            p999: 1.0,
            longest: 1.0,
            fairness: 1.0,
            switches: 1.0,
            cpu: 1.0,
        };
        let rounds = rates.iter().map(round).collect();
        Row { name, rounds }
    }

    fn report(rows: Vec<Row>) -> Report {
        let command = String::new();
        Report {
            command,
            title: String::new(),
            what: "connections",
            rows,
            missing: Vec::new(),
            base: 0,
        }
    }

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        for (values, low, mid, high) in [
            (&[3.0][..], 3.0, 3.0, 3.0),
            (&[4.0, 1.0], 1.0, 2.5, 4.0),
            (&[9.0, 1.0, 2.0], 1.0, 2.0, 9.0),
            (&[7.0, 1.0, 3.0, 2.0], 1.0, 2.5, 7.0),
        ] {
            let spread = Spread::of(values.iter().copied());
            assert_eq!(spread, Spread { low, mid, high });
        }
        let spread = Spread::of([90.0, 100.0, 120.0].into_iter());
        assert!((spread.percent() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn the_chance_is_that_of_tossed_coins() {
        for (won, rounds, of_1024) in [(1, 1, 1024.0), (5, 5, 64.0), (9, 10, 22.0), (10, 10, 2.0)] {
            assert!((chance(won, rounds) * 1024.0 - of_1024).abs() < 1e-9);
        }
        assert!((chance(5, 10) - 1.0).abs() < 1e-9 && chance(600, 1000) < 1e-9);
    }

    #[test]
    fn a_difference_counts_if_enough_rounds_agree() {
        let slow = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let fast = slow.map(|rate| rate * 1.01);
        let exceeded = |a: &[f64], b: &[f64]| {
            let both = report(vec![row("a", a), row("b", b)]);
            both.exceeds(&both.rows[1], &both.rows[0], |round| round.rate)
        };
        // The rounds are far apart, the pairs are not.
        assert!(exceeded(&slow, &fast) && !exceeded(&fast, &slow));
        assert!(!exceeded(&slow, &slow));
        assert!(!exceeded(&slow[1..], &fast[1..]), "five rounds are too few");
        for times in [0.99, 1.0] {
            let mut once = fast;
            once[3] = slow[3] * times;
            assert!(
                !exceeded(&slow, &once) && !exceeded(&once, &slow),
                "{times}"
            );
        }
        // One of many may disagree.
        let (slow, mut fast) = ([1.0; 12], [1.1; 12]);
        fast[3] = 0.9;
        assert!(exceeded(&slow, &fast));
    }

    #[test]
    fn conclusions_follow_the_rounds() {
        let (low, high) = ([10.0; 6], [20.0, 25.0, 20.0, 25.0, 20.0, 30.0]);
        let told = report(vec![row("slow", &low), row("fast", &high)]).conclusions();
        let ahead = "fast, ahead of slow by a factor of 2.25 (2.00 to 3.00 by round)";
        let expected = format!("Most conn/s: {ahead}.\nLowest p99: {ahead}.\n");
        assert_eq!(told, expected);
        let mut doubtful = high;
        doubtful[0] = 9.0;
        let told = report(vec![row("slow", &low), row("odd", &doubtful)]).conclusions();
        assert!(told.starts_with("Most conn/s: the rounds tell no way from odd.\n"));
        let told = report(vec![row("none", &[0.0; 6]), row("some", &low)]);
        let conclusions = told.conclusions();
        let expected = "Most conn/s: some, ahead of none, which had none.\n";
        assert!(conclusions.starts_with(expected), "{conclusions}");
        let table = told.table();
        assert!(!table.contains("NaN") && !table.contains("inf"), "{table}");
        // Three ways are three pairs: one of them differs by chance more often.
        let three = |n: usize| {
            let rates = [
                [10.0; 8],
                [21.0; 8],
                [20.0, 22.0, 20.0, 22.0, 20.0, 22.0, 20.0, 22.0],
            ];
            let rows = ["a", "b", "c"].iter().zip(&rates);
            report(rows.map(|(name, rates)| row(name, &rates[..n])).collect()).conclusions()
        };
        assert_eq!(
            three(6),
            "6 rounds are too few to conclude from; 7 are enough.\n"
        );
        assert!(three(8).contains("ahead of a by") && three(8).contains("; not told apart from"));
    }
}
