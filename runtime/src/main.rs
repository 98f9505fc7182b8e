//! `bpm`: trains, runs and plots plastic networks. All work is in the library.

use clap::Parser;
use runtime::cli::{Cli, Command};
use runtime::commands::{self, Voice};
use runtime::{Error, report};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    // A panic is our bug, and says so.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("this is a bug of bpm, not of your spec; please report it with the command and this text:");
        default(info);
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = if e.use_stderr() { 2 } else { 0 };
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    let voice = Voice { format: cli.message_format, quiet: cli.quiet };
    match run(&cli.command, voice) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            report::error(&e, voice.format);
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(command: &Command, voice: Voice) -> Result<(), Error> {
    match command {
        Command::Train(args) => {
            // Without a handler Ctrl-C ends the run at once; checkpoints are safe all the same.
            let _ = ctrlc::set_handler(|| {
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            });
            commands::train(args, voice, &STOP)
        }
        Command::Eval(args) => commands::evaluate(args, voice),
        Command::Sample(args) => commands::sample(args, voice),
        Command::Run(args) => commands::run(args, voice),
        Command::Bench(args) => commands::bench(args, voice),
        Command::Export(args) => commands::export(args, voice),
        Command::Plot(args) => commands::plot(args),
        Command::Compare(args) => commands::compare(args, voice),
        Command::Tasks => commands::tasks(),
    }
}
