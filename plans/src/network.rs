//! Networks: what a manifest says about what lies between instances, and those that everybody has.
//!
//! [`read`] reads a network by name or in full into a [`Described`], which becomes the node of a case once the case's
//! groups are known. [`preset`] has the networks of this crate, whose figures stand in `network/*.toml` with their
//! sources. `fault.rs` reads what is done to a case on purpose, `access.rs` ways to be connected, `place.rs` where groups are and what they are behind.

mod access;
mod fault;
mod place;

use std::collections::BTreeMap;
use std::ops::Range;

use iptl_dag::model::{AccessClass, GroupNetwork, IpModel, NetworkModel, SiteShare};
use toml::de::{DeTable, DeValue};

use crate::codes;
use crate::diagnostic::{Diagnostic, quote, suggestion};
use crate::section::{Located, Node, Section, Sink, out_of_range, quantity, string, wrong_type};
use crate::{names, units};

pub use fault::summary as fault_summary;
pub(crate) use fault::{Stage, no_fit, read_all as read_faults};

/// Word for a network without delay, loss and limits.
pub const CLEAN: &str = "clean";

/// Most regions of a network: its links are one for each ordered pair.
pub const MAX_REGIONS: usize = 256;

/// Longest delay of a link, in microseconds: an hour reaches the planets.
const MAX_DELAY_US: u64 = 3_600_000_000;

/// Networks of this crate by name.
const PRESETS: &[(&str, &str)] = &[
    ("aws-2017", include_str!("network/aws-2017.toml")),
    ("world-2015", include_str!("network/world-2015.toml")),
    ("world-2019", include_str!("network/world-2019.toml")),
];

/// Returns the names of the networks that everybody has, [`CLEAN`] aside.
pub fn presets() -> impl Iterator<Item = &'static str> + Clone {
    PRESETS.iter().map(|(name, _)| *name)
}

/// Returns a network that everybody has, for some groups: each is spread over all regions, has a clean link, and can be
/// reached. None is the clean network; where there are `faults`, that is a network too, to which they can be done.
///
/// # Errors
///
/// Returns the mistake where there is none of that name.
pub fn preset<'a>(
    name: &str,
    groups: impl IntoIterator<Item = &'a str>,
    faults: bool,
) -> Result<Option<NetworkModel>, Box<Diagnostic>> {
    by_name(name, groups, faults, std::iter::empty())
}

/// The same, where further names are known.
pub(crate) fn by_name<'a>(
    name: &str,
    groups: impl IntoIterator<Item = &'a str>,
    faults: bool,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Result<Option<NetworkModel>, Box<Diagnostic>> {
    match shipped(name) {
        Some(described) => Ok(Some(described.of_groups(groups))),
        None if name == CLEAN => Ok(faults.then(|| Described::clean().of_groups(groups))),
        None => Err(Box::new(unknown_network(name, 0..0, known))),
    }
}

/// Notes a group that a network places and that is not there.
pub(crate) fn unknown_group<'a>(
    sink: &mut Sink,
    who: &str,
    name: &str,
    span: Range<usize>,
    known: impl IntoIterator<Item = &'a str> + Clone,
) {
    sink.push(
        Diagnostic::new(codes::NETWORK_GROUP, span, format!("{who} a group {}", quote(name)))
            .label("unknown group")
            .maybe_help(suggestion(name, known)),
    );
}

/// Returns the network in which nothing is slow or lost, for some groups, as one to which faults can be done.
pub(crate) fn clean<'a>(groups: impl IntoIterator<Item = &'a str>) -> NetworkModel {
    Described::clean().of_groups(groups)
}

fn shipped(name: &str) -> Option<Described> {
    let (_, text) = PRESETS.iter().find(|(known, _)| *known == name)?;
    let table = DeTable::parse(text).expect("the networks of this crate are TOML");
    let mut sink = Sink::default();
    let section = Section::new(name.to_owned(), 0..0, table.get_ref());
    let described = full(&mut sink, &section);
    assert!(sink.found.is_empty(), "the networks of this crate have no mistakes: {:?}", sink.found);
    described
}

fn unknown_network<'a>(name: &str, span: Range<usize>, own: impl Iterator<Item = &'a str>) -> Diagnostic {
    let mut known: Vec<&str> = own.collect();
    known.push(CLEAN);
    for preset in presets() {
        known.push(preset);
    }
    Diagnostic::new(codes::UNKNOWN_NETWORK, span, format!("there is no network {}", quote(name)))
        .label("unknown network")
        .maybe_help(suggestion(name, known))
}

