//! Programs that `mpirun` starts together.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::program::{Sandbox, take_signals};

/// Tells whether MPI's launcher is there; without it the tests are skipped.
pub fn has_mpirun() -> bool {
    let is_there = Command::new("mpirun").arg("--version").output().is_ok_and(|out| out.status.success());
    if !is_there {
        eprintln!("skipped: mpirun is not installed");
    }
    is_there
}

/// Ranks of a run with the same arguments.
pub struct Program<'a> {
    pub n: usize,
    /// A variable of their environment.
    pub variable: Option<String>,
    pub args: Vec<&'a str>,
}

/// Returns a program of one rank.
pub fn rank(args: Vec<&str>) -> Program<'_> {
    Program { n: 1, variable: None, args }
}

/// Starts programs with `mpirun`.
pub fn mpirun(sandbox: &Sandbox, programs: &[Program<'_>]) -> Command {
    let plain = sandbox.command(&[]);
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe"]);
    for (i, Program { n, variable, args }) in programs.iter().enumerate() {
        command.args((i > 0).then_some(":")).args(["-n", &n.to_string()]);
        command.args(variable.iter().flat_map(|variable| ["-x", variable]));
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

/// Tells whether a process has not ended. One that nobody has waited for yet has.
#[cfg(target_os = "linux")]
pub fn is_running(pid: libc::pid_t) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with('Z'))
}

/// The processes that another one started.
#[cfg(target_os = "linux")]
pub fn children(parent: u32) -> Vec<libc::pid_t> {
    let parent_of = |pid| stat(pid)?.split(' ').nth(1)?.parse::<u32>().ok();
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse().ok());
    pids.filter(|&pid| parent_of(pid) == Some(parent)).collect()
}

/// Sends a signal to one rank of a run with `n` ranks. Returns the processes of all ranks.
#[cfg(target_os = "linux")]
pub fn signal_rank(run: &Child, (rank, n): (usize, usize), signal: libc::c_int) -> Vec<libc::pid_t> {
    let mut ranks = children(run.id());
    ranks.sort_unstable();
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
