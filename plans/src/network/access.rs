//! Ways to be connected: `[network.access.NAME]`, and those that everybody has.

use std::collections::BTreeMap;

use iptl_dag::model::{AccessClass, JitterModel, LinkModel};
use toml::de::DeTable;

use super::{duration_us, shape};
use crate::codes;
use crate::diagnostic::{Diagnostic, quote};
use crate::section::{Section, Sink, out_of_range, quantity};
use crate::units;

/// Name of the class without delay, loss and limits.
pub(super) const CLEAN: &str = "clean";

/// MTU of Ethernet, where neither a class nor its network says another.
pub(super) const DEFAULT_MTU: u16 = 1500;

/// Smallest and largest MTU: what every link of IPv6 must carry, and the jumbo frames of Ethernet.
const MTU: std::ops::RangeInclusive<i64> = 1280..=9000;

/// Slowest and fastest rate, in bits per second: a modem of the sixties and the fastest port that is sold.
const MIN_RATE: u64 = 300;
const MAX_RATE: u64 = 1_000_000_000_000;

/// Largest queue, in bytes: more than any box has.
const MAX_QUEUE: u64 = 1 << 30;

/// Smallest queue where a link has a rate and does not say: two dozen full packets.
const MIN_DEFAULT_QUEUE: u64 = 32 << 10;

/// A queue holds what its link sends in this time, in milliseconds, where the link does not say.
const DEFAULT_QUEUE_MS: u64 = 100;

const CLASSES: &str = include_str!("access.toml");

/// Returns the class without delay, loss and limits.
pub(super) fn clean(mtu: u16) -> AccessClass {
    AccessClass { up: LinkModel::default(), down: LinkModel::default(), mtu }
}

/// Reads the size of the largest packet; none where nothing is said, or nothing that can be.
pub(super) fn mtu(sink: &mut Sink, section: &Section<'_>) -> Option<u16> {
    let mtu = section.integer(sink, "mtu", *MTU.start(), *MTU.end())?;
    u16::try_from(mtu.value).ok()
}

/// Returns the classes that everybody has, in a network whose packets have this size where nothing else is said.
pub(super) fn presets(default_mtu: u16) -> BTreeMap<String, AccessClass> {
    let table = DeTable::parse(CLASSES).expect("the access classes of this crate are TOML");
    let mut sink = Sink::default();
    let document = Section::new(String::new(), 0..0, table.get_ref());
    let mut classes = BTreeMap::new();
    for (name, _, node) in document.entries() {
        if let Some(section) = Section::open(&mut sink, name.to_owned(), node) {
            classes.insert(name.to_owned(), read(&mut sink, &section, default_mtu));
        }
    }
    assert!(sink.found.is_empty(), "the access classes of this crate have no mistakes: {:?}", sink.found);
    classes
}

/// Reads the classes of a network; those that everybody has are among them.
pub(super) fn read_all(sink: &mut Sink, network: &Section<'_>, default_mtu: u16) -> BTreeMap<String, AccessClass> {
    let mut classes = presets(default_mtu);
    for (name, section) in network.named(sink, "access", "access class") {
        let class = read(sink, &section, default_mtu);
        if classes.insert(name.value.clone(), class).is_some() {
            sink.push(
                Diagnostic::new(
                    codes::NAME_TAKEN,
                    name.span,
                    format!("{} is an access class already", quote(&name.value)),
                )
                .label("this name is taken")
                .help("give it another name"),
            );
        }
    }
    classes
}

pub(super) const LINK_KEYS: &[&str] =
    &["rate", "delay", "jitter", "jitter_kind", "loss", "duplicate", "reorder", "corrupt", "queue"];

fn read(sink: &mut Sink, section: &Section<'_>, default_mtu: u16) -> AccessClass {
    let mut known = vec!["up", "down", "mtu"];
    known.extend(LINK_KEYS);
    section.only(sink, &known);
    // What stands beside `up` and `down` is said of both.
    let both = link(sink, section, LinkModel::default());
    let mut directions = [both, both];
    for (direction, key) in directions.iter_mut().zip(["up", "down"]) {
        let inner = section.section(sink, key);
        if let Some(inner) = &inner {
            inner.only(sink, LINK_KEYS);
            *direction = link(sink, inner, both);
        }
        if direction.rate_bps == 0 && direction.queue_bytes > 0 {
            let place = inner.as_ref().filter(|inner| inner.get("queue").is_some()).unwrap_or(section);
            let span = place.key_span("queue").unwrap_or_else(|| place.span.clone());
            sink.push(
                shape(span, &place.path, "has a `queue` and no `rate`")
                    .label("nothing ever waits")
                    .help("add `rate = \"10Mbit/s\"`, or remove it"),
            );
            break;
        }
        *direction = with_queue(*direction);
    }
    let [up, down] = directions;
    let mtu = mtu(sink, section).unwrap_or(default_mtu);
    AccessClass { up, down, mtu }
}

/// Gives a link that has a rate a queue, where it has none.
pub(super) fn with_queue(link: LinkModel) -> LinkModel {
    if link.rate_bps == 0 || link.queue_bytes > 0 {
        return link;
    }
    let bytes = u128::from(link.rate_bps) * u128::from(DEFAULT_QUEUE_MS) / 8_000;
    let bytes = u64::try_from(bytes).unwrap_or(MAX_QUEUE);
    LinkModel { queue_bytes: bytes.clamp(MIN_DEFAULT_QUEUE, MAX_QUEUE), ..link }
}

/// Reads what a table says of a link; the rest is as in `base`.
pub(super) fn link(sink: &mut Sink, section: &Section<'_>, base: LinkModel) -> LinkModel {
    let kinds =
        [("uniform", JitterModel::Uniform), ("normal", JitterModel::Normal), ("exponential", JitterModel::Exponential)];
    let duration = |sink: &mut Sink, key| duration_us(sink, &section.path_of(key), section.get(key)?);
    let share = |sink: &mut Sink, key| {
        let read = quantity(sink, &section.path_of(key), section.get(key)?, "a share", "1%", units::share_ppm)?;
        Some(read.value)
    };
    LinkModel {
        delay_us: duration(sink, "delay").unwrap_or(base.delay_us),
        jitter_us: duration(sink, "jitter").unwrap_or(base.jitter_us),
        jitter: section.word(sink, "jitter_kind", &kinds).map_or(base.jitter, |word| word.value),
        rate_bps: rate(sink, section).unwrap_or(base.rate_bps),
        queue_bytes: section.size_bytes(sink, "queue", 1, MAX_QUEUE).map_or(base.queue_bytes, |read| read.value),
        loss_ppm: share(sink, "loss").unwrap_or(base.loss_ppm),
        duplicate_ppm: share(sink, "duplicate").unwrap_or(base.duplicate_ppm),
        reorder_ppm: share(sink, "reorder").unwrap_or(base.reorder_ppm),
        corrupt_ppm: share(sink, "corrupt").unwrap_or(base.corrupt_ppm),
    }
}

fn rate(sink: &mut Sink, section: &Section<'_>) -> Option<u64> {
    let path = section.path_of("rate");
    let read = quantity(sink, &path, section.get("rate")?, "a rate", "10Mbit/s", units::rate_bps)?;
    if !(MIN_RATE..=MAX_RATE).contains(&read.value) {
        out_of_range(sink, &path, read.span, "300bit/s", "1000Gbit/s");
        return None;
    }
    Some(read.value)
}
