//! A new plan that builds and runs at once: the template, with the SDK's source in it.

use crate::names::is_name;

/// A file of a new plan: its path, relative and with `/`, and what it holds.
pub type ScaffoldFile = (String, String);

macro_rules! files {
    ($from:literal, $into:literal: $($path:literal)*) => {
        &[$((concat!($into, $path), include_str!(concat!("../", $from, $path)))),*]
    };
}

/// The SDK as it is, so that a plan needs no registry.
const SDK: &[(&str, &str)] = files! { "sdk/", "sdk/":
    "Cargo.toml"
    "src/back.rs" "src/back/bindings.rs" "src/back/native.rs" "src/back/rt.rs" "src/back/wasm.rs"
    "src/back/native/base64.rs" "src/back/native/client.rs" "src/back/native/json.rs" "src/back/native/records.rs"
    "src/back/native/websocket.rs"
    "src/env.rs" "src/error.rs" "src/json.rs" "src/lib.rs" "src/net.rs" "src/network.rs" "src/rng.rs" "src/sync.rs"
    "wit/deps/clocks/monotonic-clock.wit" "wit/deps/io/poll.wit" "wit/lab.wit" "wit/sdk.wit"
};

const TEMPLATE: &[(&str, &str)] = &[
    (".gitignore", include_str!("../template/gitignore.in")),
    ("Cargo.toml", include_str!("../template/Cargo.toml.in")),
    ("plan.toml", include_str!("../template/plan.toml.in")),
    ("src/main.rs", include_str!("../template/src/main.rs")),
];

/// Why there is no plan of a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScaffoldError {
    /// A plan cannot be called so.
    #[error("`{name}` cannot name a plan: a name has 1 to 40 of `a-z`, `0-9` and `-`, and begins with a letter")]
    BadName {
        /// What was asked for.
        name: String,
        /// The nearest name; empty where there is none.
        nearest: String,
    },
}

/// Returns the files of a new plan.
///
/// # Errors
///
/// Fails on a name that cannot be one of a plan and of a Cargo package.
pub fn scaffold(name: &str) -> Result<Vec<ScaffoldFile>, ScaffoldError> {
    // Cargo wants packages to begin with a letter, and refuses its own words.
    let reserved = ["test", "core", "std", "alloc", "proc-macro", "build", "deps", "examples", "incremental"];
    if !is_name(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) || reserved.contains(&name) {
        let nearest = crate::names::slug(name);
        let nearest = if nearest == name || !is_name(&nearest) { format!("my-{nearest}") } else { nearest };
        let nearest = nearest.trim_end_matches('-').to_owned();
        return Err(ScaffoldError::BadName { name: name.to_owned(), nearest });
    }
    let fill = |text: &str| text.replace("{{name}}", name);
    let template = TEMPLATE.iter().map(|(path, text)| ((*path).to_owned(), fill(text)));
    let sdk = SDK.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    Ok(template.chain(sdk).collect())
}
