//! Networks of manifests: what they mean, and every way in which one can be no network.

use std::collections::BTreeMap;

use iptl_dag::model::{
    BetweenRegions, DependenceModel, Fault, IpModel, JitterModel, LinkModel, Network, NetworkModel, PortsModel,
    to_block,
};
use iptl_plans::{
    CLEAN_NETWORK, Diagnostic, MAX_REGIONS, Manifest, fault_summary, network_preset, network_presets, network_summary,
    parse,
};

const HEAD: &str = r#"
[plan]
name = "example"
version = "0.1.0"

[workloads.node]
runner = "wasm"
path = "node.wasm"

[cases.default.groups.boot]
workload = "node"
count = 2

[cases.default.groups.peer]
workload = "node"
count = 20
"#;

fn read(network: &str) -> Result<Manifest, Vec<Diagnostic>> {
    parse(&format!("{HEAD}{network}"), "plan.toml")
}

fn model(network: &str) -> NetworkModel {
    let manifest = read(network).unwrap_or_else(|found| panic!("{found:?}"));
    let model = manifest.networks["default"].clone();
    assert_eq!(manifest.cases["default"].network, Network::Model(*to_block(model.clone()).cid()));
    model
}

/// Checks that a network has one mistake, with this code, at this text, and that its rendering says this.
fn refuses(network: &str, code: &str, at: &str, says: &str) {
    let source = format!("{HEAD}{network}");
    let found = parse(&source, "plan.toml").expect_err("it is no network");
    let [mistake] = found.as_slice() else { panic!("{} mistakes: {found:#?}", found.len()) };
    assert_eq!(mistake.code, code, "{mistake:?}");
    assert_eq!(source.get(mistake.span.clone()), Some(at));
    let shown = mistake.render("plan.toml", &source);
    assert!(shown.contains(says), "{shown}");
}

#[test]
fn a_network_in_full_is_the_node_that_it_says() {
    let model = model(
        r#"
        [network]
        regions = ["eu", "us"]
        delays = [["1ms", "50ms"], ["50.5ms", "200us"]]

        [network.access.home]
        delay = "2ms"
        loss = "0.1%"
        up = { rate = "10Mbit/s", queue = "64KiB" }
        down = { rate = "50Mbit/s", jitter = "1ms", jitter_kind = "normal" }
        mtu = 1400

        [network.groups.boot]
        regions = "eu"

        [network.groups.peer]
        regions = { eu = "70%", us = "30%" }
        access = { home = 3, dsl = 1 }
        nat = "80%"
        symmetric = "10%"
        undialable = "5%"
        "#,
    );
    assert_eq!(model.regions, ["eu", "us"]);
    assert_eq!(model.delays_us, [[1_000, 50_000], [50_500, 200]]);
    assert_eq!(model.access.keys().collect::<Vec<_>>(), ["clean", "dsl", "home"]);
    let home = &model.access["home"];
    let both = LinkModel { delay_us: 2_000, loss_ppm: 1_000, ..LinkModel::default() };
    assert_eq!(home.up, LinkModel { rate_bps: 10_000_000, queue_bytes: 65_536, ..both });
    let jitter = JitterModel::Normal;
    let down = LinkModel { rate_bps: 50_000_000, queue_bytes: 625_000, jitter_us: 1_000, jitter, ..both };
    assert_eq!((home.down, home.mtu), (down, 1400));
    let boot = &model.groups["boot"];
    assert_eq!((&boot.regions, &boot.access), (&weights(&[("eu", 1)]), &weights(&[("clean", 1)])));
    assert!(boot.sites.is_empty());
    let peer = &model.groups["peer"];
    assert_eq!(peer.regions, weights(&[("eu", 700_000), ("us", 300_000)]));
    assert_eq!(peer.access, weights(&[("dsl", 1), ("home", 3)]));
    let shares: Vec<(u32, usize)> = peer.sites.iter().map(|site| (site.weight, site.gateways.len())).collect();
    assert_eq!(shares, [(150_000, 0), (720_000, 1), (80_000, 1), (50_000, 1)]);
    assert_eq!(peer.sites[1].gateways[0].filtering, DependenceModel::AddressPort);
    assert_eq!(
        (peer.sites[2].gateways[0].mapping, peer.sites[2].gateways[0].ports),
        (DependenceModel::AddressPort, PortsModel::Random)
    );
    assert!(!peer.sites[3].gateways[0].translates);
    assert_eq!(
        network_summary(&model),
        "2 regions, 0.2ms to 50.5ms one way; access dsl, home; peer 80% behind NAT; peer 5% behind firewalls"
    );
}

