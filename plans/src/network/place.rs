//! Where the instances of a group are, and what they are behind.

use std::collections::BTreeMap;
use std::ops::Range;

use iptl_dag::model::{AccessClass, DependenceModel, GatewayModel, GroupNetwork, PortsModel, SiteShare};

use super::{access, shape, shares, unknown};
use crate::codes;
use crate::diagnostic::{Diagnostic, quote};
use crate::section::{Located, Section, Sink, quantity};
use crate::{names, units};

/// Most gateways before an instance: a home, a building, a carrier, and one to spare.
const MAX_GATEWAYS: usize = 4;

/// Site of an instance with a public address.
const PUBLIC: &str = "public";

/// Site of those whom `nat` puts behind a NAT, and of those of them that `symmetric` names.
const USUAL_NAT: &str = "port-restricted";
const SYMMETRIC: &str = "symmetric";

/// Site of those whom nobody can dial.
const FIREWALL: &str = "firewall";

/// Longest life of a mapping, in milliseconds: a week.
const MAX_TIMEOUT_MS: u64 = 7 * 24 * 3_600_000;

/// The gateways before an instance, the outermost first.
type Site = Vec<GatewayModel>;

/// Sites by name; one with a mistake stays known by its name.
pub(super) type Sites = BTreeMap<String, Option<Site>>;

const DEPENDENCES: &[(&str, DependenceModel)] = &[
    ("endpoint", DependenceModel::Endpoint),
    ("address", DependenceModel::Address),
    ("address-port", DependenceModel::AddressPort),
];

const PORTS: &[(&str, PortsModel)] =
    &[("preserve", PortsModel::Preserve), ("sequential", PortsModel::Sequential), ("random", PortsModel::Random)];

/// Returns the place of a group about which nothing is said.
pub(super) fn anywhere() -> GroupNetwork {
    GroupNetwork {
        regions: BTreeMap::new(),
        access: BTreeMap::from([(access::CLEAN.to_owned(), 1)]),
        ..GroupNetwork::default()
    }
}

/// Returns the sites that everybody has: the NATs of RFC 3489's names, a carrier's, a firewall.
fn presets() -> BTreeMap<&'static str, Site> {
    use DependenceModel::{Address, AddressPort, Endpoint};
    let home = GatewayModel::default();
    let nat = |mapping, filtering, ports| GatewayModel { mapping, filtering, ports, ..home };
    BTreeMap::from([
        (PUBLIC, Vec::new()),
        ("full-cone", vec![nat(Endpoint, Endpoint, PortsModel::Preserve)]),
        ("restricted-cone", vec![nat(Endpoint, Address, PortsModel::Preserve)]),
        (USUAL_NAT, vec![home]),
        (SYMMETRIC, vec![nat(AddressPort, AddressPort, PortsModel::Random)]),
        ("cgnat", vec![nat(Endpoint, Endpoint, PortsModel::Preserve), home]),
        (FIREWALL, vec![GatewayModel { translates: false, hairpin: false, ..home }]),
    ])
}

/// A site of the network as it stands there.
struct Raw {
    span: Range<usize>,
    own: Site,
    inside: Option<Located<String>>,
}

/// Reads `[network.sites.NAME]`; the sites that everybody has are among those returned.
pub(super) fn sites(sink: &mut Sink, network: &Section<'_>) -> Sites {
    let presets = presets();
    let gateways = gateways(sink, network, &presets);
    let mut raw = BTreeMap::new();
    for (name, section) in network.named(sink, "sites", "site") {
        section.only(sink, &["gateway", "inside"]);
        if gateways.contains_key(&name.value) {
            sink.push(
                Diagnostic::new(codes::NAME_TAKEN, name.span, format!("{} is a site already", quote(&name.value)))
                    .label("this name is taken")
                    .help("give it another name"),
            );
            continue;
        }
        section.require(sink, "gateway", "gateway = \"port-restricted\"");
        let own = section.string(sink, "gateway").and_then(|gateway| match gateways.get(&gateway.value) {
            Some(site) => site.clone(),
            None => {
                unknown(sink, "gateway", &gateway.value, gateway.span, gateways.keys().map(String::as_str));
                None
            }
        });
        let inside = section.string(sink, "inside");
        raw.insert(name.value, Raw { span: section.span.clone(), own: own.unwrap_or_default(), inside });
    }
    let mut sites = gateways.clone();
    for (name, site) in &raw {
        let site = resolve(sink, name, site, &raw, &gateways);
        sites.insert(name.clone(), site);
    }
    sites
}