/// Says in a line for people what a network is: `2 regions, 1ms to 50ms one way; access dsl; node 80% behind NAT`.
pub fn summary(network: &NetworkModel) -> String {
    let delays = network.delays_us.iter().flatten().copied();
    let (least, most) = (delays.clone().min().unwrap_or(0), delays.max().unwrap_or(0));
    let show = |us: u64| format!("{}ms", us as f64 / 1_000.0);
    let apart = if least == most { show(least) } else { format!("{} to {}", show(least), show(most)) };
    let regions = match network.regions.as_slice() {
        [only] => format!("region {only}"),
        all => format!("{} regions", all.len()),
    };
    let mut parts = vec![format!("{regions}, {apart} one way")];
    match network.ip {
        IpModel::Both => {}
        IpModel::Ipv4 => parts.push("IPv4 alone".to_owned()),
        IpModel::Ipv6 => parts.push("IPv6 alone".to_owned()),
    }
    let classes: Vec<&str> = network.access.keys().map(String::as_str).filter(|name| *name != access::CLEAN).collect();
    if !classes.is_empty() {
        parts.push(format!("access {}", classes.join(", ")));
    }
    for (name, group) in &network.groups {
        let total: u64 = group.sites.iter().map(|site| u64::from(site.weight)).sum();
        let share = |wanted: &dyn Fn(&SiteShare) -> bool| {
            let of: u64 = group.sites.iter().filter(|site| wanted(site)).map(|site| u64::from(site.weight)).sum();
            if total == 0 { 0.0 } else { (of as f64 * 1_000.0 / total as f64).round() / 10.0 }
        };
        let behind = share(&|site| site.gateways.iter().any(|gateway| gateway.translates));
        let closed =
            share(&|site| !site.gateways.is_empty() && site.gateways.iter().all(|gateway| !gateway.translates));
        if behind > 0.0 {
            parts.push(format!("{name} {behind}% behind NAT"));
        }
        if closed > 0.0 {
            parts.push(format!("{name} {closed}% behind firewalls"));
        }
        if group.per > 1 {
            parts.push(format!("{name} {} to a LAN", group.per));
        }
    }
    parts.join("; ")
}

/// A network before it is known for which groups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Described {
    regions: Vec<String>,
    delays_us: Vec<Vec<u64>>,
    access: BTreeMap<String, AccessClass>,
    groups: BTreeMap<String, Located<GroupNetwork>>,
    ip: IpModel,
    /// Largest packet where an access class does not say, in bytes.
    mtu: u16,
}

impl Described {
    /// Returns the network in which nothing is slow or lost, as one to which faults can be done.
    pub(crate) fn clean() -> Described {
        Described {
            regions: vec!["everywhere".to_owned()],
            delays_us: vec![vec![0]],
            access: BTreeMap::new(),
            groups: BTreeMap::new(),
            ip: IpModel::Both,
            mtu: access::DEFAULT_MTU,
        }
    }

    /// Returns the network of a case with these groups. A group that is not mentioned is spread over all regions, has
    /// a clean link, and can be reached.
    pub(crate) fn of_groups<'a>(&self, groups: impl IntoIterator<Item = &'a str>) -> NetworkModel {
        let place = |group: &str| match self.groups.get(group) {
            Some(place) => place.value.clone(),
            None => place::anywhere(),
        };
        let groups: BTreeMap<String, GroupNetwork> =
            groups.into_iter().map(|group| (group.to_owned(), place(group))).collect();
        // Classes that no group has would stand in the node for nothing, and change its CID.
        let mut access: BTreeMap<String, AccessClass> =
            groups.values().flat_map(|group| group.access.keys()).map(|name| self.class(name)).collect();
        if access.is_empty() {
            access.extend([self.class(access::CLEAN)]);
        }
        NetworkModel { regions: self.regions.clone(), delays_us: self.delays_us.clone(), access, ip: self.ip, groups }
    }

    fn class(&self, name: &str) -> (String, AccessClass) {
        let class = self.access.get(name).cloned().unwrap_or_else(|| access::clean(self.mtu));
        (name.to_owned(), class)
    }

    /// Returns the groups that it mentions, with their places.
    pub(crate) fn mentioned(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.groups.iter().map(|(name, place)| (name.as_str(), place.span.clone()))
    }
}

