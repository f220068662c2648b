//! The command line of the tests in the VM. `cargo xtask test` and `cargo xtask demo` call it.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use guard_tests::harness::registry::{Profile, Selection, Suite};
use guard_tests::peers::own::Peer;
use guard_tests::{bench, catalogue, demo, harness, lab, native};

#[derive(Parser)]
#[command(
    name = "guard-tests",
    about = "Runs in the VM: use `cargo xtask test` and `cargo xtask demo`"
)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Run the selected tests, one after the other, in the order of their table
    Run {
        #[arg(long, value_enum)]
        suite: Suite,
        /// Only the tests that need this boot profile: those of another one cannot pass here
        #[arg(long, value_enum)]
        profile: Option<Profile>,
        /// Also the tests that are left out otherwise
        #[arg(long)]
        full: bool,
        /// Only print name and profile of each, separated by a tab
        #[arg(long)]
        list: bool,
        /// The names are whole
        #[arg(long)]
        exact: bool,
        /// Only the tests whose name contains one of these
        filters: Vec<String>,
    },
    /// The demonstration
    Demo,
    /// The demonstration on this machine, in namespaces that end with it
    Native,
    /// The benchmarks
    Bench {
        /// Only this part, which may be named more than once
        #[arg(long, value_enum, value_name = "PART")]
        only: Vec<bench::Part>,
    },
    /// Print the tables of `docs/BYPASSES.md`
    Bypasses,
    /// Real hosts for a person
    Host(harness::host::shell::Arguments),
    /// The fault lab
    Lab {
        #[arg(long)]
        seconds: u64,
        #[arg(long)]
        seed: u64,
        #[arg(long, value_name = "FAULT")]
        only: Vec<String>,
    },
    /// Helper processes of a test
    #[command(subcommand, hide = true)]
    Peer(Peer),
}

fn main() -> ExitCode {
    match Arguments::parse().action {
        Action::Run { suite, profile, full, list, exact, filters } => {
            let selection = Selection { suite, profile, full, filters, exact };
            if list { harness::run::list(&selection) } else { harness::run::all(&selection) }
        }
        Action::Demo => harness::run::report(demo::run()),
        Action::Native => harness::run::report(native::run()),
        Action::Bench { only } => harness::run::report(bench::run(&only)),
        Action::Bypasses => {
            print!("{}", catalogue::tables());
            ExitCode::SUCCESS
        }
        Action::Host(arguments) => harness::host::shell::run(&arguments).unwrap_or_else(|error| {
            eprintln!("guard-tests: {error:?}");
            ExitCode::FAILURE
        }),
        Action::Lab { seconds, seed, only } => {
            harness::run::report(lab::run(Duration::from_secs(seconds), seed, &only))
        }
        Action::Peer(peer) => peer.run(),
    }
}
