//! How many jobs a second, and how long one takes, on this machine: 64-byte bodies, upper-cased by two workers.
//!
//! ```text
//! cargo run --release --example throughput
//! ```

use seqpool::{Job, Outcome, Pool, TransportKind};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (transport, jobs) in [(TransportKind::Seqpacket, 10_000_000u32), (TransportKind::Blocking, 100_000)] {
        let mut pool = Pool::builder()
            .workers(2)
            .transport(transport)
            .handler("upper", |request, reply| {
                let body = request.body();
                let room = reply.extend_by(body.len());
                for (to, from) in room.iter_mut().zip(body) {
                    *to = from.to_ascii_uppercase();
                }
                Ok(())
            })
            .spawn()?;
        let body = [b'a'; 64];

        let start = Instant::now();
        let mut right = 0;
        pool.for_each("upper", (0..jobs).map(|_| &body), |done, _| {
            right += u32::from(matches!(done.outcome, Outcome::Done(b) if b == [b'A'; 64]));
        })?;
        assert_eq!(right, jobs);
        let per_second = f64::from(jobs) / start.elapsed().as_secs_f64();

        let mut latencies = Vec::new();
        for _ in 0..20_000 {
            let start = Instant::now();
            pool.submit(Job::new("upper", &body))?;
            pool.poll(None, |_, _| {})?;
            latencies.push(start.elapsed());
        }
        latencies.sort_unstable();
        let (p50, p99) = (latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]);
        println!("{transport}: {per_second:.0} jobs/s in bulk; one at a time p50 {p50:.1?}, p99 {p99:.1?}");
    }
    Ok(())
}