/// A network as a case or a plan chooses it.
#[derive(Clone, Debug)]
pub(crate) enum Chosen {
    /// No delay, no loss, no limit.
    Clean,
    /// Something else.
    Described(Described),
}

/// Reads `network = "NAME"` or `[network]`; none where there is a mistake. `named` are the plan's own networks.
pub(crate) fn read(
    sink: &mut Sink,
    path: &str,
    node: &Node<'_>,
    named: &BTreeMap<String, Option<Described>>,
) -> Option<Chosen> {
    match node.get_ref() {
        DeValue::String(name) if &**name == CLEAN => Some(Chosen::Clean),
        DeValue::String(name) => match named.get(&**name) {
            Some(described) => described.clone().map(Chosen::Described),
            None => base(sink, name, node.span(), named.keys().map(String::as_str)).map(Chosen::Described),
        },
        DeValue::Table(table) => full(sink, &Section::new(path.to_owned(), node.span(), table)).map(Chosen::Described),
        _ => {
            let help = "write `network = \"world-2019\"`, or `[network]` with `regions` and `delays`".to_owned();
            wrong_type(sink, path, node, "a name or a table", Some(help));
            None
        }
    }
}

/// Reads the plan's own networks, `[networks.NAME]`. One with a mistake stays known by its name.
pub(crate) fn named(sink: &mut Sink, document: &Section<'_>) -> BTreeMap<String, Option<Described>> {
    let mut all = BTreeMap::new();
    for (name, section) in document.named(sink, "networks", "network") {
        if name.value == CLEAN || presets().any(|preset| preset == name.value) {
            sink.push(
                Diagnostic::new(codes::NAME_TAKEN, name.span, format!("{} is a network already", quote(&name.value)))
                    .label("this name is taken")
                    .help("give it another name; `preset = \"…\"` inside it begins with the network that has this one"),
            );
        }
        let described = full(sink, &section);
        all.insert(name.value, described);
    }
    all
}

/// Returns a preset, to be a network or the base of one.
fn base<'a>(
    sink: &mut Sink,
    name: &str,
    span: Range<usize>,
    named: impl Iterator<Item = &'a str> + Clone,
) -> Option<Described> {
    let base = shipped(name);
    if base.is_none() {
        sink.push(unknown_network(name, span, named));
    }
    base
}

const KEYS: &[&str] = &[
    "description",
    "source",
    "preset",
    "regions",
    "delays",
    "delay",
    "within",
    "access",
    "ip",
    "mtu",
    "gateways",
    "sites",
    "groups",
];

/// Families of addresses, as `ip` says them.
const FAMILIES: &[(&str, IpModel)] = &[("both", IpModel::Both), ("ipv4", IpModel::Ipv4), ("ipv6", IpModel::Ipv6)];

/// Reads a network in full.
fn full(sink: &mut Sink, section: &Section<'_>) -> Option<Described> {
    section.only(sink, KEYS);
    section.text(sink, "description");
    section.text(sink, "source");
    let before = sink.found.len();
    let geography = geography(sink, section);
    let mtu = access::mtu(sink, section).unwrap_or(access::DEFAULT_MTU);
    let ip = section.word(sink, "ip", FAMILIES).map_or(IpModel::Both, |ip| ip.value);
    let access = access::read_all(sink, section, mtu);
    let sites = place::sites(sink, section);
    let (regions, delays_us) = geography.unwrap_or_default();
    // Where the regions have a mistake, groups that name one do not add to the list.
    let known = (sink.found.len() == before).then_some(regions.as_slice());
    let groups = place::groups(sink, section, known, &access, &sites);
    (sink.found.len() == before).then_some(Described { regions, delays_us, access, groups, ip, mtu })
}

type Geography = (Vec<String>, Vec<Vec<u64>>);