fn weights(rows: &[(&str, u32)]) -> BTreeMap<String, u32> {
    rows.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
}

#[test]
fn every_preset_is_a_square_network_and_can_be_the_base_of_another() {
    for name in network_presets() {
        let preset = network_preset(name, ["boot", "peer"], false).unwrap().expect("it is not clean");
        assert_eq!(preset.delays_us.len(), preset.regions.len());
        assert!(preset.delays_us.iter().all(|row| row.len() == preset.regions.len()), "{name}");
        assert_eq!(model(&format!("[cases.default]\nnetwork = \"{name}\"")), preset);
        let region = &preset.regions[0];
        let based = model(&format!("[network]\npreset = \"{name}\"\ngroups.boot.regions = \"{region}\""));
        assert_eq!(based.delays_us, preset.delays_us);
        let links = preset.regions.len().pow(2);
        assert!(links <= BetweenRegions::MAX, "receipts of {name} have no room for all of its {links} links");
    }
    assert_eq!(network_preset(CLEAN_NETWORK, [], false).unwrap(), None);
}

#[test]
fn figures_of_presets_are_those_of_their_sources() {
    let world = network_preset("world-2019", [], false).unwrap().unwrap();
    let at = |model: &NetworkModel, from: &str, to: &str| {
        let place = |name: &str| model.regions.iter().position(|region| region == name).unwrap();
        model.delays_us[place(from)][place(to)]
    };
    assert_eq!(at(&world, "europe", "japan"), 252_000 / 2);
    let cloud = network_preset("aws-2017", [], false).unwrap().unwrap();
    assert_eq!(at(&cloud, "us-east-1", "eu-west-1"), 80_550 / 2);
    let classes = model(
        "[network]\ngroups.peer.access = { fibre = 1, cable = 1, dsl = 1, mobile = 1, mobile-3g = 1, datacenter = 1 }",
    )
    .access;
    let dsl = &classes["dsl"];
    assert_eq!((dsl.up.rate_bps, dsl.down.rate_bps), (384_000, 1_500_000));
    assert_eq!(dsl.up.delay_us + dsl.down.delay_us, 50_000);
    assert!(
        classes.iter().all(|(name, class)| name == "clean" || class.up.queue_bytes >= 32 << 10 && class.mtu >= 1280)
    );
}

#[test]
fn a_network_belongs_to_the_case_that_has_it_and_else_to_all() {
    let manifest = read(
        r#"
        [cases.other]
        network = "near"
        [cases.other.groups.boot]
        workload = "node"
        count = 1
        [cases.plain]
        network = "clean"
        [cases.plain.groups.boot]
        workload = "node"
        count = 1
        [network]
        regions = ["a", "b"]
        delay = "50ms"
        within = "1ms"
        groups.peer.regions = "b"
        [networks.near]
        within = "2ms"
        groups.peer.nat = "100%"
        "#,
    )
    .unwrap_or_else(|found| panic!("{found:#?}"));
    assert_eq!(manifest.networks["default"].delays_us, [[1_000, 50_000], [50_000, 1_000]]);
    assert_eq!(manifest.networks["other"].delays_us, [[2_000]]);
    assert_eq!(manifest.networks["other"].groups.keys().collect::<Vec<_>>(), ["boot"]);
    assert!(!manifest.networks.contains_key("plain"));
    assert_eq!(manifest.cases["plain"].network, Network::Clean);
    assert_eq!(manifest.network_blocks().len(), 2);
    let chosen = manifest.network("near", "default", false).unwrap().unwrap();
    assert_eq!(chosen.groups["peer"].sites.len(), 1);
    assert_eq!(manifest.network("clean", "default", false), Ok(None));
    let unknown = manifest.network("naer", "default", false).unwrap_err();
    assert_eq!((unknown.code, unknown.help.as_deref()), ("E0314", Some("did you mean `near`?")));
}

