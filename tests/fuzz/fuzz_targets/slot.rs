//! A worker that writes whatever it likes over its slot: real processes, one hostile job each time.
//!
//! The input is a list of writes: where (four bytes), how many bytes (one), the bytes. After them the worker answers, dies or
//! hangs, by the last byte. What must hold: each job has one outcome; the host does not panic; what came after the hostile job
//! is not run twice; the next job is done. A pool is forked by a process of one thread, which libFuzzer has with `-rss_limit_mb=0`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seqpool::{Job, Outcome, Pool};
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

/// Jobs before and after the hostile one, which travel with it.
const COMPANY: u64 = 3;
const TIMEOUT: Duration = Duration::from_millis(20);
/// Deaths with a job next in line, and the start that is blamed.
const STARTS_MAX: u32 = seqpool::limits::CHARGES_MAX as u32 + 1;

/// How often each job of this input was started.
fn starts() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: zeroed, page-aligned, never unmapped, and of atomics only.
        unsafe { std::slice::from_raw_parts(base.cast(), 1024) }
    })
}

/// Where this worker's slot is mapped, and how large it is.
fn slot() -> (*mut u8, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let line = maps.lines().find(|line| line.contains("memfd:seqpool-slot")).expect("a worker maps its slot");
    let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
    let [from, to] = [from, to].map(|at| usize::from_str_radix(at, 16).expect("an address"));
    (std::ptr::with_exposed_provenance_mut(from), to - from)
}

fn scribble(mut script: &[u8]) {
    let (base, size) = slot();
    while let [a, b, c, d, len, rest @ ..] = script {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        // Half of the writes go to the control page, where the words are.
        let place = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let offset = if place & 1 == 0 { (place >> 1) % 512 } else { (place >> 1) % size };
        for (i, byte) in bytes.iter().enumerate().take_while(|(i, _)| offset + i < size) {
            // SAFETY: inside the mapping. That the host reads it meanwhile is what is looked at.
            unsafe { base.add(offset + i).write_volatile(*byte) };
        }
        script = rest;
    }
}

fn pool() -> Pool {
    starts();
    Pool::builder()
        .workers(1)
        .timeout(TIMEOUT)
        .handler("honest", |request, reply| {
            starts()[usize::from(request.body()[0])].fetch_add(1, SeqCst);
            reply.extend_from_slice(request.body());
            Ok(())
        })
        .handler("hostile", |request, reply| {
            starts()[usize::from(request.body()[0])].fetch_add(1, SeqCst);
            scribble(&request.body()[1..]);
            match request.body().last().map_or(0, |last| last % 8) {
                0 => std::process::abort(),
                1 => std::thread::sleep(Duration::from_secs(1000)),
                _ => reply.extend_from_slice(&request.body()[..1]),
            }
            Ok(())
        })
        .spawn()
        .expect("a pool")
}

thread_local! {
    static POOL: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

fuzz_target!(|script: &[u8]| {
    POOL.with_borrow_mut(|place| {
        let pool = place.get_or_insert_with(pool);
        starts().iter().for_each(|count| count.store(0, SeqCst));
        let hostile = [&[COMPANY as u8], script].concat();
        let mut ends = [false; 2 * COMPANY as usize + 2];
        for tag in 0..=2 * COMPANY {
            let (handler, body) = if tag == COMPANY { ("hostile", &hostile[..]) } else { ("honest", &[tag as u8][..]) };
            pool.submit(Job::new(handler, body).tag(tag)).expect("room");
        }
        let mut last_done = false;
        let mut take = |pool: &mut Pool, last: bool| {
            while pool.outstanding() > 0 {
                let polled = pool.poll(Some(Duration::from_secs(10)), |completion, _| {
                    let tag = completion.tag as usize;
                    assert!(!std::mem::replace(&mut ends[tag], true), "job {tag} has a second outcome");
                    // A claim word that is set back says that what runs has not begun; the third death ends that.
                    let most = if tag <= COMPANY as usize { STARTS_MAX } else { 1 };
                    assert!(starts()[tag].load(SeqCst) <= most, "job {tag} was run again");
                    last_done |= last && matches!(completion.outcome, Outcome::Done([7]));
                });
                polled.expect("poll");
            }
        };
        take(pool, false);
        // Whatever it was, the slot is filled again.
        pool.submit(Job::new("honest", &[2 * COMPANY as u8 + 1]).tag(2 * COMPANY + 1)).expect("room");
        take(pool, true);
        assert!(ends.iter().all(|end| *end) && last_done, "{ends:?}");
    });
});