/// Reads regions and what lies between them.
fn geography(sink: &mut Sink, section: &Section<'_>) -> Option<Geography> {
    if let Some(name) = section.string(sink, "preset") {
        for key in ["regions", "delays", "delay", "within"] {
            if let Some(span) = section.key_span(key) {
                sink.push(
                    shape(span, &section.path, &format!("has `{key}` beside `preset`"))
                        .label("the preset has its own")
                        .help("remove one of them"),
                );
            }
        }
        let base = base(sink, &name.value, name.span, std::iter::empty())?;
        return Some((base.regions, base.delays_us));
    }
    let Some(node) = section.get("regions") else {
        // One region, whatever lies within it.
        let within = delay(sink, section, "within").unwrap_or(0);
        for key in ["delays", "delay"] {
            if let Some(span) = section.key_span(key) {
                sink.push(
                    shape(span, &section.path, &format!("has `{key}` and no `regions`"))
                        .label("between which regions?")
                        .help("add `regions = [\"eu\", \"us\"]`"),
                );
            }
        }
        return Some((vec!["everywhere".to_owned()], vec![vec![within]]));
    };
    let regions = regions(sink, section, node)?;
    match (section.get("delays"), section.get("delay")) {
        (Some(node), None) => {
            if let Some(span) = section.key_span("within") {
                sink.push(
                    shape(span, &section.path, "has `within` beside `delays`")
                        .label("the diagonal of `delays` says it")
                        .help("remove it"),
                );
            }
            matrix(sink, section, node, &regions).map(|delays| (regions, delays))
        }
        (None, Some(_)) => {
            let between = delay(sink, section, "delay")?;
            let within = delay(sink, section, "within").unwrap_or(0);
            let row = |from: usize| (0..regions.len()).map(|to| if from == to { within } else { between }).collect();
            let delays = (0..regions.len()).map(row).collect();
            Some((regions, delays))
        }
        (Some(_), Some(_)) => {
            let span = section.key_span("delay").unwrap_or_else(|| section.span.clone());
            sink.push(
                shape(span, &section.path, "has both `delay` and `delays`")
                    .label("`delays` says it for each two regions")
                    .help("remove one of them"),
            );
            None
        }
        (None, None) => {
            section.require(sink, "delays", "delay = \"50ms\"` or a matrix `delays = [[\"1ms\", \"50ms\"], …]");
            None
        }
    }
}

fn regions(sink: &mut Sink, section: &Section<'_>, node: &Node<'_>) -> Option<Vec<String>> {
    let before = sink.found.len();
    let named = section.strings(sink, "regions");
    if sink.found.len() > before {
        return None;
    }
    if named.is_empty() || named.len() > MAX_REGIONS {
        let links = named.len().saturating_mul(named.len());
        sink.push(
            Diagnostic::new(
                codes::TOO_MANY_LINKS,
                node.span(),
                format!("`{}` cannot be this many", section.path_of("regions")),
            )
            .label(format!("{} regions have {links} links; there may be from 1 to {MAX_REGIONS} regions", named.len()))
            .help(
                "instances of one region are as far from each other as the diagonal says: name regions, not instances",
            ),
        );
        return None;
    }
    let mut first: BTreeMap<&str, &Range<usize>> = BTreeMap::new();
    for region in &named {
        names::check(sink, "region", &region.value, &region.span);
        if let Some(earlier) = first.insert(&region.value, &region.span) {
            sink.push(
                Diagnostic::new(
                    codes::NAME_TAKEN,
                    region.span.clone(),
                    format!("{} is a region already", quote(&region.value)),
                )
                .label("this name is taken")
                .related(earlier.clone(), "by this one")
                .help("give it another name"),
            );
        }
    }
    (sink.found.len() == before).then(|| named.into_iter().map(|region| region.value).collect())
}

fn matrix(sink: &mut Sink, section: &Section<'_>, node: &Node<'_>, regions: &[String]) -> Option<Vec<Vec<u64>>> {
    let path = section.path_of("delays");
    let help =
        "write a row for each region with the delay to each: `delays = [[\"1ms\", \"50ms\"], [\"50ms\", \"1ms\"]]`";
    let DeValue::Array(rows) = node.get_ref() else {
        wrong_type(sink, &path, node, "an array of arrays", Some(help.to_owned()));
        return None;
    };
    let before = sink.found.len();
    let uneven = |sink: &mut Sink, span: Range<usize>, label: String| {
        sink.push(Diagnostic::new(codes::MATRIX, span, format!("`{path}` is not square")).label(label).help(help));
    };
    if rows.len() != regions.len() {
        uneven(sink, node.span(), format!("it has {} rows for {} regions", rows.len(), regions.len()));
    }
    let mut delays = Vec::new();
    for (from, row) in rows.iter().enumerate() {
        let DeValue::Array(columns) = row.get_ref() else {
            wrong_type(sink, &format!("{path}[{from}]"), row, "an array of delays", Some(help.to_owned()));
            continue;
        };
        if columns.len() != regions.len() {
            let label = format!("this row has {} delays for {} regions", columns.len(), regions.len());
            uneven(sink, row.span(), label);
            continue;
        }
        let read = |(to, node)| duration_us(sink, &format!("{path}[{from}][{to}]"), node);
        delays.push(columns.iter().enumerate().filter_map(read).collect());
    }
    (sink.found.len() == before).then_some(delays)
}