#[test]
fn sites_nest_and_gateways_are_as_they_say() {
    let model = model(
        r#"
        [network.gateways.odd]
        mapping = "address"
        filtering = "endpoint"
        ports = "sequential"
        hairpin = false
        udp_timeout = "30s"
        [network.sites.flat]
        gateway = "odd"
        inside = "cgnat"
        [network.groups.peer]
        sites = { flat = "40%", public = "60%" }
        "#,
    );
    let flat = &model.groups["peer"].sites[0];
    assert_eq!((flat.weight, flat.gateways.len()), (400_000, 3));
    let odd = flat.gateways[2];
    assert_eq!(
        (odd.mapping, odd.filtering, odd.ports),
        (DependenceModel::Address, DependenceModel::Endpoint, PortsModel::Sequential)
    );
    assert_eq!((odd.hairpin, odd.udp_timeout_ms), (false, 30_000));
}

#[test]
fn several_share_a_place() {
    let said = model("[network.groups.peer]\nnat = \"80%\"\nper = 3");
    assert_eq!((said.groups["peer"].per, said.groups["boot"].per), (3, 1));
    assert_eq!(said.together(), BTreeMap::from([("peer".to_owned(), 3)]));
    assert!(iptl_plans::network_summary(&said).contains("peer 80% behind NAT; peer 3 to a LAN"));
    let said = model("[network.groups.peer]\nsites = { firewall = 1, public = 2 }\nper = 253");
    assert_eq!(said.groups["peer"].per, 253);
    // One in each is what is not said.
    let (one, none) =
        (model("[network.groups.peer]\nnat = \"80%\"\nper = 1"), model("[network.groups.peer]\nnat = \"80%\""));
    assert_eq!(one, none);
    // The plan has those who share a place on one lablet.
    let manifest = read("[network.groups.peer]\nnat = \"80%\"\nper = 3").unwrap();
    let workloads =
        manifest.workloads.keys().map(|name| (name.clone(), iptl_dag::codec::cid_of(&"workload"))).collect();
    let plan = manifest.to_plan(&workloads, &BTreeMap::new(), None).unwrap();
    let together = |group: &str| plan.cases["default"].groups[group].requires.together;
    assert_eq!((together("peer"), together("boot")), (Some(3), None));
}

#[test]
fn places_that_nobody_or_too_many_share_are_refused() {
    let peer = "[network.groups.peer]\n";
    refuses(&format!("{peer}nat = \"80%\"\nper = 0"), "E0207", "0", "must be from 1 to 253");
    refuses(&format!("{peer}nat = \"80%\"\nper = 254"), "E0207", "254", "must be from 1 to 253");
    refuses(&format!("{peer}nat = \"80%\"\nper = -1"), "E0207", "-1", "must be from 1 to 253");
    refuses(&format!("{peer}nat = \"80%\"\nper = \"3\""), "E0203", "\"3\"", "an integer");
    refuses(&format!("{peer}per = 3"), "E0321", "3", "what would they share?");
    refuses(&format!("{peer}sites = \"public\"\nper = 3"), "E0321", "3", "what would they share?");
}

#[test]
fn a_network_says_its_families_and_its_largest_packets() {
    let said = model(
        "[network]\nip = \"ipv6\"\nmtu = 9000\n[network.access.home]\ndelay = \"1ms\"\n[network.groups.peer]\naccess = { home = 1, clean = 1, dsl = 1 }",
    );
    assert_eq!(said.ip, IpModel::Ipv6);
    let mtus: Vec<(&str, u16)> = said.access.iter().map(|(name, class)| (name.as_str(), class.mtu)).collect();
    assert_eq!(mtus, [("clean", 9000), ("dsl", 1492), ("home", 9000)], "but for those that say their own");
    let unsaid = model("[network]\nwithin = \"1ms\"");
    assert_eq!((unsaid.ip, unsaid.access["clean"].mtu), (IpModel::Both, 1500));
}

