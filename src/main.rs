//! The command line. The terminal lives in [`jointwise::cli`]; the engine knows nothing of it.

fn main() -> std::process::ExitCode {
    // Mesa's device-select layer asks a Wayland display for its order of devices. Where there is no session it prints "error:
    // XDG_RUNTIME_DIR is invalid" each time; we choose devices ourselves.
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread exists yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    jointwise::cli::run()
}
