//! The `seqpool` command: see `seqpool --help` and [`seqpool::cli`].

fn main() -> std::process::ExitCode {
    seqpool::cli::main()
}
