//! `--quarantine`: the pool hands out capsules, which become files here; trouble with that is told once.

use crate::Capsule;
use crate::cli::capsule::Quarantine;
use crate::cli::report::plain_error;
use std::sync::{Arc, Mutex, PoisonError};

/// What to tell the user, put there by the hook and taken by the loop. One thread has both sides, so that it never waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A hook for [`Builder::on_quarantine`](crate::Builder::on_quarantine).
pub(super) fn hook(quarantine: Quarantine) -> (impl FnMut(&Capsule<'_>) + Send + 'static, Trouble) {
    let trouble = Trouble::default();
    let told = trouble.clone();
    let mut is_told = false;
    let hook = move |capsule: &Capsule<'_>| {
        if let Err(error) = quarantine.write(capsule)
            && !std::mem::replace(&mut is_told, true)
        {
            let folder = quarantine.folder();
            let line = format!("--quarantine: {folder}: {}: capsules are missing, jobs go on", plain_error(&error));
            *told.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
        }
    };
    (hook, trouble)
}