#[test]
fn a_matrix_that_is_not_square_is_refused() {
    let help = "write a row for each region";
    refuses(
        "[network]\nregions = [\"a\", \"b\"]\ndelays = [[\"1ms\", \"2ms\"]]",
        "E0315",
        "[[\"1ms\", \"2ms\"]]",
        help,
    );
    refuses(
        "[network]\nregions = [\"a\", \"b\"]\ndelays = [[\"1ms\", \"2ms\"], [\"3ms\"]]",
        "E0315",
        "[\"3ms\"]",
        "this row has 1 delays for 2 regions",
    );
}

#[test]
fn negative_values_are_refused() {
    refuses("[network]\nwithin = \"-1ms\"", "E0206", "\"-1ms\"", "less than zero");
    refuses("[network]\naccess.x.loss = \"-5%\"", "E0206", "\"-5%\"", "less than zero");
    refuses("[network]\ngroups.peer.regions = { everywhere = -1 }", "E0207", "-1", "must be from 0");
}

#[test]
fn absurd_values_are_refused() {
    refuses("[network]\nwithin = \"2h\"", "E0207", "\"2h\"", "must be from 0ms to 1h");
    refuses("[network]\naccess.x.rate = \"1bit/s\"", "E0207", "\"1bit/s\"", "must be from 300bit/s");
    refuses("[network]\naccess.x.rate = \"5000Gbit/s\"", "E0207", "\"5000Gbit/s\"", "1000Gbit/s");
    refuses("[network]\naccess.x.loss = \"101%\"", "E0206", "\"101%\"", "too large");
    refuses("[network]\naccess.x.mtu = 100", "E0207", "100", "must be from 1280 to 9000");
    refuses("[network]\nmtu = 1279", "E0207", "1279", "must be from 1280 to 9000");
    refuses("[network]\nmtu = 9001", "E0207", "9001", "must be from 1280 to 9000");
    refuses("[network]\nip = \"ipv5\"", "E0205", "\"ipv5\"", "cannot be `ipv5`");
    refuses("[network]\naccess.x = { rate = \"1Mbit/s\", queue = \"2GiB\" }", "E0207", "\"2GiB\"", "1GiB");
    refuses("[network]\naccess.x.queue = \"2KiB\"", "E0321", "queue", "nothing ever waits");
}

#[test]
fn a_group_in_no_region_is_refused() {
    refuses(
        "[network]\ngroups.peer.regions = { everywhere = 0 }",
        "E0318",
        "{ everywhere = 0 }",
        "leaves the group in no region",
    );
    refuses("[network]\ngroups.peer.regions = {}", "E0318", "{}", "leaves the group in no region");
    refuses("[network]\ngroups.peer.regions = \"mars\"", "E0317", "\"mars\"", "there is `everywhere`");
}

#[test]
fn shares_that_are_no_whole_are_refused() {
    let regions = "[network]\nregions = [\"a\", \"b\"]\ndelay = \"1ms\"\n";
    let row = format!("{regions}groups.peer.regions = {{ a = \"70%\", b = \"20%\" }}");
    refuses(&row, "E0318", "{ a = \"70%\", b = \"20%\" }", "add up to 90%");
    let row = format!("{regions}groups.peer.regions = {{ a = \"70%\", b = 3 }}");
    refuses(&row, "E0318", "{ a = \"70%\", b = 3 }", "mixes shares and weights");
    refuses("[network.groups.peer]\nnat = \"80%\"\nundialable = \"30%\"", "E0318", "\"30%\"", "more than 100%");
    refuses("[network.groups.peer]\nsymmetric = \"10%\"", "E0321", "\"10%\"", "behind a NAT");
    refuses("[network.groups.peer]\nsites = \"cgnat\"\nnat = \"1%\"", "E0321", "nat", "beside `sites`");
}

