//! Members of `reuseport serve` that fail, and those that take their place.

use core::time::Duration;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use reuseport::{GroupError, Serve, Server};

use crate::output::{explain, report};

/// How soon it is tried again to replace a member.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Replaces members that an error has ended, until the server stops. Where none is left, and none
/// can be had, it sets `lost` and ends this process as SIGTERM does.
pub(crate) fn replace_failed<P: Serve>(
    server: &Server<P>,
    who: &str,
    wanted: usize,
    lost: &AtomicBool,
) {
    let mut timeout = Duration::MAX;
    let mut reported = None;
    loop {
        match server.wait_failed(timeout) {
            Some(failed) => {
                let error = failed
                    .error
                    .map_or(String::new(), |error| error.to_string());
                report(&format!("{who} {} has failed: {error}", failed.id));
                reported = None;
            }
            None if timeout == Duration::MAX => return,
            None => {}
        }
        timeout = Duration::MAX;
        while server.members().len() < wanted {
            match server.add() {
                Ok(new) => report(&format!("{who} {new} takes the place")),
                Err(GroupError::Stopped | GroupError::HandedOver) => return,
                Err(error) => {
                    let later = [GroupError::PredecessorLeaving, GroupError::HandingOver];
                    if !later.contains(&error) && reported.replace(error) != Some(error) {
                        report(&format!(
                            "no {who} can take the place: {}",
                            explain(&error, P::HAS_PAYLOAD)
                        ));
                    }
                    if !later.contains(&error) && server.members().is_empty() {
                        lost.store(true, Relaxed);
                        end();
                        return;
                    }
                    timeout = RETRY_INTERVAL;
                    break;
                }
            }
        }
    }
}

fn end() {
    let Ok(this) = process::id().try_into() else {
        return;
    };
    // SAFETY: takes two integers.
    unsafe { libc::kill(this, libc::SIGTERM) };
}
