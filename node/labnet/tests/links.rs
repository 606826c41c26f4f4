//! A link does what it is asked to do, in time, share and distribution.

use iptl_labnet::{Fate, Jitter, Link, LinkConfig};

use crate::rng::Rng;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

fn arrival(fate: Fate) -> u64 {
    match fate {
        Fate::Arrives { at_ns, .. } => at_ns,
        other => panic!("{other:?}"),
    }
}

/// Returns the fates of packets offered every 10 µs.
fn trace(config: LinkConfig, seed: u64, packets: u64) -> Vec<Fate> {
    let mut link = Link::new(config, seed);
    (0..packets).map(|i| link.offer(i * 10_000, 1_000)).collect()
}

/// Fails where a share is farther from what was asked than chance explains once in a million times.
#[track_caller]
fn assert_binomial(count: usize, of: usize, ppm: u32) {
    let (n, p) = (of as f64, f64::from(ppm) / 1e6);
    let off = (count as f64 - n * p).abs() / (n * p * (1.0 - p)).sqrt();
    assert!(off < 4.9, "{count} of {of} at {ppm} ppm are {off:.1} standard deviations off");
}

#[test]
fn delay_is_exact() {
    let mut rng = Rng(1);
    let mut now = 0;
    for delay_ns in [0, 1, 50 * MS, 3 * SECOND] {
        let mut link = Link::new(LinkConfig { delay_ns, ..LinkConfig::default() }, 7);
        for _ in 0..1_000 {
            now += rng.next() % MS;
            assert_eq!(arrival(link.offer(now, rng.below(1_500))), now + delay_ns);
        }
    }
}

#[test]
fn rate_is_kept_within_half_a_percent_at_any_rate_and_size() {
    for rate_bps in [56_000, 1_000_000, 10_000_000, 999_999_937, 100_000_000_000] {
        let mut rng = Rng(rate_bps);
        let mut link = Link::new(LinkConfig { rate_bps, queue_bytes: u64::MAX, ..LinkConfig::default() }, 1);
        let sizes: Vec<usize> = (0..5_000).map(|_| 40 + rng.below(1_461)).collect();
        let last = sizes.iter().map(|size| arrival(link.offer(0, *size))).last().unwrap();
        let asked = sizes.iter().sum::<usize>() as f64 * 8.0 / rate_bps as f64;
        let ratio = last as f64 / 1e9 / asked;
        assert!((ratio - 1.0).abs() < 0.005, "{rate_bps} bit/s: {ratio}");
    }
}

#[test]
fn queue_holds_its_bytes_and_no_more() {
    let config = LinkConfig { rate_bps: 8_000_000, queue_bytes: 10_000, ..LinkConfig::default() };
    let mut link = Link::new(config, 1);
    let fates: Vec<Fate> = (0..20).map(|_| link.offer(0, 1_000)).collect();
    assert!(fates[..10].iter().all(|fate| matches!(fate, Fate::Arrives { .. })), "ten fit");
    assert!(fates[10..].iter().all(|fate| *fate == Fate::Overflow), "the eleventh does not");
    assert_eq!(link.backlog_bytes(0), 10_000);
    // A thousand bytes leave each millisecond.
    assert_eq!(link.offer(MS - 1, 1_000), Fate::Overflow);
    assert_eq!(arrival(link.offer(MS, 1_000)), 11 * MS);
    // A packet larger than the queue passes an empty link.
    assert_eq!(arrival(link.offer(SECOND, 64_000)), SECOND + 64 * MS);
}

#[test]
fn shares_are_those_asked_for() {
    for ppm in [100, 10_000, 50_000, 500_000] {
        let config = LinkConfig {
            loss_ppm: ppm,
            duplicate_ppm: ppm,
            corrupt_ppm: ppm,
            reorder_ppm: ppm,
            delay_ns: MS,
            ..LinkConfig::default()
        };
        let fates = trace(config, u64::from(ppm), 200_000);
        let lost = fates.iter().filter(|fate| **fate == Fate::Lost).count();
        assert_binomial(lost, fates.len(), ppm);
        let (mut copies, mut corrupted, mut early) = (0, 0, 0);
        for (i, fate) in fates.iter().enumerate() {
            if let Fate::Arrives { at_ns, copy_at_ns, turned_bit } = fate {
                copies += usize::from(copy_at_ns.is_some());
                corrupted += usize::from(turned_bit.is_some());
                early += usize::from(*at_ns == i as u64 * 10_000);
            }
        }
        for count in [copies, corrupted, early] {
            assert_binomial(count, fates.len() - lost, ppm);
        }
    }
    assert!(
        trace(LinkConfig { loss_ppm: 1_000_000, ..LinkConfig::default() }, 3, 1_000).iter().all(|f| *f == Fate::Lost)
    );
}