#[test]
fn a_hundred_thousand_links_are_refused() {
    let names: Vec<String> = (0..317).map(|n| format!("\"r{n}\"")).collect();
    let list = format!("[{}]", names.join(", "));
    refuses(&format!("[network]\ndelay = \"1ms\"\nregions = {list}"), "E0316", &list, "317 regions have 100489 links");
    let names: Vec<String> = (0..MAX_REGIONS).map(|n| format!("\"r{n}\"")).collect();
    assert!(read(&format!("[network]\ndelay = \"1ms\"\nregions = [{}]", names.join(", "))).is_ok());
}

#[test]
fn a_nat_inside_itself_is_refused() {
    refuses(
        "[network.sites.a]\ngateway = \"symmetric\"\ninside = \"a\"",
        "E0319",
        "\"a\"",
        "site `a` is inside itself",
    );
    let circle =
        "[network.sites]\na = { gateway = \"symmetric\", inside = \"b\" }\nb = { gateway = \"cgnat\", inside = \"a\" }";
    let found = read(circle).expect_err("a circle");
    assert!(found.iter().all(|mistake| mistake.code == "E0319") && !found.is_empty(), "{found:#?}");
    let deep =
        "[network.sites]\na = { gateway = \"cgnat\", inside = \"b\" }\nb = { gateway = \"cgnat\", inside = \"cgnat\" }";
    let found = read(deep).expect_err("six gateways");
    assert_eq!(found.iter().map(|mistake| mistake.code).collect::<Vec<_>>(), ["E0321"]);
}

#[test]
fn names_that_are_taken_are_refused() {
    refuses("[network]\nregions = [\"a\", \"a\"]\ndelay = \"1ms\"", "E0320", "\"a\"", "is a region already");
    refuses("[network]\naccess.dsl.delay = \"1ms\"", "E0320", "dsl", "is an access class already");
    refuses("[network]\nsites.public.gateway = \"symmetric\"", "E0320", "public", "is a site already");
    refuses("[network]\ngateways.symmetric.ports = \"random\"", "E0320", "symmetric", "is a gateway already");
    refuses("[networks.world-2019]\nwithin = \"1ms\"", "E0320", "world-2019", "is a network already");
}

#[test]
fn unknown_names_get_suggestions() {
    refuses("[cases.default]\nnetwork = \"world-2091\"", "E0314", "\"world-2091\"", "did you mean `world-2019`?");
    refuses("[network]\ngroups.peer.access = \"fiber\"", "E0317", "\"fiber\"", "did you mean `fibre`?");
    refuses("[network]\ngroups.peer.sites = \"symetric\"", "E0317", "\"symetric\"", "did you mean `symmetric`?");
    refuses("[network]\nsites.x.gateway = \"symetric\"", "E0317", "\"symetric\"", "did you mean `symmetric`?");
    refuses(
        "[network]\nsites.x = { gateway = \"symmetric\", inside = \"cgnaat\" }",
        "E0317",
        "\"cgnaat\"",
        "did you mean `cgnat`?",
    );
    refuses("[network]\ngroups.pear.nat = \"5%\"", "E0322", "pear", "did you mean `peer`?");
    refuses("[cases.default.network]\ngroups.pear.nat = \"5%\"", "E0322", "pear", "did you mean `peer`?");
    refuses("[network]\nlatency = \"5ms\"", "E0201", "latency", "has no key");
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    refuses("[network]\npreset = \"world-2019\"\nwithin = \"1ms\"", "E0321", "within", "the preset has its own");
    refuses("[network]\ndelay = \"1ms\"", "E0321", "delay", "between which regions?");
    let both = "[network]\nregions = [\"a\"]\ndelay = \"1ms\"\ndelays = [[\"1ms\"]]";
    refuses(both, "E0321", "delay", "remove one of them");
    refuses("[network]\nregions = [\"a\"]\nwithin = \"1ms\"\ndelays = [[\"1ms\"]]", "E0321", "within", "diagonal");
    refuses("[network]\nregions = [\"a\"]", "E0202", "[network]", "delay");
    refuses(
        "[network.gateways.wall]\nkind = \"firewall\"\nmapping = \"address\"",
        "E0321",
        "mapping",
        "only a NAT has it",
    );
}

