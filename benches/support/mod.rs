//! What the benches share: how long they measure, and the pool that they measure.
#![allow(dead_code)]

use criterion::Criterion;
use seqpool::sys::thread_count;
use seqpool::{Outcome, Pool, TransportKind};
use std::time::Duration;

/// Short enough that a whole run takes a few minutes; `cargo bench` takes criterion's options for longer ones.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args()
}

/// A pool whose handler `upper` answers with the body in upper case, and whose workers have all said hello.
pub fn upper_pool(workers: usize, transport: TransportKind) -> Pool {
    assert_eq!(thread_count(), Ok(1), "criterion keeps no thread beside the benches");
    let pool = Pool::builder().workers(workers).transport(transport);
    let pool = pool.handler("upper", |request, reply| {
        let room = reply.extend_by(request.body().len());
        for (to, from) in room.iter_mut().zip(request.body()) {
            *to = from.to_ascii_uppercase();
        }
        Ok(())
    });
    let mut pool = pool.spawn().expect("a pool");
    assert!(pool.wait_ready(Duration::from_secs(60)).expect("a pool"), "all workers say hello");
    pool
}

/// Whether an outcome is this reply, byte for byte.
pub fn is_done<B: AsRef<[u8]>>(outcome: &Outcome<B>, reply: &[u8]) -> bool {
    matches!(outcome, Outcome::Done(body) if body.as_ref() == reply)
}
