//! The ring that is mapped twice, beside plain copies into a buffer of the same size.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqpool::frame::frame_size;
use seqpool::limits::RING_SIZE;
use seqpool::ring::{ByteRing, RingMemory};
use seqpool::sys::{Linux, Sharing, Sys};
use std::hint::black_box;
use std::os::fd::AsFd;

mod support;

const BODY_SIZES: [usize; 3] = [64, 1 << 10, 64 << 10];
/// How often the ring's size goes through it in one iteration.
const LAPS: usize = 4;

fn ring() -> ByteRing {
    let fd = Linux.memfd(c"bench", RING_SIZE).expect("memfd");
    let map = Linux.map_ring(fd.as_fd(), 0, RING_SIZE, Sharing::NotInherited).expect("map_ring");
    ByteRing::new(RingMemory::new(map, 0), 0)
}

fn rings(c: &mut Criterion) {
    for body_size in BODY_SIZES {
        let size = frame_size(body_size);
        let places = RING_SIZE / size;
        let count = LAPS * places;
        let frame: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let mut group = c.benchmark_group("ring");
        group.throughput(Throughput::Bytes((count * size) as u64));
        let mut ring = ring();
        group.bench_function(BenchmarkId::new("append and free", size), |b| {
            b.iter(|| {
                for _ in 0..count {
                    let at = ring.tail();
                    ring.append(size).expect("room").copy_from_slice(black_box(&frame));
                    assert_eq!(ring.bytes(at, size)[size - 1], frame[size - 1]);
                    ring.free_to(ring.tail());
                }
            });
            assert_eq!(ring.used(), 0);
        });
        // A job that is sent again is copied inside the ring: the frame before is freed when its copy stands.
        group.bench_function(BenchmarkId::new("append from itself", size), |b| {
            ring.append(size).expect("room").copy_from_slice(&frame);
            b.iter(|| {
                for _ in 0..count {
                    let from = ring.tail() - size as u64;
                    assert!(ring.append_from_self(black_box(from), size));
                    ring.free_to(from + size as u64);
                }
            });
            assert_eq!(ring.bytes(ring.tail() - size as u64, size), frame, "what has gone round is what it was");
            ring.free_to(ring.tail());
        });
        let mut plain = vec![0u8; places * size];
        group.bench_function(BenchmarkId::new("limit: copy", size), |b| {
            b.iter(|| {
                for _ in 0..LAPS {
                    for place in plain.chunks_exact_mut(size) {
                        place.copy_from_slice(black_box(&frame));
                        assert_eq!(black_box(&*place)[size - 1], frame[size - 1]);
                    }
                }
            });
        });
        let mut plain = vec![0u8; (places + 1) * size];
        group.bench_function(BenchmarkId::new("limit: copy within", size), |b| {
            b.iter(|| {
                plain[..size].copy_from_slice(&frame);
                for _ in 0..LAPS {
                    for from in (0..places * size).step_by(size) {
                        let (source, target) = plain[from..].split_at_mut(size);
                        target[..size].copy_from_slice(black_box(source));
                    }
                }
            });
            assert_eq!(plain[places * size..], frame);
        });
    }
}

criterion_group! { name = benches; config = support::criterion(); targets = rings }
criterion_main!(benches);