#[test]
fn faults_are_the_schedule_that_they_say() {
    let manifest = read(
        r#"
        [[faults]]
        at = "10s"
        for = "5s"
        partition = [{ region = "eu" }, [{ region = "us" }, { group = "boot", share = "50%" }]]
        [[faults]]
        every = "30s"
        crash = { group = "peer", share = "10%", restart = "2s" }
        [[faults]]
        at = "1s"
        every = "20s"
        link = { access = "dsl", loss = "5%", up = { rate = "100kbit/s" } }
        [[cases.default.faults]]
        at = "3s"
        delay = { from = "eu", to = "us", is = "200ms" }
        [[cases.default.faults]]
        at = "4s"
        rebind = { region = "eu" }
        [[cases.default.faults]]
        at = "5s"
        pause = { share = "20%", for = "1500ms" }
        [network]
        regions = ["eu", "us"]
        delay = "50ms"
        groups.peer.access = "dsl"
        "#,
    )
    .unwrap_or_else(|found| panic!("{found:#?}"));
    let lines: Vec<String> =
        manifest.faults["default"].iter().flat_map(|schedule| &schedule.faults).map(fault_summary).collect();
    assert_eq!(
        lines,
        [
            "at 10s: partition of 2 sides",
            "at 15s: heal",
            "every 30s: crash of 10% of peer, restart after 2s",
            "at 1s and every 20s: links of dsl change",
            "at 3s: delay from eu to us becomes 200ms",
            "at 3s: delay from us to eu becomes 200ms",
            "at 4s: NATs of 100% of all in eu forget",
            "at 5s: pause of 20% of all for 1500ms",
        ]
    );
    let Fault::Link { up, down, .. } = &manifest.faults["default"][0].faults[3].fault else { panic!("a link") };
    assert_eq!((up.rate_bps, up.delay_us, up.loss_ppm), (100_000, 25_000, 50_000));
    assert_eq!((down.rate_bps, down.loss_ppm), (1_500_000, 50_000));
    let cids: Vec<_> = manifest.faults["default"].iter().map(|schedule| *to_block(schedule.clone()).cid()).collect();
    assert_eq!(manifest.cases["default"].faults, cids);
    assert_eq!(manifest.network_blocks().len(), 3);
}

#[test]
fn faults_of_a_clean_network_have_one_to_happen_in() {
    let sides = "partition = [{ group = \"peer\" }, { group = \"boot\" }]";
    let manifest = read(&format!("[[faults]]\nat = \"1s\"\n{sides}")).unwrap();
    let model = &manifest.networks["default"];
    assert_eq!((model.regions.len(), &model.delays_us), (1, &vec![vec![0]]));
    assert_eq!(manifest.network("clean", "default", true).unwrap().as_ref(), Some(model));
}

#[test]
fn addresses_and_clocks_change_as_a_fault_says() {
    let manifest = read(
        r#"
        [[faults]]
        at = "1s"
        address = { group = "peer", share = "10%" }
        [[faults]]
        at = "2s"
        clock = { group = "boot", forward = "2h" }
        [[faults]]
        every = "3s"
        clock = { back = "1500ms" }
        "#,
    )
    .unwrap_or_else(|found| panic!("{found:#?}"));
    let faults = &manifest.faults["default"][0].faults;
    assert_eq!(
        faults.iter().map(fault_summary).collect::<Vec<_>>(),
        [
            "at 1s: other addresses for 10% of peer",
            "at 2s: clocks of 100% of boot jump forward by 2h",
            "every 3s: clocks of 100% of all jump back by 1500ms",
        ]
    );
    let steps =
        faults.iter().filter_map(|fault| if let Fault::Clock { by_ms, .. } = fault.fault { Some(by_ms) } else { None });
    assert_eq!(steps.collect::<Vec<_>>(), [7_200_000, -1_500]);
}

