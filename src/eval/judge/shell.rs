//! Command line run by the system's shell. The shell is ended together with all processes that it started.

use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Interval at which the command is polled for its end.
const TICK: Duration = Duration::from_millis(5);

/// Running command, with pipes for its input and outputs.
pub(super) struct RunningCommand {
    pub child: Child,
    #[cfg(windows)]
    job: Option<job::Job>,
}

/// Starts a command line.
///
/// # Errors
/// Errors of the system, for example where there is no shell.
pub(super) fn start(command: &str) -> io::Result<RunningCommand> {
    let mut shell = shell(command);
    let child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    Ok(RunningCommand {
        // Processes that the shell starts before it is added to the job are not in the job; this takes only some µs. A shell that has
        // already ended gets no job.
        #[cfg(windows)]
        job: job::Job::holding(&child).ok(),
        child,
    })
}

impl RunningCommand {
    /// Waits for the shell; `None` where it exceeds the time limit.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let until = Instant::now() + timeout;
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(Some(status)),
                None if Instant::now() >= until => return Ok(None),
                None => std::thread::sleep(TICK),
            }
        }
    }

    /// Ends the shell and all processes that it left running, which hold the pipes.
    #[cfg(unix)]
    pub fn end(&mut self) {
        if let Ok(group) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: a system call with numbers as arguments. The group is that of this program's child; where it is empty, the call does
            // nothing.
            unsafe { libc::killpg(group, libc::SIGKILL) };
        }
        let _ = self.child.wait();
    }

    /// Ends the shell and all processes that it left running, which hold the pipes.
    #[cfg(not(unix))]
    pub fn end(&mut self) {
        #[cfg(windows)]
        drop(self.job.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
fn shell(command: &str) -> Command {
    use std::os::unix::process::CommandExt;
    let mut shell = Command::new("sh");
    // The command gets its own process group: Ctrl-C goes to this program only, and the whole group can be ended.
    shell.args(["-c", command]).process_group(0);
    shell
}

#[cfg(windows)]
fn shell(command: &str) -> Command {
    use std::os::windows::process::CommandExt;
    use windows_sys::Win32::System::Threading::CREATE_NEW_PROCESS_GROUP;
    let mut shell = Command::new("cmd");
    // The command line is passed as typed: cmd does not understand \" inside quotes, and with /S removes only the outer two. /D skips the
    // registry's start-up commands. The command gets its own process group: Ctrl-C goes to this program only.
    shell.args(["/D", "/S", "/C"]).raw_arg(format!("\"{command}\"")).creation_flags(CREATE_NEW_PROCESS_GROUP);
    shell
}

#[cfg(not(any(unix, windows)))]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    shell
}

#[cfg(windows)]
mod job {
    //! Windows job, which ends all its processes when it is closed.

    use std::io;
    use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
    use std::process::Child;

    use windows_sys::Win32::System::JobObjects::{
        AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
        JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation, SetInformationJobObject,
    };

    /// Only handle to a job. Dropping it ends all processes in the job.
    pub struct Job {
        _handle: OwnedHandle,
    }

    impl Job {
        /// Creates a job with a process, and with the processes that it starts from now on.
        pub fn holding(child: &Child) -> io::Result<Self> {
            let told = |worked: bool| if worked { Ok(()) } else { Err(io::Error::last_os_error()) };
            let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
            limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
            // SAFETY: the handle is checked before it is owned, once; the limits have the size that is passed, and are copied; the child's
            // handle lives as long as the child.
            unsafe {
                let raw = CreateJobObjectW(std::ptr::null(), std::ptr::null());
                told(!raw.is_null())?;
                let job = Self { _handle: OwnedHandle::from_raw_handle(raw) };
                let bytes = size_of_val(&limits) as u32;
                let limits = std::ptr::from_ref(&limits).cast();
                told(SetInformationJobObject(raw, JobObjectExtendedLimitInformation, limits, bytes) != 0)?;
                told(AssignProcessToJobObject(raw, child.as_raw_handle()) != 0)?;
                Ok(job)
            }
        }
    }
}

/// Describes how a failed command ended.
pub(super) fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("was killed by signal {signal}");
    }
    match status.code() {
        // A shell reports in this way that its command was killed.
        Some(code @ 129..=192) if cfg!(unix) => format!("was killed by signal {}", code - 128),
        // Windows ends a crashing program with an NTSTATUS.
        Some(code) if code < 0 => format!("crashed with status {code:#x}"),
        Some(code) => format!("ended with status {code}"),
        None => "ended".into(),
    }
}
