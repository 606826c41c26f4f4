//! Manifests, workloads and builds that are wrong.

use std::path::Path;

use iptl_e2e::{Home, Lab};
use wasm_encoder::{
    Component, ComponentImportSection, ComponentTypeRef, ComponentTypeSection, InstanceType, PrimitiveValType,
};

/// A plan whose workload is the file `work.wasm`, built by `build`.
fn write_plan(dir: &Path, build: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let text = format!(
        r#"[plan]
name = "bad"
version = "0.1.0"

[workloads.work]
runner = "wasm"
path = "work.wasm"
{build}

[cases.only]
timeout = "20s"

[cases.only.groups.node]
workload = "work"
count = {{ default = 2, min = 1, max = 10 }}
"#
    );
    std::fs::write(dir.join("plan.toml"), text).unwrap();
}

#[test]
fn manifest_with_every_kind_of_mistake() {
    let home = Home::new();
    let plan = home.path().join("plan.toml");
    let text = r#"[plan]
name = "Not A Name"
verson = "1"

[workloads.work]
runner = "dcoker"
path = "../outside.wasm"

[cases.one]
timeout = "soon"

[cases.one.groups.node]
workload = "wrk"
count = { default = 80, min = 1, max = 64 }

[cases.one.params.rate]
type = "int"
default = 5
min = 10
max = 1

[[cases.one.thresholds]]
metric = "rtt"
stat = "p96"
below = "250 parsecs"
"#;
    std::fs::write(&plan, text).unwrap();
    let output = home.run(&["check", &plan.display().to_string(), "--json"]).fails(2, "plan.invalid");
    let found = output.json();
    let found = found["diagnostics"].as_array().unwrap();
    assert!(found.len() >= 9, "{found:#?}");
    for mistake in found {
        assert!(mistake["code"].as_str().is_some_and(|c| c.starts_with('E')), "{mistake}");
        assert!(mistake["end"].as_u64() > mistake["start"].as_u64(), "{mistake}");
        home.run(&["explain", mistake["code"].as_str().unwrap()]).exits(0);
    }
    assert!(output.stderr.contains("did you mean `version`?"), "{}", output.stderr);
    assert!(output.stderr.contains("did you mean `work`?"), "{}", output.stderr);
}

#[test]
fn plan_whose_folder_is_not_there() {
    let home = Home::new();
    home.run(&["run", "./nothing", "--local"]).fails(2, "plan.not-found");
    let gone = home.path().join("gone");
    home.run(&["run", &gone.display().to_string(), "--local"]).fails(2, "plan.not-found");
}

#[test]
fn manifest_that_is_no_toml() {
    let home = Home::new();
    let plan = home.path().join("plan.toml");
    std::fs::write(&plan, "[plan\nname = ").unwrap();
    home.run(&["check", &plan.display().to_string()]).fails(2, "plan.invalid");
}

#[test]
fn build_that_fails() {
    let home = Home::new();
    let dir = home.path().join("plan");
    write_plan(&dir, r#"build = ["sh", "-c", "echo no such luck >&2; exit 7"]"#);
    let output = home.run(&["publish", "plan", &dir.display().to_string()]).fails(1, "build.failed");
    assert!(output.stderr.contains("no such luck"), "{}", output.stderr);
    assert_eq!(output.stdout, "");
}

#[test]
fn workload_that_is_no_component() {
    let home = Home::new();
    let dir = home.path().join("plan");
    write_plan(&dir, "");
    let file = dir.join("work.wasm");
    std::fs::write(&file, "this is text").unwrap();
    home.run(&["publish", "plan", &dir.display().to_string()]).fails(2, "workload.not-component");
    // A core module: the same magic, another layer.
    std::fs::write(&file, b"\0asm\x01\0\0\0").unwrap();
    let output = home.run(&["publish", "workload", &file.display().to_string()]).fails(2, "workload.not-component");
    assert!(output.stderr.contains("core module"), "{}", output.stderr);
}

#[test]
fn workload_that_is_not_there() {
    let home = Home::new();
    let dir = home.path().join("plan");
    write_plan(&dir, "");
    home.run(&["publish", "plan", &dir.display().to_string()]).fails(2, "workload.not-found");
}

#[test]
fn workload_that_wants_an_import_that_nobody_gives() {
    let mut function = InstanceType::new();
    function.ty().function().params([] as [(&str, PrimitiveValType); 0]).result(None);
    function.export("launch", ComponentTypeRef::Func(0));
    let mut types = ComponentTypeSection::new();
    types.instance(&function);
    let mut imports = ComponentImportSection::new();
    imports.import("acme:rockets/engine@1.0.0", ComponentTypeRef::Instance(0));
    let mut component = Component::new();
    component.section(&types).section(&imports);

    let lab = Lab::start(1);
    let dir = lab.path().join("plan");
    write_plan(&dir, "");
    std::fs::write(dir.join("work.wasm"), component.finish()).unwrap();
    let output = lab.run(&["run", &dir.display().to_string(), "--json"]).fails(2, "workload.bad");
    assert!(output.stderr.contains("acme:rockets/engine"), "the import is not named:\n{}", output.stderr);
    // The lab is none the worse for it.
    let ping = iptl_e2e::repository().join("plans/ping").display().to_string();
    lab.run(&["run", &ping, "--no-build", "-g", "node=2"]).exits(0);
}

#[test]
fn choices_of_a_run_that_the_plan_does_not_allow() {
    let home = Home::new();
    let ping = iptl_e2e::repository().join("plans/ping").display().to_string();
    let run = |args: &[&str]| home.run(&[&["run", &ping, "--no-build", "--local"], args].concat());
    let output = run(&["-g", "nodes=3"]).fails(2, "run.invalid");
    assert!(output.stderr.contains("did you mean `node`?"), "{}", output.stderr);
    run(&["-g", "node=100000"]).fails(2, "run.invalid");
    run(&["-p", "rounds=many"]).fails(2, "run.invalid");
    run(&["--case", "mash"]).fails(2, "run.invalid");
}