#[test]
fn clocks_that_cannot_jump_are_refused() {
    refuses("[[faults]]\nat = \"1s\"\nclock = {}", "E0323", "{}", "which way");
    refuses(
        "[[faults]]\nat = \"1s\"\nclock = { forward = \"1s\", back = \"1s\" }",
        "E0323",
        "{ forward = \"1s\", back = \"1s\" }",
        "which way",
    );
    refuses("[[faults]]\nat = \"1s\"\nclock = { forward = \"0s\" }", "E0207", "\"0s\"", "must be from 1ms");
    let container = "[workloads.box]\nrunner = \"docker\"\nbinary = \"box\"\n[cases.default.groups.boxes]\nworkload = \"box\"\n\
                     count = 1\n";
    let of = |who: &str| format!("{container}[[faults]]\nat = \"1s\"\nclock = {{ {who}forward = \"1s\" }}");
    refuses(&of("group = \"boxes\", "), "E0323", "\"boxes\"", "instances of `boxes` have the clock of their machine");
    refuses(&of(""), "E0323", "{ forward = \"1s\" }", "name a group of components");
    assert!(read(&of("group = \"peer\", ")).is_ok());
}

#[test]
fn what_a_crash_takes_with_it_is_said_by_words() {
    let crash =
        |more: &str| format!("[[faults]]\nevery = \"30s\"\ncrash = {{ group = \"peer\", share = \"10%\"{more} }}");
    let first = |manifest: &str| {
        let manifest = read(manifest).unwrap_or_else(|found| panic!("{found:?}"));
        manifest.faults["default"][0].faults[0].clone()
    };
    let usual = first(&crash(""));
    assert_eq!(fault_summary(&usual), "every 30s: crash of 10% of peer, restart after 1s");
    assert_eq!(first(&crash(", files = \"kept\", address = \"kept\"")), usual);
    let anew = first(&crash(", files = \"lost\", address = \"new\""));
    let says = "every 30s: crash of 10% of peer, restart after 1s without files at another address";
    assert_eq!(fault_summary(&anew), says);
    let Fault::Crash { files_lost: true, new_address: true, .. } = anew.fault else { panic!("{anew:?}") };
    refuses(&crash(", files = \"los\""), "E0205", "\"los\"", "did you mean `lost`?");
    refuses(&crash(", address = true"), "E0203", "true", "must be a string");
    let boxes = "[workloads.box]\nrunner = \"docker\"\nbinary = \"box\"\n[cases.default.groups.boxes]\nworkload = \"box\"\n\
                 count = 1\ncontainer = { writable = true }\n";
    let lost = "[[faults]]\nat = \"1s\"\ncrash = { files = \"lost\" }";
    refuses(&format!("{boxes}{lost}"), "E0323", "\"lost\"", "containers of `boxes` have `writable = true`");
    let read_only = boxes.replace("true", "false");
    assert!(read(&format!("{read_only}{lost}")).is_ok());
}

#[test]
fn faults_that_make_no_sense_are_refused() {
    refuses("[[faults]]\nat = \"1s\"", "E0323", "[[faults]]", "nothing happens");
    refuses("[[faults]]\nheal = true", "E0323", "[[faults]]", "when?");
    refuses("[[faults]]\nat = \"1s\"\nheal = true\nrebind = {}", "E0323", "[[faults]]", "several things");
    refuses("[[faults]]\nat = \"1s\"\nfor = \"2s\"\nheal = true", "E0323", "\"2s\"", "only a partition");
    refuses("[[faults]]\nat = \"1s\"\nheal = false", "E0323", "false", "write `heal = true`");
    refuses("[[faults]]\nat = \"1s\"\npartition = []", "E0323", "[]", "parts nobody");
    refuses("[[faults]]\nevery = \"1ms\"\nheal = true", "E0207", "\"1ms\"", "must be from 10ms");
    refuses("[[faults]]\nat = \"1s\"\ncrash = { group = \"pear\" }", "E0322", "\"pear\"", "did you mean `peer`?");
    refuses("[[faults]]\nat = \"1s\"\nrebind = { region = \"eu\" }", "E0317", "\"eu\"", "there is `everywhere`");
    refuses("[[faults]]\nat = \"1s\"\nlink = { access = \"dsl\" }", "E0317", "\"dsl\"", "there is `clean`");
}
