//! The container engine by itself: what the lab's containers and images are held against.
//!
//! Its API is spoken over its socket in the plainest way, HTTP/1.0, a connection for each call. Images are saved and
//! loaded by its own command, as people do it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Version of the API: that of the oldest engine which the lab works with.
const API: &str = "v1.41";

/// An engine.
#[derive(Clone)]
pub struct Engine {
    socket: PathBuf,
}

impl Engine {
    /// Finds the engine of this machine.
    pub async fn find() -> Result<Engine> {
        let host = std::env::var("DOCKER_HOST").ok();
        let socket = host.as_deref().and_then(|host| host.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock");
        let engine = Engine { socket: socket.into() };
        engine.call("GET", "version", None).await.context("no container engine; `cargo xtask setup` starts one")?;
        Ok(engine)
    }

    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = UnixStream::connect(&self.socket).await?;
        let head = format!(
            "{method} /{API}/{path} HTTP/1.0\r\nHost: engine\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("an answer without an end")?;
        let status = String::from_utf8_lossy(&answer[..end]).split_whitespace().nth(1).unwrap_or_default().to_owned();
        let body = answer.split_off(end + 4);
        if !status.starts_with('2') {
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    }

    /// Makes a container with the limits that the lab sets by itself; returns its ID.
    pub async fn create(&self, image: &str, args: &[&str], log: &str) -> Result<String> {
        let body = json!({
            "Image": image,
            "Cmd": args,
            "User": "65534:65534",
            "HostConfig": {
                "Memory": 32 << 20,
                "MemorySwap": 32 << 20,
                "PidsLimit": 17,
                "NetworkMode": "none",
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges:true"],
                "ReadonlyRootfs": true,
                "LogConfig": { "Type": log },
            },
        });
        let answer: Value = serde_json::from_slice(&self.call("POST", "containers/create", Some(&body)).await?)?;
        Ok(answer["Id"].as_str().context("a container without an ID")?.to_owned())
    }

    /// Starts a container.
    pub async fn start(&self, id: &str) -> Result<()> {
        self.call("POST", &format!("containers/{id}/start"), None).await.map(drop)
    }

    /// Waits for the end of a container, which must be a good one.
    pub async fn wait(&self, id: &str) -> Result<()> {
        let answer: Value = serde_json::from_slice(&self.call("POST", &format!("containers/{id}/wait"), None).await?)?;
        anyhow::ensure!(answer["StatusCode"] == 0, "a container ended with {answer}");
        Ok(())
    }

    /// Removes a container, whatever it does.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.call("DELETE", &format!("containers/{id}?force=true"), None).await.map(drop)
    }

    /// Returns once no container of an execution is left; an error after a minute.
    pub async fn has_none_of(&self, execution: &str) -> Result<()> {
        let filter = format!("%7B%22label%22%3A%5B%22iptl.execution%3D{execution}%22%5D%7D");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left: Value = serde_json::from_slice(
                &self.call("GET", &format!("containers/json?all=true&filters={filter}"), None).await?,
            )?;
            match left.as_array().context("no list of containers")?.len() {
                0 => return Ok(()),
                count => anyhow::ensure!(Instant::now() < deadline, "{count} containers of the lab are left"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns what a container wrote to standard error.
    pub async fn errors(&self, id: &str) -> Result<String> {
        let mut rest = &self.call("GET", &format!("containers/{id}/logs?stderr=true"), None).await?[..];
        let mut text = String::new();
        // Each part has a header: its stream, three zeros, and its length.
        while let Some((header, after)) = rest.split_at_checked(8) {
            let length = u32::from_be_bytes(header[4..].try_into()?) as usize;
            let (part, after) = after.split_at_checked(length).context("a torn log")?;
            text.push_str(&String::from_utf8_lossy(part));
            rest = after;
        }
        Ok(text)
    }
}

/// Runs a line of the shell in a directory; returns what it says.
pub fn shell(dir: &Path, line: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", line]).current_dir(dir).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("`{line}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
