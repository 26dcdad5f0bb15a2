//! Programs that `mpirun` starts together.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::program::{Sandbox, take_signals};

/// Launcher of MPI: `mpirun`, or the one that `JOINTWISE_MPIRUN` names, such as MPICH's `mpirun.mpich`.
pub struct Launcher {
    program: String,
    /// MPICH's, or a relative's; otherwise Open MPI's.
    is_hydra: bool,
}

impl Launcher {
    /// Finds the launcher; without one the tests are skipped.
    pub fn find() -> Option<Self> {
        let program = std::env::var("JOINTWISE_MPIRUN").unwrap_or_else(|_| "mpirun".into());
        match Command::new(&program).arg("--version").output() {
            Ok(out) if out.status.success() => {
                Some(Self { program, is_hydra: String::from_utf8_lossy(&out.stdout).contains("HYDRA") })
            }
            _ => {
                eprintln!("skipped: {program} is not installed");
                None
            }
        }
    }
}

/// Tells whether MPI's launcher is there.
pub fn has_mpirun() -> bool {
    Launcher::find().is_some()
}

/// Ranks of a run with the same arguments.
pub struct Program<'a> {
    pub n: usize,
    /// Variables of their environment.
    pub variables: Vec<(&'static str, String)>,
    pub args: Vec<&'a str>,
}

/// Returns a program of one rank.
pub fn rank(args: Vec<&str>) -> Program<'_> {
    Program { n: 1, variables: Vec::new(), args }
}

/// Returns a program of several ranks.
pub fn ranks(n: usize, args: Vec<&str>) -> Program<'_> {
    Program { n, variables: Vec::new(), args }
}

/// Starts programs with MPI's launcher.
pub fn mpirun(sandbox: &Sandbox, programs: &[Program<'_>]) -> Command {
    let launcher = Launcher::find().expect("a launcher");
    let plain = sandbox.command(&[]);
    let mut command = Command::new(&launcher.program);
    if !launcher.is_hydra {
        command.args(["--allow-run-as-root", "--oversubscribe"]);
    }
    for (i, Program { n, variables, args }) in programs.iter().enumerate() {
        command.args((i > 0).then_some(":")).args(["-n", &n.to_string()]);
        for (name, value) in variables {
            match launcher.is_hydra {
                true => command.args(["-env", name, value]),
                false => command.args(["-x", &format!("{name}={value}")]),
            };
        }
        command.arg(plain.get_program()).args(args);
    }
    command.current_dir(sandbox.path("")).env("XDG_CACHE_HOME", sandbox.path("cache"));
    take_signals(&mut command);
    command
}

/// A run ends with this status and one message, which holds every part, within ten seconds of the message.
#[track_caller]
pub fn ends(mut command: Command, status: i32, parts: &[&str]) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mpirun starts");
    let (mut lines, mut said) = (Vec::new(), None);
    for line in BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok) {
        if line.starts_with("error:") {
            said.get_or_insert_with(Instant::now);
        }
        lines.push(line);
    }
    let ended = child.wait().expect("ended");
    let took = said.map(|said| said.elapsed());
    assert_eq!(ended.code(), Some(status), "{lines:#?}");
    let errors: Vec<&String> = lines.iter().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "{lines:#?}");
    parts.iter().for_each(|part| assert!(errors[0].contains(part), "`{part}` is not in {}", errors[0]));
    assert!(took.is_some_and(|took| took < Duration::from_secs(10)), "{took:?}");
}

/// Returns the fields that the kernel lists of a process after its name: its state and its parent come first.
#[cfg(target_os = "linux")]
pub fn stat(pid: libc::pid_t) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.into())
}

/// Tells whether a process has not ended. One that nobody has waited for yet has, where none of its threads is left, which hold its files.
#[cfg(target_os = "linux")]
pub fn is_running(pid: libc::pid_t) -> bool {
    let n_threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    n_threads > 1 || stat(pid).is_some_and(|stat| !stat.starts_with('Z'))
}

/// Returns the ranks that a launcher started, itself or through its helpers.
#[cfg(target_os = "linux")]
pub fn started_ranks(launcher: u32, program: &OsStr) -> Vec<libc::pid_t> {
    // The kernel keeps the beginning of a name.
    let name: String = Path::new(program).file_name().into_iter().flat_map(OsStr::to_str).collect();
    let name: String = name.chars().take(15).collect();
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let all: Vec<(libc::pid_t, u32)> = names
        .filter_map(|name| name.to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.split(' ').nth(1)?.parse().ok()?)))
        .collect();
    let descends = |pid: libc::pid_t| {
        let parent = |pid: &u32| all.iter().find(|(known, _)| *known as u32 == *pid).map(|(_, parent)| *parent);
        std::iter::successors(Some(pid as u32), parent).skip(1).any(|pid| pid == launcher)
    };
    let is_rank =
        |pid: libc::pid_t| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    let mut ranks: Vec<_> = all.iter().map(|(pid, _)| *pid).filter(|&pid| descends(pid) && is_rank(pid)).collect();
    ranks.sort_unstable();
    ranks
}

/// Sends a signal to one rank of a run with `n` ranks. Returns the processes of all ranks.
#[cfg(target_os = "linux")]
pub fn signal_rank(run: &Child, (rank, n): (usize, usize), signal: libc::c_int) -> Vec<libc::pid_t> {
    let program = Sandbox::new().command(&[]);
    let ranks = started_ranks(run.id(), program.get_program());
    assert_eq!(ranks.len(), n, "{ranks:?}");
    // SAFETY: a system call with two numbers: a process of this test's, which its parent has not waited for.
    assert_eq!(unsafe { libc::kill(ranks[rank], signal) }, 0);
    ranks
}

/// Kills a rank of a run, and waits until all ranks have ended, soon.
#[cfg(target_os = "linux")]
pub fn kill_rank(mut run: Child, rank: (usize, usize)) {
    let ranks = signal_rank(&run, rank, libc::SIGKILL);
    let killed = Instant::now();
    assert!(!run.wait().expect("ended").success());
    while ranks.iter().any(|&pid| is_running(pid)) {
        assert!(killed.elapsed() < Duration::from_secs(10), "a rank outlives the other");
        std::thread::sleep(Duration::from_millis(10));
    }
}