/// Follows a site outwards.
fn resolve(sink: &mut Sink, name: &str, site: &Raw, raw: &BTreeMap<String, Raw>, gateways: &Sites) -> Option<Site> {
    let mut chain = site.own.clone();
    let mut passed = vec![name];
    let mut at = site;
    while let Some(inside) = &at.inside {
        if passed.contains(&inside.value.as_str()) {
            // Every site of the circle would say the same; the first by name does.
            if passed.iter().min() == Some(&name) || inside.value != name {
                sink.push(
                    Diagnostic::new(
                        codes::INSIDE_ITSELF,
                        inside.span.clone(),
                        format!("site {} is inside itself", quote(&inside.value)),
                    )
                    .label("this leads back to it")
                    .help("an outermost site has no `inside`"),
                );
            }
            return None;
        }
        passed.push(&inside.value);
        match (raw.get(&inside.value), gateways.get(&inside.value)) {
            (Some(outer), _) => {
                chain.splice(0..0, outer.own.iter().copied());
                at = outer;
            }
            (None, Some(outer)) => {
                chain.splice(0..0, outer.iter().flatten().copied());
                break;
            }
            (None, None) => {
                let known = raw.keys().chain(gateways.keys()).map(String::as_str);
                unknown(sink, "site", &inside.value, inside.span.clone(), known);
                return None;
            }
        }
    }
    if chain.len() > MAX_GATEWAYS {
        sink.push(
            shape(site.span.clone(), &format!("sites.{name}"), &format!("puts {} gateways in a row", chain.len()))
                .label(format!("there may be {MAX_GATEWAYS}"))
                .help("put it inside fewer others"),
        );
        return None;
    }
    Some(chain)
}

/// Reads `[network.gateways.NAME]`. Each is a site too; those that everybody has are among them.
fn gateways(sink: &mut Sink, network: &Section<'_>, presets: &BTreeMap<&'static str, Site>) -> Sites {
    let mut gateways: Sites = presets.iter().map(|(name, site)| ((*name).to_owned(), Some(site.clone()))).collect();
    for (name, section) in network.named(sink, "gateways", "gateway") {
        let gateway = gateway(sink, &section);
        if gateways.insert(name.value.clone(), Some(vec![gateway])).is_some() {
            sink.push(
                Diagnostic::new(codes::NAME_TAKEN, name.span, format!("{} is a gateway already", quote(&name.value)))
                    .label("this name is taken")
                    .help("give it another name"),
            );
        }
    }
    gateways
}

fn gateway(sink: &mut Sink, section: &Section<'_>) -> GatewayModel {
    let keys = ["kind", "mapping", "filtering", "ports", "hairpin", "inbound_refresh", "udp_timeout", "tcp_timeout"];
    section.only(sink, &keys);
    let translates = section.word(sink, "kind", &[("nat", true), ("firewall", false)]).is_none_or(|kind| kind.value);
    if !translates {
        for key in ["mapping", "ports", "hairpin"] {
            if let Some(span) = section.key_span(key) {
                sink.push(
                    shape(span, &section.path, &format!("has `{key}` and is a firewall"))
                        .label("only a NAT has it")
                        .help("remove it, or write `kind = \"nat\"`"),
                );
            }
        }
    }
    let mut timeout =
        |key, default| section.duration_ms(sink, key, 1_000, MAX_TIMEOUT_MS).map_or(default, |timeout| timeout.value);
    let usual = GatewayModel::default();
    let (udp_timeout_ms, tcp_timeout_ms) =
        (timeout("udp_timeout", usual.udp_timeout_ms), timeout("tcp_timeout", usual.tcp_timeout_ms));
    GatewayModel {
        translates,
        mapping: section.word(sink, "mapping", DEPENDENCES).map_or(usual.mapping, |word| word.value),
        filtering: section.word(sink, "filtering", DEPENDENCES).map_or(usual.filtering, |word| word.value),
        ports: section.word(sink, "ports", PORTS).map_or(usual.ports, |word| word.value),
        hairpin: section.boolean(sink, "hairpin").map_or(translates, |hairpin| hairpin.value),
        inbound_refresh: section.boolean(sink, "inbound_refresh").is_some_and(|refresh| refresh.value),
        udp_timeout_ms,
        tcp_timeout_ms,
    }
}