#[test]
fn a_link_that_is_down_passes_nothing() {
    let fates = trace(LinkConfig { down: true, ..LinkConfig::default() }, 3, 100);
    assert!(fates.iter().all(|fate| *fate == Fate::Lost));
}

/// Returns the share of numbers of a normal distribution below `x` (Abramowitz and Stegun 7.1.26).
fn normal(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs() / 2f64.sqrt());
    let series = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let erf = 1.0 - series.iter().rev().fold(0.0, |sum, a| (sum + a) * t) * (-x * x / 2.0).exp();
    if x < 0.0 { (1.0 - erf) / 2.0 } else { (1.0 + erf) / 2.0 }
}

/// A distribution, its share below a number of spreads, and how far it may be from that.
type Distribution = (Jitter, fn(f64) -> f64, f64);

#[test]
fn jitter_has_its_distribution_by_kolmogorov_and_smirnov() {
    let distributions: [Distribution; 3] = [
        (Jitter::Uniform, |x| ((x + 1.0) / 2.0).clamp(0.0, 1.0), 0.0),
        // The sum of six is no exact bell: it is off by 0.003 at most.
        (Jitter::Normal, normal, 0.003),
        (Jitter::Exponential, |x| 1.0 - (-x.max(0.0)).exp(), 0.0),
    ];
    for (jitter, below, allowance) in distributions {
        let config = LinkConfig { delay_ns: 100 * MS, jitter_ns: 10 * MS, jitter, ..LinkConfig::default() };
        let mut link = Link::new(config, 11);
        // A second apart, so that no packet has to wait for the one before it.
        let mut shifts: Vec<f64> =
            (0..20_000).map(|i| (arrival(link.offer(i * SECOND, 100)) - i * SECOND) as f64 / 1e7 - 10.0).collect();
        shifts.sort_by(f64::total_cmp);
        let n = shifts.len() as f64;
        let farthest = shifts.iter().enumerate().map(|(i, x)| {
            let expected = below(*x);
            (expected - i as f64 / n).abs().max(((i + 1) as f64 / n - expected).abs())
        });
        let farthest = farthest.fold(0.0, f64::max);
        // 1.95 is the bound that chance passes once in a thousand times.
        assert!(farthest < 1.95 / n.sqrt() + allowance, "{jitter:?}: {farthest}");
    }
}

#[test]
fn packets_keep_their_order_unless_the_link_reorders() {
    let jittery = LinkConfig { delay_ns: MS, jitter_ns: 5 * MS, duplicate_ppm: 100_000, ..LinkConfig::default() };
    let arrivals = |config| trace(config, 5, 10_000).into_iter().map(arrival).collect::<Vec<_>>();
    assert!(arrivals(jittery).is_sorted());
    assert!(!arrivals(LinkConfig { reorder_ppm: 1, ..jittery }).is_sorted());
}

#[test]
fn one_seed_has_one_trace_and_another_has_another() {
    let config = LinkConfig {
        delay_ns: MS,
        jitter_ns: MS,
        jitter: Jitter::Normal,
        rate_bps: 500_000_000,
        queue_bytes: 20_000,
        loss_ppm: 100_000,
        duplicate_ppm: 100_000,
        reorder_ppm: 100_000,
        corrupt_ppm: 100_000,
        down: false,
    };
    assert_eq!(trace(config, 1, 5_000), trace(config, 1, 5_000));
    assert_ne!(trace(config, 1, 5_000), trace(config, 2, 5_000));
}

#[test]
fn changing_one_chance_changes_no_other_decision() {
    let before = LinkConfig { loss_ppm: 10_000, corrupt_ppm: 100_000, ..LinkConfig::default() };
    let after = LinkConfig { loss_ppm: 20_000, duplicate_ppm: 500_000, ..before };
    let mut more_lost = 0;
    for (before, after) in trace(before, 9, 20_000).into_iter().zip(trace(after, 9, 20_000)) {
        match (before, after) {
            (Fate::Lost, after) => assert_eq!(after, Fate::Lost, "who was lost still is"),
            (_, Fate::Lost) => more_lost += 1,
            (Fate::Arrives { turned_bit: before, .. }, Fate::Arrives { turned_bit: after, .. }) => {
                assert_eq!(before, after);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(more_lost > 0);
}

#[test]
fn extreme_values_neither_panic_nor_wrap() {
    let extreme = [0, 1, u64::MAX];
    for delay_ns in extreme {
        for jitter_ns in extreme {
            for rate_bps in extreme {
                for jitter in [Jitter::Uniform, Jitter::Normal, Jitter::Exponential] {
                    let config = LinkConfig {
                        delay_ns,
                        jitter_ns,
                        rate_bps,
                        queue_bytes: u64::MAX,
                        jitter,
                        ..LinkConfig::default()
                    };
                    let mut link = Link::new(config, 1);
                    for now in [0, SECOND, u64::MAX] {
                        assert!(arrival(link.offer(now, 65_535)) >= now);
                    }
                }
            }
        }
    }
}
