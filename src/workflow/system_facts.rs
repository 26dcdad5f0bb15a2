//! Facts about the program and the system that it runs on.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// Returns the program's version, commit and file, and the system's name, processor and memory.
pub fn program_and_system() -> Vec<(String, String)> {
    let program = std::env::current_exe().ok();
    let all = [
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("commit", commit(program.as_deref())),
        ("program", program.as_deref().and_then(program_file).unwrap_or("unknown file".into())),
        ("system", system()),
        ("architecture", std::env::consts::ARCH.into()),
        ("processor", processor()),
        ("memory", memory().unwrap_or("unknown".into())),
    ];
    all.map(|(name, value)| (name.into(), value)).into()
}

/// Returns the commit that the build was given, else the one of the checkout that the program lies in.
fn commit(program: Option<&Path>) -> String {
    if let Some(commit) = option_env!("JOINTWISE_COMMIT") {
        return commit.into();
    }
    let checkout = program.and_then(|p| p.ancestors().find(|folder| folder.join(".git").exists()));
    let head = checkout.filter(|folder| folder.join("src/kernels/mod.rs").exists()).and_then(head_commit);
    head.map_or("unknown".into(), |head| format!("{head} is checked out where the program lies"))
}

/// Reads the commit that a checkout's HEAD names.
fn head_commit(checkout: &Path) -> Option<String> {
    let text = |path: PathBuf| std::fs::read_to_string(path).ok().map(|text| text.trim().to_string());
    let dot_git = checkout.join(".git");
    // In a work tree, .git is a file that names a folder.
    let git = match text(dot_git.clone()) {
        Some(line) => checkout.join(line.strip_prefix("gitdir: ")?),
        None => dot_git,
    };
    let head = text(git.join("HEAD"))?;
    let Some(name) = head.strip_prefix("ref: ") else { return Some(head) };
    let common = text(git.join("commondir")).map_or(git.clone(), |folder| git.join(folder));
    let packed = || {
        let all = text(common.join("packed-refs"))?;
        all.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix(' ').map(String::from))
    };
    text(git.join(name)).or_else(|| text(common.join(name))).or_else(packed)
}

/// Returns a file's size and the start of its SHA-256.
fn program_file(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let mut hash = Sha256::new();
    let (mut n_bytes, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).ok()?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        n_bytes += n;
    }
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{n_bytes} bytes, SHA-256 {digest}…"))
}

fn system() -> String {
    let first_line = |program: &str, arguments: &[&str]| {
        let printed = Command::new(program).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&printed.stdout).trim().to_string();
        (!text.is_empty()).then_some(text)
    };
    let named = match std::env::consts::OS {
        "linux" => {
            let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
            let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            Some(format!("{}, kernel {}", field(&release, "PRETTY_NAME=").unwrap_or("unnamed"), kernel.trim()))
        }
        "macos" => first_line("sw_vers", &["-productVersion"]),
        "windows" => first_line("cmd", &["/C", "ver"]),
        _ => None,
    };
    named.map_or(std::env::consts::OS.into(), |name| format!("{} {name}", std::env::consts::OS))
}

/// Returns the value of the first line that begins with `name`, without quotes.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().trim_matches('"'))
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = field(&info, "model name").map(|value| value.trim_start_matches([':', ' ', '\t']));
    let cores = std::thread::available_parallelism().map_or("unknown".into(), |n| n.to_string());
    format!("{}, {cores} threads", name.unwrap_or("unnamed"))
}

/// Returns the system's memory in GiB, and how much of it is free, where Linux reports it.
fn memory() -> Option<String> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let gib = |name: &str| {
        let kib: f64 = field(&info, name)?.split(' ').next()?.parse().ok()?;
        Some(kib / f64::from(1 << 20))
    };
    Some(format!("{:.1} GiB, {:.1} GiB available", gib("MemTotal:")?, gib("MemAvailable:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_read_from_a_checkout_and_from_a_work_tree() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(head_commit(dir.path()), None);
        write(".git/HEAD", "ref: refs/heads/main\n");
        assert_eq!(head_commit(dir.path()), None, "no commit yet");
        write(".git/packed-refs", "# pack-refs\n0a0a refs/heads/other\n1b1b refs/heads/main\n");
        assert_eq!(head_commit(dir.path()).as_deref(), Some("1b1b"));
        write(".git/refs/heads/main", "2c2c\n");
        assert_eq!(head_commit(dir.path()).as_deref(), Some("2c2c"));
        write(".git/HEAD", "3d3d\n");
        assert_eq!(head_commit(dir.path()).as_deref(), Some("3d3d"));
        write("tree/.git", "gitdir: ../.git/worktrees/tree\n");
        write(".git/worktrees/tree/HEAD", "ref: refs/heads/main\n");
        write(".git/worktrees/tree/commondir", "../..\n");
        assert_eq!(head_commit(&dir.path().join("tree")).as_deref(), Some("2c2c"));
    }

    #[test]
    fn files_of_the_system_are_read() {
        assert_eq!(field("ID=debian\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME="), Some("Debian 12"));
        assert_eq!(field("a", "b"), None);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(program_file(&file).as_deref(), Some("3 bytes, SHA-256 ba7816bf8f01cfea…"));
        assert!(program_and_system().iter().all(|(_, value)| !value.is_empty()));
    }
}
