//! The command line. Flags, files and messages live in [`jointwise::cli`]; the engine knows nothing of them.

fn main() -> std::process::ExitCode {
    jointwise::cli::run()
}
