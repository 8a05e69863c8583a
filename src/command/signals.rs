//! What signals do. No signal ends the server with calls in flight, except a second one of those
//! that stop it.

use featurestore::{
    access::reload::AskReload,
    telemetry::{Lines, say},
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// SIGTERM, SIGINT and SIGQUIT start the drain; a second one ends the process at once. At SIGHUP
/// the files of tokens and certificates are read again. SIGUSR1 and SIGUSR2 do nothing; without a
/// handler they would end the process.
pub(super) fn handle(shutdown: &CancellationToken, reload: AskReload, log: Lines) -> std::io::Result<()> {
    let [mut terminate, mut interrupt, mut quit] = stopping()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let [mut one, mut two] = [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?];
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP: files of tokens and certificates are read again, if configured");
                    reload.ask();
                    continue;
                }
                _ = one.recv() => {
                    tracing::info!("SIGUSR1 was received: this server does nothing at this signal");
                    continue;
                }
                _ = two.recv() => {
                    tracing::info!("SIGUSR2 was received: this server does nothing at this signal");
                    continue;
                }
            }
            if shutdown.is_cancelled() {
                log.flush();
                say("featurestore: a second signal was received: the process ends at once, calls in flight are lost");
                std::process::exit(130);
            }
            shutdown.cancel();
        }
    });
    Ok(())
}

fn stopping() -> std::io::Result<[Signal; 3]> {
    Ok([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::quit())?])
}
