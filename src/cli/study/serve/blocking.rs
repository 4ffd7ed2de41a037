//! The original's first algorithm: accept, read all, write all, close; every call blocks.

use super::{Desk, State};
use crate::cli::study::message::Broken;
use crate::sys::{Sys, Wait};
use std::os::fd::{AsFd, OwnedFd};

pub(super) fn serve(desk: &mut Desk<'_>, listener: &OwnedFd) -> Result<(), Broken> {
    while !desk.is_over() {
        let start_ns = desk.now_ns();
        let socket = desk.sys.accept(listener.as_fd())?.ok_or(Broken::Rule("a blocking accept did not block"))?;
        desk.blocked(start_ns)?;
        let mut exchange = desk.open(socket)?;
        while exchange.state != State::Over {
            desk.step(&mut exchange, Wait::UntilReady)?;
        }
        desk.close(exchange);
    }
    Ok(())
}
