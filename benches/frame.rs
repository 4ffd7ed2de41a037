//! The frame codec beside a plain copy of the same bytes and beside a naive walk that checks nothing.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqpool::frame::{Frames, Header, Headers, Kind, encode, frame_size, push_header};
use seqpool::limits::{FRAME_ALIGN, FRAME_HEADER_SIZE, PACKET_SIZE_MAX};
use std::hint::black_box;

mod support;

const BODY_SIZES: [usize; 3] = [64, 1 << 10, 64 << 10];
const HEADER_LINES: usize = 16;

fn header(id: u64) -> Header {
    Header { payload_size: 0, header_block_size: 0, kind: Kind::Job, flags: 0, id, code: 1, extra: 0 }
}

fn encode_all(packet: &mut [u8], body: &[u8]) {
    for (room, id) in packet.chunks_exact_mut(frame_size(body.len())).zip(0..) {
        encode(room, header(id), &[], body);
    }
}

/// As many frames as fit the largest packet.
fn packet(body_size: usize) -> (Vec<u8>, usize) {
    let frames = PACKET_SIZE_MAX / frame_size(body_size);
    let mut packet = vec![0; frames * frame_size(body_size)];
    encode_all(&mut packet, &vec![b'x'; body_size]);
    (packet, frames)
}

/// What decoding is about: every frame is found, and its ends are looked at.
fn decode_all(packet: &[u8]) -> (usize, usize) {
    let (mut frames, mut sum) = (0, 0);
    for frame in Frames::new(packet) {
        let body = frame.expect("what was encoded").body();
        frames += 1;
        sum += body.len() + usize::from(body[0]) + usize::from(body[body.len() - 1]);
    }
    (frames, sum)
}

/// The same by trusting every size.
fn walk(packet: &[u8]) -> (usize, usize) {
    let (mut frames, mut sum, mut at) = (0, 0, 0);
    while at < packet.len() {
        let size = u32::from_le_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]) as usize;
        let body = &packet[at + FRAME_HEADER_SIZE..][..size];
        frames += 1;
        sum += size + usize::from(body[0]) + usize::from(body[size - 1]);
        at += (FRAME_HEADER_SIZE + size).next_multiple_of(FRAME_ALIGN);
    }
    (frames, sum)
}

fn codec(c: &mut Criterion) {
    for body_size in BODY_SIZES {
        let (packet, frames) = packet(body_size);
        let expected = (frames, frames * (body_size + 2 * usize::from(b'x')));
        assert_eq!((decode_all(&packet), walk(&packet)), (expected, expected));
        let mut group = c.benchmark_group("frame");
        group.throughput(Throughput::Bytes(packet.len() as u64));
        let mut target = vec![0; packet.len()];
        let body = vec![b'x'; body_size];
        group.bench_function(BenchmarkId::new("encode", body_size), |b| {
            b.iter(|| encode_all(black_box(&mut target), black_box(&body)));
            assert_eq!(target, packet);
        });
        target.fill(0);
        group.bench_function(BenchmarkId::new("limit: copy", body_size), |b| {
            b.iter(|| black_box(&mut target).copy_from_slice(black_box(&packet)));
            assert_eq!(target, packet);
        });
        group.bench_function(BenchmarkId::new("decode", body_size), |b| {
            b.iter(|| assert_eq!(decode_all(black_box(&packet)), expected));
        });
        group.bench_function(BenchmarkId::new("naive: unchecked walk", body_size), |b| {
            b.iter(|| assert_eq!(walk(black_box(&packet)), expected));
        });
    }
}

/// Finding the last of a job's header lines.
fn headers(c: &mut Criterion) {
    let mut block = Vec::new();
    for line in 0..HEADER_LINES {
        push_header(&mut block, format!("key-{line}").as_bytes(), &[b'v'; 40]).expect("a plain line");
    }
    let key = format!("key-{}", HEADER_LINES - 1);
    let mut group = c.benchmark_group("header scan");
    group.throughput(Throughput::Bytes(block.len() as u64));
    group.bench_function("Headers::get", |b| {
        b.iter(|| assert_eq!(Headers::from_block(black_box(&block)).get(black_box(&key)), Some(&[b'v'; 40][..])));
    });
    let naive = |block: &[u8], key: &str| {
        block.split(|&b| b == b'\n').find_map(|line| {
            let colon = line.iter().position(|&b| b == b':')?;
            (line[..colon] == *key.as_bytes()).then_some(line.len() - colon - 1)
        })
    };
    group.bench_function("naive: byte by byte", |b| {
        b.iter(|| assert_eq!(naive(black_box(&block), black_box(&key)), Some(40)));
    });
    let mut target = vec![0; block.len()];
    group.bench_function("limit: copy", |b| {
        b.iter(|| black_box(&mut target).copy_from_slice(black_box(&block)));
        assert_eq!(target, block);
    });
}

criterion_group! { name = benches; config = support::criterion(); targets = codec, headers }
criterion_main!(benches);