/// Reads `[network.groups.NAME]`. `regions` is none where they have a mistake.
pub(super) fn groups(
    sink: &mut Sink,
    network: &Section<'_>,
    regions: Option<&[String]>,
    access: &BTreeMap<String, AccessClass>,
    sites: &Sites,
) -> BTreeMap<String, Located<GroupNetwork>> {
    let regions: Option<Vec<&str>> = regions.map(|regions| regions.iter().map(String::as_str).collect());
    let classes: Vec<&str> = access.keys().map(String::as_str).collect();
    let known_sites: Vec<&str> = sites.keys().map(String::as_str).collect();
    let mut groups = BTreeMap::new();
    let Some(all) = network.section(sink, "groups") else { return groups };
    for (name, span, node) in all.entries() {
        names::check(sink, "group", name, &span);
        let Some(section) = Section::open(sink, all.path_of(name), node) else { continue };
        section.only(sink, &["regions", "access", "sites", "nat", "symmetric", "undialable", "per"]);
        let access = shares(sink, &section, "access", "access class", Some(&classes));
        let value = GroupNetwork {
            regions: shares(sink, &section, "regions", "region", regions.as_deref()).unwrap_or_default(),
            access: access.unwrap_or_else(|| anywhere().access),
            sites: match shares(sink, &section, "sites", "site", Some(&known_sites)) {
                Some(weights) => {
                    for key in ["nat", "symmetric", "undialable"] {
                        if let Some(span) = section.key_span(key) {
                            sink.push(
                                shape(span, &section.path, &format!("has `{key}` beside `sites`"))
                                    .label("`sites` says what all are behind")
                                    .help("remove one of them"),
                            );
                        }
                    }
                    let gateways = |name: &String| sites.get(name).cloned().flatten().unwrap_or_default();
                    weights
                        .iter()
                        .map(|(name, weight)| SiteShare { weight: *weight, gateways: gateways(name) })
                        .collect()
                }
                None => short(sink, &section),
            },
            per: 1,
        };
        let per = per(sink, &section, &value);
        let value = GroupNetwork { per, ..value };
        groups.insert(name.to_owned(), Located { value, span });
    }
    groups
}

/// Reads `per = 3`: how many share what they are behind.
fn per(sink: &mut Sink, section: &Section<'_>, group: &GroupNetwork) -> u32 {
    let Some(per) = section.integer(sink, "per", 1, i64::from(GroupNetwork::MAX_PER)) else { return 1 };
    if group.sites.iter().all(|site| site.gateways.is_empty()) {
        sink.push(
            shape(per.span.clone(), &section.path, "has `per`, and its instances are behind nothing")
                .label("what would they share?")
                .help("add `nat = \"80%\"`, or `sites` with more than `public`"),
        );
    }
    u32::try_from(per.value).unwrap_or(1)
}

/// Reads `nat = "80%"`, `symmetric = "10%"` (of those behind a NAT) and `undialable = "5%"`.
fn short(sink: &mut Sink, section: &Section<'_>) -> Vec<SiteShare> {
    let mut share = |key: &str| {
        let node = section.get(key)?;
        quantity(sink, &section.path_of(key), node, "a share", "80%", units::share_ppm)
    };
    let (nat, symmetric, undialable) = (share("nat"), share("symmetric"), share("undialable"));
    let ppm = |share: &Option<Located<u32>>| share.as_ref().map_or(0, |share| share.value);
    if let Some(symmetric) = &symmetric
        && nat.is_none()
    {
        sink.push(
            shape(symmetric.span.clone(), &section.path, "has `symmetric` and no `nat`")
                .label("it is a share of those behind a NAT")
                .help("add `nat = \"80%\"`, or write `sites = { symmetric = \"10%\", public = \"90%\" }`"),
        );
    }
    let (behind, closed) = (ppm(&nat), ppm(&undialable));
    let Some(public) = 1_000_000u32.checked_sub(behind.saturating_add(closed)) else {
        let span = undialable.or(nat).map_or_else(|| section.span.clone(), |share| share.span);
        sink.push(
            Diagnostic::new(codes::SHARES, span, format!("the shares of `{}` are no whole", section.path))
                .label("with `nat` they are more than 100%")
                .help("`nat` and `undialable` are shares of all instances of the group"),
        );
        return Vec::new();
    };
    let presets = presets();
    let of_nat = u64::from(behind) * u64::from(ppm(&symmetric)) / 1_000_000;
    let of_nat = u32::try_from(of_nat).unwrap_or(behind);
    let rows = [(PUBLIC, public), (USUAL_NAT, behind - of_nat), (SYMMETRIC, of_nat), (FIREWALL, closed)];
    if public == 1_000_000 {
        return Vec::new();
    }
    rows.into_iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(name, weight)| SiteShare { weight, gateways: presets[name].clone() })
        .collect()
}