fn delay(sink: &mut Sink, section: &Section<'_>, key: &str) -> Option<u64> {
    duration_us(sink, &section.path_of(key), section.get(key)?)
}

/// Reads a duration in microseconds that a link can have.
fn duration_us(sink: &mut Sink, path: &str, node: &Node<'_>) -> Option<u64> {
    let read = quantity(sink, path, node, "a duration", "50ms", units::duration_us)?;
    if read.value > MAX_DELAY_US {
        out_of_range(sink, path, read.span, "0ms", "1h");
        return None;
    }
    Some(read.value)
}

/// A mistake in what stands beside what.
fn shape(span: Range<usize>, path: &str, what: &str) -> Diagnostic {
    Diagnostic::new(codes::NETWORK_SHAPE, span, format!("`{path}` {what}"))
}

/// Notes a name that is none of those known.
fn unknown<'a>(
    sink: &mut Sink,
    what: &str,
    name: &str,
    span: Range<usize>,
    known: impl IntoIterator<Item = &'a str> + Clone,
) {
    sink.push(
        Diagnostic::new(codes::UNKNOWN_PLACE, span, format!("the network has no {what} {}", quote(name)))
            .label(format!("unknown {what}"))
            .maybe_help(suggestion(name, known)),
    );
}

/// Reads names as `"eu"`, or as a table of names with shares or weights, `{ eu = "70%", us = "30%" }`. Returns weights;
/// none where there is a mistake, which is then noted.
fn shares(
    sink: &mut Sink,
    section: &Section<'_>,
    key: &str,
    what: &str,
    known: Option<&[&str]>,
) -> Option<BTreeMap<String, u32>> {
    let path = section.path_of(key);
    let node = section.get(key)?;
    let before = sink.found.len();
    let check = |sink: &mut Sink, name: &str, span: Range<usize>| {
        if let Some(known) = known
            && !known.contains(&name)
        {
            unknown(sink, what, name, span, known.iter().copied());
        }
    };
    let DeValue::Table(table) = node.get_ref() else {
        if !matches!(node.get_ref(), DeValue::String(_)) {
            let help = format!("write `{key} = \"NAME\"`, or `{key} = {{ a = \"70%\", b = \"30%\" }}`");
            wrong_type(sink, &path, node, "a name or a table", Some(help));
            return None;
        }
        let name = string(sink, &path, node)?;
        check(sink, &name.value, name.span);
        return (sink.found.len() == before).then(|| BTreeMap::from([(name.value, 1)]));
    };
    let mut weights = BTreeMap::new();
    let (mut percent, mut whole) = (0u32, 0u32);
    for (name, span, node) in Section::new(path.clone(), node.span(), table).entries() {
        check(sink, name, span);
        let path = format!("{path}.{name}");
        let weight = if matches!(node.get_ref(), DeValue::Integer(_)) {
            whole += 1;
            crate::section::integer(sink, &path, node, 0, i64::from(MAX_WEIGHT)).map(|read| read.value as u32)
        } else {
            percent += 1;
            quantity(sink, &path, node, "a share", "70%", units::share_ppm).map(|read| read.value)
        };
        weights.insert(name.to_owned(), weight.unwrap_or(0));
    }
    if sink.found.len() > before {
        return None;
    }
    let total: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
    let wrong = if percent > 0 && whole > 0 {
        Some("it mixes shares and weights".to_owned())
    } else if total == 0 {
        Some(format!("it leaves the group in no {what}"))
    } else if percent > 0 && total != 1_000_000 {
        Some(format!("they add up to {}%", total as f64 / 10_000.0))
    } else {
        None
    };
    if let Some(wrong) = wrong {
        sink.push(
            Diagnostic::new(codes::SHARES, node.span(), format!("the shares of `{path}` are no whole"))
                .label(wrong)
                .help("write shares that add up to 100%, or weights such as `{ a = 7, b = 3 }`"),
        );
        return None;
    }
    Some(weights)
}

/// Largest weight: as fine as shares are.
const MAX_WEIGHT: u32 = 1_000_000;
