//! The program `windlass`: arguments, runtime, dispatch, exit code.

use crate::cli::{Cli, Command};
use crate::context::{Context, Exit};
use crate::output::{Output, Style};
use crate::stop;
use crate::{command, output};
use clap::Parser;
use clap::error::{ContextKind, ErrorKind as Refusal};
use mover::{Error, ErrorKind, PointChange, Pool, Result, StopReason, VerifyReport, World};
use std::error::Error as _;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Runs the program.
pub fn run() -> ExitCode {
    if let Some(code) = proxy::helper_if_asked() {
        return code;
    }
    proxy::tune_allocator();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => return refused(&refusal),
    };
    log_to_stderr(cli.style);
    let out = Output::new(cli.style);
    let job = cli.command.job().is_some();
    // Few threads: the work is done by the pool; starting many would cost an increment more than they give.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            out.failure(&Error::internal("cannot start threads").because(error), job);
            return ErrorKind::Internal.exit_code().into();
        }
    };
    let code = runtime.block_on(end(out, cli.command, job));
    // What is left is idle; closing was awaited where it matters.
    runtime.shutdown_background();
    code.into()
}

async fn end(out: Output, command: Command, job: bool) -> u8 {
    let parts = || Ok((stop::listen()?, Pool::new(0)?));
    let (stop, pool) = match parts() {
        Ok(parts) => parts,
        Err(error) => {
            out.failure(&error, job);
            return error.kind().exit_code();
        }
    };
    let context = Context { out, stop, pool, world: World::system() };
    let ending = Ending::of(&command);
    let made = until_ended(&context, ending, dispatch(&context, command)).await;
    let made = made.and_then(|exit| context.out.finish().map(|()| exit));
    match made {
        Ok(exit) => exit as u8,
        Err(error) => {
            // A signal reaches the programs that serve the disks as well: what they failed with is only a consequence.
            let error = match context.stop.check() {
                Err(stopped) if error.kind() != ErrorKind::Cancelled => {
                    let remedy = error.remedy().map(str::to_owned);
                    let stopped = stopped.because(error);
                    remedy.into_iter().fold(stopped, Error::hint)
                }
                _ => error,
            };
            context.out.failure(&error, job);
            context.stop.reason().map_or(error.kind().exit_code(), StopReason::exit_code)
        }
    }
}

/// What a command does when a signal comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It only asks: it ends at once.
    AtOnce,
    /// It is told and may tidy up, for [`TIDY_TIMEOUT`]: what it leaves is what a kill would leave, and settled by the next.
    Soon,
    /// It is told, and ends when an image, a guest or a target is as it should be left.
    InOrder,
}

impl Ending {
    const fn of(command: &Command) -> Self {
        match command {
            Command::Points(_)
            | Command::Show(_)
            | Command::Diff(_)
            | Command::Stats(_)
            | Command::Doctor(_)
            | Command::Token(_)
            | Command::Proxy(_)
            | Command::Job(_)
            | Command::Completion(_)
            | Command::Man(_) => Self::AtOnce,
            Command::Backup(_) | Command::Tracking(_) => Self::InOrder,
            Command::Restore(arguments) if arguments.delta => Self::InOrder,
            _ => Self::Soon,
        }
    }
}

/// What becomes of `work`, which ends after a signal as `ending` says.
async fn until_ended(context: &Context, ending: Ending, work: impl Future<Output = Result<Exit>>) -> Result<Exit> {
    let patience = match ending {
        Ending::AtOnce => Duration::ZERO,
        Ending::Soon => TIDY_TIMEOUT,
        Ending::InOrder => return work.await,
    };
    let told = async {
        context.stop.asked().await;
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        biased;
        made = work => made,
        () = told => Err(context.stop.check().expect_err("it was asked to stop")),
    }
}

