//! The shortest useful program: each line of a text to a worker process and back, in order; a crash costs one line.
//!
//! ```text
//! cargo run --example quickstart
//! ```

use seqpool::Pool;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Spawn first: before other threads, and while the process is small.
    let mut pool = Pool::builder()
        .workers(2)
        .handler("shout", |request, reply| {
            if request.body() == b"crash" {
                std::process::abort();
            }
            reply.extend_from_slice(&request.body().to_ascii_uppercase());
            Ok(())
        })
        .spawn()?;
    for outcome in pool.map("shout", ["one", "two", "crash", "four"]) {
        match outcome {
            seqpool::Outcome::Done(body) => println!("{}", String::from_utf8(body)?),
            other => println!("{other}"),
        }
    }
    Ok(())
}
