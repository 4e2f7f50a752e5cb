//! Durations in buckets, each a 32nd of a power of two of microseconds: at most 3 % off.

use core::time::Duration;

const STEPS: usize = 32;

#[derive(Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            buckets: vec![0; STEPS * 32],
            total: 0,
        }
    }
}

impl Histogram {
    /// Returns how many durations there are.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.total).unwrap_or(usize::MAX)
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        let micros = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        self.buckets[bucket(micros)] += 1;
        self.total += 1;
    }

    pub(crate) fn merge(&mut self, other: &Histogram) {
        for (ours, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *ours += theirs;
        }
        self.total += other.total;
    }

    /// What `per_mille` of the durations are at most. Zero if there are none.
    pub(crate) fn percentile(&self, per_mille: u64) -> Duration {
        let wanted = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        let at = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Duration::from_micros(at.map_or(0, upper_bound))
    }
}

/// Durations below 32 µs have a bucket each; above, the leading six bits choose it.
fn bucket(micros: u32) -> usize {
    let shift = (26_u32).saturating_sub(micros.leading_zeros());
    shift as usize * STEPS + (micros >> shift) as usize
}

fn upper_bound(bucket: usize) -> u64 {
    let shift = (bucket / STEPS).saturating_sub(1);
    let leading = (bucket - shift * STEPS) as u64;
    ((leading + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_within_three_percent_below_its_buckets_bound() {
        for micros in (0..3_000_000_u32)
            .step_by(7)
            .chain([u32::MAX - 1, u32::MAX])
        {
            let bound = upper_bound(bucket(micros));
            let micros = u64::from(micros);
            assert!(
                bound >= micros && bound - micros <= micros / 32,
                "{micros}: {bound}"
            );
        }
    }

    #[test]
    fn percentiles_of_one_to_a_thousand() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|n| histogram.add(Duration::from_micros(n)));
        let near = |at, wanted: u64| {
            let found = u64::try_from(histogram.percentile(at).as_micros()).unwrap();
            assert!(
                found >= wanted && found <= wanted + wanted / 32,
                "{at}: {found}"
            );
        };
        near(500, 500);
        near(990, 990);
        near(1000, 1000);
        assert_eq!(Histogram::default().percentile(500), Duration::ZERO);
    }
}