async fn dispatch(context: &Context, command: Command) -> Result<Exit> {
    match command {
        Command::Init(arguments) => command::init::run(context, &arguments).await,
        Command::Backup(arguments) => command::backup::run(context, &arguments).await,
        Command::Points(arguments) => command::points::run(context, &arguments).await,
        Command::Show(arguments) => command::show::run(context, &arguments).await,
        Command::Diff(arguments) => command::diff::run(context, &arguments).await,
        Command::Restore(arguments) => command::restore::run(context, &arguments).await,
        Command::Copy(arguments) => command::copy::run(context, &arguments).await,
        Command::Verify(arguments) => command::verify::run(context, &arguments).await,
        Command::Forget(arguments) => command::forget::run(context, &arguments).await,
        Command::Unforget(it) => command::change_points::run(context, &it.of, PointChange::Unforget).await,
        Command::Pin(it) => command::change_points::run(context, &it.of, PointChange::Pin).await,
        Command::Unpin(it) => command::change_points::run(context, &it.of, PointChange::Unpin).await,
        Command::Annotate(arguments) => command::annotate::run(context, &arguments).await,
        Command::Sweep(arguments) => command::sweep::run(context, &arguments).await,
        Command::Proxy(arguments) => command::proxy::run(context, &arguments.action).await,
        Command::Job(arguments) => command::job::run(context, &arguments.action).await,
        Command::Machine(arguments) => command::machine::run(context, &arguments.action).await,
        Command::Tracking(arguments) => command::tracking::run(context, &arguments.action).await,
        Command::Stats(arguments) => command::stats::run(context, &arguments).await,
        Command::RebuildIndex(arguments) => command::rebuild_index::run(context, &arguments).await,
        Command::Doctor(arguments) => command::doctor::run(context, &arguments).await,
        Command::Token(arguments) => command::token::run(context, &arguments.action).await,
        Command::Completion(arguments) => command::manual::completion(context, &arguments),
        Command::Man(arguments) => command::manual::pages(context, &arguments),
    }
}

/// Prints help, version, or in one line why the arguments are refused.
fn refused(refusal: &clap::Error) -> ExitCode {
    if matches!(refusal.kind(), Refusal::DisplayHelp | Refusal::DisplayVersion) {
        // A reader that went away is no failure.
        let _ = refusal.print();
        return ExitCode::SUCCESS;
    }
    if refusal.kind() == Refusal::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = refusal.print();
        return ErrorKind::Usage.exit_code().into();
    }
    let text = refusal.render().to_string();
    let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error:");
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let no_text = std::env::args_os().find(|argument| argument.to_str().is_none());
    let message =
        no_text.map_or(message, |it| format!("argument {it:?} is not valid UTF-8, and paths and names must be"));
    let suggested = refusal.get(ContextKind::SuggestedSubcommand).or(refusal.get(ContextKind::SuggestedArg));
    let said = refusal.source().and_then(|error| error.downcast_ref::<Error>()).and_then(Error::remedy);
    let hint = match (said, suggested) {
        (Some(said), _) => said.to_owned(),
        (None, Some(suggested)) => format!("did you mean {suggested}?"),
        (None, None) => {
            "`windlass --help` lists the commands, `windlass COMMAND --help` the options of a command".into()
        }
    };
    // The arguments could not be read, so this one is looked for by hand.
    let json = std::env::args_os().any(|argument| argument == "--json");
    let style = Style { json, ..Style::default() };
    output::Output::new(style).failure(&Error::usage(message).hint(hint), false);
    ErrorKind::Usage.exit_code().into()
}

fn log_to_stderr(style: Style) {
    // `verify` prints its findings itself.
    let without_findings = |level| format!("{level},{}=off", VerifyReport::LOG_TARGET);
    let level = match style.verbose {
        0 if style.quiet => without_findings("error"),
        0 => without_findings("warn"),
        1 => "info".into(),
        2 => "debug".into(),
        _ => "trace".into(),
    };
    let filter = EnvFilter::try_from_env("WINDLASS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = Output::new(style).colour();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
}

const RUNTIME_THREADS: usize = 2;
/// For a command to end after a signal.
const TIDY_TIMEOUT: Duration = Duration::from_millis(1500);
