//! A pool inside a tokio runtime, through `AsyncFd`.
//!
//! ```text
//! cargo run --example tokio_embed
//! ```
//!
//! The pool is spawned before the runtime: a runtime has threads, and a process with threads must not fork. tokio
//! watches descriptors edge-triggered; the pool's is made for that, as long as `Pool::poll` is called once for each
//! readiness that is cleared.

use seqpool::{Job, Outcome, Pool, Ticket};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
type Answer = Outcome<Vec<u8>>;

/// A job on its way to the task that owns the pool, and where its outcome is to go.
struct Call {
    body: Vec<u8>,
    answer: oneshot::Sender<Answer>,
}

/// What the other tasks hold.
#[derive(Clone)]
struct Client(mpsc::Sender<Call>);

impl Client {
    async fn call(&self, body: &[u8]) -> Result<Answer> {
        let (answer, outcome) = oneshot::channel();
        self.0.send(Call { body: body.to_vec(), answer }).await.map_err(|_| "the pool's task has ended")?;
        Ok(outcome.await?)
    }
}

/// Owns the pool: takes calls, and hands out outcomes whenever the pool's descriptor is readable.
async fn serve(pool: Pool, mut calls: mpsc::Receiver<Call>) -> Result<Pool> {
    let mut waiting: HashMap<Ticket, oneshot::Sender<Answer>> = HashMap::new();
    // SAFETY: the pool owns one epoll descriptor from its spawn to its drop, and gives out no other.
    let mut pool = unsafe { AsyncFd::register_with_interest(PoolFd(pool), Interest::READABLE) }?;
    loop {
        tokio::select! {
            call = calls.recv(), if waiting.len() < 1000 => {
                // Every client is gone, and nobody waits: else their outcomes come first.
                let Some(call) = call else { break };
                let ticket = pool.get_mut().0.submit(Job::new("fib", &call.body))?;
                waiting.insert(ticket, call.answer);
            }
            ready = pool.readable_mut() => {
                let mut ready = ready?;
                // Cleared first: what becomes ready while the pool is polled is a new edge.
                ready.clear_ready();
                ready.get_inner_mut().0.poll(Some(Duration::ZERO), |done, _| {
                    if let Some(answer) = waiting.remove(&done.ticket) {
                        // Whoever asked may have gone away.
                        let _ = answer.send(done.outcome.map(<[u8]>::to_vec));
                    }
                })?;
            }
        }
    }
    Ok(pool.into_inner().0)
}

/// `AsyncFd` asks for `AsRawFd`; the pool has the safe `AsFd`.
struct PoolFd(Pool);

impl std::os::fd::AsRawFd for PoolFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

fn main() -> Result<()> {
    let pool = Pool::builder()
        .workers(2)
        .handler("fib", |request, reply| {
            let n: u64 = std::str::from_utf8(request.body())?.parse()?;
            if n == 13 {
                std::process::abort();
            }
            reply.extend_from_slice(fib(n).to_string().as_bytes());
            Ok(())
        })
        .spawn()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pool = runtime.block_on(async {
        let (client, calls) = mpsc::channel(16);
        let client = Client(client);
        let work = async move {
            // Many at once; each awaits its own.
            let tasks: Vec<_> = (10..26u64)
                .map(|n| {
                    let client = client.clone();
                    tokio::spawn(async move {
                        let outcome = client.call(n.to_string().as_bytes()).await.map_err(|e| e.to_string());
                        (n, outcome)
                    })
                })
                .collect();
            drop(client);
            for task in tasks {
                match task.await {
                    Ok((n, Ok(Outcome::Done(body)))) => println!("fib({n}) = {}", String::from_utf8_lossy(&body)),
                    Ok((n, Ok(other))) => println!("fib({n}): {other}"),
                    Ok((n, Err(error))) => println!("fib({n}): {error}"),
                    Err(error) => println!("{error}"),
                }
            }
        };
        // The runtime's own timers go on beside it.
        let ticks = async {
            let mut ticks = 0u32;
            let mut interval = tokio::time::interval(Duration::from_millis(1));
            loop {
                interval.tick().await;
                ticks += 1;
                if ticks == 5 {
                    return ticks;
                }
            }
        };
        let (pool, (), ticks) = tokio::join!(serve(pool, calls), work, ticks);
        println!("{ticks} ticks meanwhile");
        pool
    })?;
    let stats = pool.stats();
    println!("{} jobs, {} done, {} crashed", stats.jobs, stats.done, stats.crashed);
    Ok(())
}
