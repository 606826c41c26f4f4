//! The container that a plan asks for, within what its owner allows.
//!
//! What the plan wishes and the owner does not allow is refused with a reason, never given in part: resources are
//! conditions of an experiment. What is never given at all has no place here: capabilities, devices, namespaces of the
//! host, its network, its paths.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    ImageConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits,
};
use iptl_dag::model::{Container, Health};
use iptl_labnet::Addrs;
use iptl_labnet_tun::V6_SETTINGS;
use iptl_runner::{CellSpec, InstanceSpec};
use iptl_testground::Setting;

use crate::config::OwnerLimits;
use crate::network::{Seat, subnet_of};
use crate::protocol::{EGRESS_VERB, HealthOrder, INIT_PATH, LAB_DIR, Order, Token};

/// Weight of a container at the processors: the least that engines take, where everything else on a machine has 1024. A
/// hundred that are busy then leave half of a machine to the lablet, whose heartbeats must go out and whose network must
/// carry their packets, and to whatever else its owner runs; whatever nobody else wants is theirs.
const CPU_SHARES: i64 = 2;

/// Directory for artifacts, as a workload sees it.
const OUTPUTS: &str = "/outputs";

/// Directory for what is thrown away, as a workload sees it.
const TEMP: &str = "/tmp";

/// Where shared memory has names, as every container has it.
const SHARED_MEMORY: &str = "/dev/shm";

/// Where programs look up names, and where they look for servers of names.
const HOSTS: &str = "/etc/hosts";
const RESOLVER: &str = "/etc/resolv.conf";

/// User of workloads whose image says none, or root: the overflow user of Linux, who owns nothing.
const NOBODY: &str = "65534:65534";

/// Least memory that engines give a container.
const MIN_MEMORY: u64 = 6 << 20;

/// Memory of the container that makes a device: init in it needs a part.
const BESIDE_MEMORY: u64 = 16 << 20;

/// Bytes of the directories that an image declares as volumes, each; they count as memory.
const VOLUME_BYTES: u64 = 64 << 20;

/// Files and directories that a directory in memory may hold.
const MAX_FILES: u32 = 16_384;

/// Room for names, and for sizes rounded up to blocks.
const OUTPUTS_MARGIN: u64 = 256 << 10;

/// Lines of records in files hold more than what is kept of them, twice as much at most.
const RECORD_FACTOR: u64 = 2;

/// Paths that are not a plan's to cover, and everything below them.
const RESERVED: [&str; 7] = ["/proc", "/sys", "/dev", "/.iptl", OUTPUTS, HOSTS, RESOLVER];

/// Variable with each place outside of the lab that an instance may reach, and where it does:
/// `bootstrap.example:4001/udp=192.0.2.64:4001`, separated by spaces.
const EGRESS_VARIABLE: &str = "IPTL_EGRESS";

/// A container to be made, and how it is dealt with.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) body: ContainerCreateBody,
    pub(crate) order: Order,
    pub(crate) setting: Setting,
    pub(crate) stop_signal: i32,
    pub(crate) stop_grace: Duration,
    /// Bytes that it may write below its root, where it may at all.
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) exec: bool,
}

impl Wanted {
    /// Returns the directories in memory in which the workload keeps its files. What it leaves for the lab is none of them.
    pub(crate) fn scratch(&self) -> Vec<String> {
        let in_memory = self.body.host_config.iter().flat_map(|host| host.tmpfs.iter().flat_map(HashMap::keys));
        let own = in_memory.filter(|path| *path != OUTPUTS).cloned();
        own.chain([SHARED_MEMORY.to_owned()]).collect()
    }

    /// Returns the variables that tell a program its addresses, as `NAME=value`.
    pub(crate) fn variables_at(&self, addrs: Addrs) -> Vec<String> {
        let first = addrs.first().map(|addr| format!("IPTL_ADDR={addr}"));
        let v6 = addrs.v6.map(|addr| format!("IPTL_ADDR6={addr}"));
        let subnet = format!("TEST_SUBNET={}", subnet_of(addrs));
        first.into_iter().chain(v6).chain([subnet]).collect()
    }
}

