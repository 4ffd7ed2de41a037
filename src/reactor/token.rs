//! Tokens: what stands for a registered descriptor, in 64 bits that fit an epoll event.

use std::fmt;

/// The index that marks the reactor's own descriptors. No user token has it: `limits::REACTOR_TOKENS_MAX` is smaller.
const INTERNAL: u32 = u32::MAX;

/// Event data of the doorbell.
pub(super) const DOORBELL: u64 = Token::new(INTERNAL, 0).to_data();
/// Event data of the timer descriptor.
pub(super) const TIMER: u64 = Token::new(INTERNAL, 1).to_data();

/// Stands for one registration of a descriptor: a place in the reactor, and which of its tenants is meant.
///
/// Places are reused, tokens are not: once a descriptor has been deregistered its token means nothing any more, and
/// every call with it is refused or ignored.
///
/// Shape: `generation:32 | index:32`, the data word of the epoll event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    pub(super) const fn new(index: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | index as u64)
    }

    pub(super) const fn from_data(data: u64) -> Self {
        Self(data)
    }

    pub(super) const fn to_data(self) -> u64 {
        self.0
    }

    /// The place: smaller than the largest number of descriptors ever registered at a time, so that it can index an
    /// array beside the reactor. A later token may have the same.
    pub const fn index(self) -> usize {
        self.0 as u32 as usize
    }

    /// Which tenant of the place. Wraps after 2³² registrations in one place.
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}#{})", self.index(), self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::REACTOR_TOKENS_MAX;

    #[test]
    fn packs_and_unpacks() {
        assert_eq!(size_of::<Token>(), 8);
        for (index, generation) in [(0, 1), (7, u32::MAX), (REACTOR_TOKENS_MAX as u32 - 1, 0x8000_0001)] {
            let token = Token::from_data(Token::new(index, generation).to_data());
            assert_eq!((token.index(), token.generation()), (index as usize, generation));
        }
    }

    #[test]
    fn no_user_token_can_be_an_internal_one() {
        assert_ne!(DOORBELL, TIMER);
        for data in [DOORBELL, TIMER] {
            assert!(Token::from_data(data).index() >= REACTOR_TOKENS_MAX);
        }
    }
}