/// What the runner decides about one container.
pub(crate) struct Place<'a> {
    pub(crate) ordinal: u32,
    pub(crate) network: Seat,
    /// Where it reaches places outside of the lab.
    pub(crate) egress: &'a str,
    /// The file of names on this machine, and the one that says that there are no others.
    pub(crate) names: &'a Path,
    pub(crate) resolver: &'a Path,
    /// The init program on this machine.
    pub(crate) init: &'a Path,
    /// The directory with the lablet's socket on this machine.
    pub(crate) lab: &'a Path,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) token: Token,
    pub(crate) image: &'a str,
    /// Whether it needs a namespace of control groups to see its own.
    pub(crate) group_namespace: bool,
}

/// Makes the container of an instance; fails with the reason for which it is not started.
pub(crate) fn container(
    cell: &CellSpec,
    instance: &InstanceSpec,
    image: &ImageConfig,
    owner: &OwnerLimits,
    place: Place<'_>,
) -> Result<Wanted, String> {
    let usual = Container::usual();
    let settings = instance.container.as_ref().map_or(&usual, |container| &container.settings);
    allowed(settings, instance, owner)?;
    let argv = argv(settings, &instance.args, image)?;
    let setting = setting(cell, instance, &place);
    let mut env = environment(cell, instance, image, &setting);
    if reaches_out(instance) {
        env.insert(EGRESS_VARIABLE.to_owned(), place.egress.to_owned());
    }
    let memory = signed(instance.limits.memory_bytes);
    let cpu_milli = if settings.cpu_milli == 0 { owner.cpu_milli } else { settings.cpu_milli };
    let ulimit = |name: &str, value: u64| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(signed(value)),
        hard: Some(signed(value)),
    };
    let mut ulimits = vec![ulimit("nofile", u64::from(settings.open_files)), ulimit("core", 0)];
    if settings.writable {
        ulimits.push(ulimit("fsize", settings.disk_bytes));
    }
    let host = HostConfig {
        memory: Some(memory),
        // Both together: no swap.
        memory_swap: Some(memory),
        cpu_shares: Some(CPU_SHARES),
        nano_cpus: (cpu_milli > 0).then(|| i64::from(cpu_milli) * 1_000_000),
        // One more for init.
        pids_limit: Some(i64::from(settings.pids) + 1),
        ulimits: Some(ulimits),
        // Workloads go before anything of the owner's when the machine runs out of memory.
        oom_score_adj: Some(500),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        readonly_rootfs: Some(!settings.writable),
        network_mode: Some("none".to_owned()),
        sysctls: Some(sysctls(place.network.addrs.v6.is_some())),
        // Engines may be set to share the host's; init reads its own group.
        cgroupns_mode: place.group_namespace.then_some(HostConfigCgroupnsModeEnum::PRIVATE),
        ipc_mode: Some("private".to_owned()),
        shm_size: Some(signed((instance.limits.memory_bytes / 2).min(64 << 20))),
        // What it says goes through pipes of ours.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        mounts: Some(mounts(instance, &place)?),
        tmpfs: Some(tmpfs(settings, instance, image)?),
        ..HostConfig::default()
    };
    let order = Order {
        token: place.token,
        argv,
        outputs: OUTPUTS.to_owned(),
        artifact_bytes: instance.limits.artifact_bytes,
        record_bytes: instance.limits.record_bytes.saturating_mul(RECORD_FACTOR),
        cpu_us: instance.limits.cpu_ms.saturating_mul(1000),
        wall_ms: instance.limits.wall_ms,
        open_files: u64::from(settings.open_files),
        health: settings.health.as_ref().map(health).transpose()?,
    };
    let stop_signal = signal(settings.stop_signal.as_deref().or(image.stop_signal.as_deref()).unwrap_or("SIGTERM"))?;
    let body = ContainerCreateBody {
        image: Some(place.image.to_owned()),
        hostname: Some(setting.hostname.clone()),
        user: Some(user(settings, image, owner)?),
        entrypoint: Some(vec![INIT_PATH.to_owned()]),
        cmd: Some(if reaches_out(instance) { vec![EGRESS_VERB.to_owned()] } else { Vec::new() }),
        env: Some(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: settings.workdir.clone(),
        labels: Some(place.labels),
        // The image's own check would be the engine's work, each time a process.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    };
    Ok(Wanted {
        body,
        order,
        setting,
        stop_signal,
        stop_grace: Duration::from_millis(settings.stop_grace_ms.min(owner.stop_grace_ms)),
        disk_bytes: settings.writable.then_some(settings.disk_bytes),
        exec: settings.exec,
    })
}

/// Makes the container that makes a device in the network of another: it may change that and nothing else, and ends at
/// once. Its words follow the init program.
pub(crate) fn beside(place: &crate::network::Place<'_>, words: Vec<String>) -> ContainerCreateBody {
    let wanted = place.wanted;
    let of_init = |mount: &&Mount| matches!(mount.target.as_deref(), Some(INIT_PATH | LAB_DIR));
    let mounts = wanted.host_config.iter().flat_map(|host| host.mounts.iter().flatten()).filter(of_init).cloned();
    // It is of the cell, and not the instance.
    let of_cell = |(name, _): &(&String, &String)| !matches!(name.as_str(), "iptl.group" | "iptl.instance");
    let labels = wanted.labels.iter().flatten().filter(of_cell).map(|(name, value)| (name.clone(), value.clone()));
    let device = DeviceMapping {
        path_on_host: Some("/dev/net/tun".to_owned()),
        path_in_container: Some("/dev/net/tun".to_owned()),
        cgroup_permissions: Some("rw".to_owned()),
    };
    let host = HostConfig {
        network_mode: Some(format!("container:{}", place.container)),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(vec!["NET_ADMIN".to_owned()]),
        devices: Some(vec![device]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        readonly_rootfs: Some(true),
        memory: Some(signed(BESIDE_MEMORY)),
        pids_limit: Some(8),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        mounts: Some(mounts.collect()),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: wanted.image.clone(),
        user: Some("0:0".to_owned()),
        entrypoint: Some(vec![INIT_PATH.to_owned()]),
        cmd: Some(words),
        labels: Some(labels.collect()),
        healthcheck: wanted.healthcheck.clone(),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// Returns whether a user of an image is root by what it is called. A name may be root's all the same: init says that.
pub(crate) fn is_root(user: &str) -> bool {
    matches!(user.split(':').next().unwrap_or_default().trim(), "" | "0" | "root")
}

/// Compares what is asked for with what the owner allows.
fn allowed(settings: &Container, instance: &InstanceSpec, owner: &OwnerLimits) -> Result<(), String> {
    let over = |what: &str, wish: u64, limit: u64| format!("it asks for {wish} {what}, and the owner allows {limit}");
    if settings.pids > owner.pids {
        return Err(over("processes", settings.pids.into(), owner.pids.into()));
    }
    if settings.pids == 0 {
        return Err("it asks for no process at all".to_owned());
    }
    if settings.open_files > owner.open_files {
        return Err(over("open files", settings.open_files.into(), owner.open_files.into()));
    }
    if owner.cpu_milli > 0 && settings.cpu_milli > owner.cpu_milli {
        return Err(over("thousandths of a processor", settings.cpu_milli.into(), owner.cpu_milli.into()));
    }
    if settings.writable && owner.disk_bytes == 0 {
        return Err("it asks for a root file system that can be written to, and the owner allows none".to_owned());
    }
    if settings.writable && settings.disk_bytes > owner.disk_bytes {
        return Err(over("bytes of disk", settings.disk_bytes, owner.disk_bytes));
    }
    if instance.limits.memory_bytes < MIN_MEMORY {
        return Err(format!(
            "it asks for {} bytes of memory, and a container needs {MIN_MEMORY}",
            instance.limits.memory_bytes
        ));
    }
    Ok(())
}

fn argv(settings: &Container, args: &[String], image: &ImageConfig) -> Result<Vec<String>, String> {
    let mut argv = settings.entrypoint.clone();
    if argv.is_empty() {
        argv = image.entrypoint.clone().unwrap_or_default();
        if args.is_empty() {
            argv.extend(image.cmd.clone().unwrap_or_default());
        }
    }
    argv.extend(args.iter().cloned());
    if argv.is_empty() {
        return Err("neither its plan nor its image names a program".to_owned());
    }
    if argv.iter().any(|arg| arg.contains('\0')) {
        return Err("an argument has a zero byte".to_owned());
    }
    if argv.iter().map(String::len).sum::<usize>() > crate::protocol::MAX_FRAME / 2 {
        return Err("its arguments are too long".to_owned());
    }
    Ok(argv)
}

fn user(settings: &Container, image: &ImageConfig, owner: &OwnerLimits) -> Result<String, String> {
    match &settings.user {
        Some(user) if is_root(user) && !owner.root => {
            Err("it asks to be root in its container, and the owner does not allow that".to_owned())
        }
        Some(user) => Ok(user.clone()),
        None => {
            Ok(image.user.as_ref().filter(|user| !is_root(user)).map_or_else(|| NOBODY.to_owned(), ToOwned::to_owned))
        }
    }
}

/// Returns whether an instance may reach anything outside of the lab.
fn reaches_out(instance: &InstanceSpec) -> bool {
    instance.container.as_ref().is_some_and(|container| !container.egress.is_empty())
}

fn health(health: &Health) -> Result<HealthOrder, String> {
    if health.command.is_empty() || health.command.iter().any(|arg| arg.contains('\0')) {
        return Err("its health check names no program".to_owned());
    }
    Ok(HealthOrder {
        argv: health.command.clone(),
        interval_ms: health.interval_ms.max(100),
        timeout_ms: health.timeout_ms.max(1),
        start_ms: health.start_ms,
        retries: health.retries,
    })
}

/// Returns what the container's network is to do by itself over IPv6: say nothing, which would be no word of the instance;
/// and be there at all where the instance has an address of it.
fn sysctls(has_v6: bool) -> HashMap<String, String> {
    let name = |key: &str| format!("net.ipv6.conf.default.{key}");
    if has_v6 {
        V6_SETTINGS.map(|(key, value)| (name(key), value.to_owned())).into()
    } else {
        HashMap::from([(name("disable_ipv6"), "1".to_owned())])
    }
}

fn setting(cell: &CellSpec, instance: &InstanceSpec, place: &Place<'_>) -> Setting {
    let group: String =
        instance.id.group.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    Setting {
        plan: cell.plan.clone(),
        ordinal: place.ordinal,
        addrs: place.network.addrs,
        subnet: place.network.subnet(),
        hostname: format!("{}-{}", group.trim_matches('-'), instance.id.index),
        sync_host: iptl_testground::SYNC_HOST.to_owned(),
        sync_port: iptl_testground::SYNC_PORT,
        outputs: OUTPUTS.into(),
        temp: TEMP.into(),
        start_time: rfc3339(SystemTime::now()),
    }
}

/// The image's variables, then what the group and the lab set.
fn environment(
    cell: &CellSpec,
    instance: &InstanceSpec,
    image: &ImageConfig,
    setting: &Setting,
) -> BTreeMap<String, String> {
    let of_image = image.env.iter().flatten().filter_map(|pair| pair.split_once('='));
    let mut env: BTreeMap<String, String> = of_image.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    env.extend(iptl_testground::environment(cell, instance, setting));
    env.entry("PATH".to_owned())
        .or_insert_with(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    env
}

fn mounts(instance: &InstanceSpec, place: &Place<'_>) -> Result<Vec<Mount>, String> {
    let bind = |source: &Path, target: &str| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    };
    let mut mounts = vec![
        bind(place.init, INIT_PATH),
        bind(place.lab, LAB_DIR),
        bind(place.names, HOSTS),
        bind(place.resolver, RESOLVER),
    ];
    for (target, source) in instance.container.iter().flat_map(|container| &container.files) {
        check_path(target)?;
        let source = std::path::absolute(source).map_err(|e| format!("the file for {target} is not at hand: {e}"))?;
        readable(&source, 0).map_err(|e| format!("the file for {target} is not at hand: {e}"))?;
        mounts.push(bind(&source, target));
    }
    Ok(mounts)
}

/// Lets every user read what the plan put there: the container's user is none of this machine.
fn readable(path: &Path, depth: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::symlink_metadata(path)?;
    let mode = metadata.permissions().mode();
    let wanted = if metadata.is_dir() || mode & 0o100 != 0 { 0o555 } else { 0o444 };
    if !metadata.is_symlink() && mode & wanted != wanted {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode((mode | wanted) & 0o7777))?;
    }
    if metadata.is_dir() && depth < 64 {
        for entry in std::fs::read_dir(path)? {
            readable(&entry?.path(), depth + 1)?;
        }
    }
    Ok(())
}

fn tmpfs(
    settings: &Container,
    instance: &InstanceSpec,
    image: &ImageConfig,
) -> Result<HashMap<String, String>, String> {
    let options = |size: u64, exec: &str| {
        // Whole pages, and never none, which would mean half of the machine's memory.
        let size = size.max(1).next_multiple_of(4096);
        format!("rw,nosuid,nodev,{exec},size={size},mode=1777,nr_inodes={MAX_FILES}")
    };
    let limits = &instance.limits;
    let mut tmpfs = HashMap::new();
    for volume in image.volumes.iter().flatten() {
        // Else the engine would make a directory on the host's disk, without any bound.
        if check_path(volume).is_ok() {
            tmpfs.insert(volume.clone(), options(VOLUME_BYTES, "exec"));
        }
    }
    tmpfs.insert(TEMP.to_owned(), options((limits.memory_bytes / 2).min(VOLUME_BYTES), "exec"));
    for (path, size) in &settings.tmpfs {
        check_path(path)?;
        tmpfs.insert(path.clone(), options(*size, "exec"));
    }
    let records = limits.record_bytes.saturating_mul(RECORD_FACTOR);
    let outputs = limits.artifact_bytes.saturating_add(records).saturating_add(OUTPUTS_MARGIN);
    tmpfs.insert(OUTPUTS.to_owned(), options(outputs, "noexec"));
    Ok(tmpfs)
}

/// Checks a path at which something appears in a container.
fn check_path(path: &str) -> Result<(), String> {
    let plain = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|name| !name.is_empty() && name != "." && name != "..")
            && !rest.chars().any(|c| c.is_control() || c == ':' || c == ',')
    });
    let shown: String = path.chars().take(80).collect();
    if !plain || path.len() > 512 {
        return Err(format!("{shown:?} is no absolute path of plain names"));
    }
    let below = |root: &&&str| path.strip_prefix(**root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match RESERVED.iter().find(below) {
        Some(root) => Err(format!("nothing can be put at {shown}: {root} is the lab's")),
        None => Ok(()),
    }
}

/// Reads the name or the number of a signal.
fn signal(name: &str) -> Result<i32, String> {
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(format!("{number} is no signal")) };
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<nix::sys::signal::Signal>().map(|signal| signal as i32).map_err(|_| format!("{name:?} is no signal"))
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Writes a time as `2026-11-20T14:00:00Z`.
fn rfc3339(time: SystemTime) -> String {
    let s = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // Days since 1970 to a date, after Howard Hinnant's `civil_from_days`.
    let days = s / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let s = s % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_several_names() {
        for root in ["", "0", "root", "0:0", "root:staff"] {
            assert!(is_root(root), "{root}");
        }
        for other in ["1000", "node", "65534:65534", "00x"] {
            assert!(!is_root(other), "{other}");
        }
    }

    #[test]
    fn image_is_never_root_by_itself_and_a_plan_only_where_the_owner_allows() {
        let image = |user: &str| ImageConfig { user: Some(user.to_owned()), ..ImageConfig::default() };
        let plan = |user: Option<&str>| Container { user: user.map(str::to_owned), ..Container::usual() };
        let owner = OwnerLimits::default();
        assert_eq!(user(&plan(None), &image("root"), &owner).unwrap(), NOBODY);
        assert_eq!(user(&plan(None), &image("node"), &owner).unwrap(), "node");
        assert!(user(&plan(Some("0:0")), &image(""), &owner).unwrap_err().contains("owner"));
        let generous = OwnerLimits { root: true, ..owner };
        assert_eq!(user(&plan(Some("0:0")), &image(""), &generous).unwrap(), "0:0");
    }

    #[test]
    fn paths_of_a_plan_cannot_cover_the_labs() {
        for good in ["/etc/app.toml", "/data", "/outputs2"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        for bad in ["etc", "/", "/a/../b", "//a", "/a/", "/proc/1", "/.iptl/init", "/outputs/x", "/a:b", "/sys"] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!((signal("SIGTERM"), signal("int"), signal("9")), (Ok(15), Ok(2), Ok(9)));
        assert!(signal("SIGNOTHING").is_err() && signal("0").is_err());
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        let at = |s| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_183_246), "2026-11-20T14:00:46Z");
    }
}
