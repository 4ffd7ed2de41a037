//! The codec against a naive one: other code, byte by byte, that must come to the same frames and the same errors.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// What the naive decoder makes of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plain {
    kind: u8,
    flags: u8,
    id: u64,
    code: u32,
    extra: u32,
    block: Vec<u8>,
    body: Vec<u8>,
}

fn little_endian(bytes: &[u8], at: usize, count: usize) -> u64 {
    (0..count).map(|i| u64::from(bytes[at + i]) * 256u64.pow(i as u32)).sum()
}

/// The frames before the first error, and that error.
fn decode_naively(packet: &[u8]) -> (Vec<Plain>, Option<FrameError>) {
    let (mut frames, mut at) = (Vec::new(), 0);
    while at < packet.len() {
        let left = packet.len() - at;
        if left < 24 {
            return (frames, Some(FrameError::ShortHeader));
        }
        let payload_size = little_endian(packet, at, 4);
        let block_size = little_endian(packet, at + 4, 2);
        let (kind, flags) = (packet[at + 6], packet[at + 7]);
        if !(1..=3).contains(&kind) {
            return (frames, Some(FrameError::UnknownKind(kind)));
        }
        if flags > 15 {
            return (frames, Some(FrameError::UnknownFlags(flags)));
        }
        if block_size > payload_size {
            return (frames, Some(FrameError::BadHeaderBlock));
        }
        let mut end = 24 + payload_size;
        end += (8 - end % 8) % 8;
        if end > left as u64 {
            return (frames, Some(FrameError::PayloadBeyondPacket));
        }
        let payload_end = at + 24 + payload_size as usize;
        let end = at + end as usize;
        if packet[payload_end..end].iter().any(|&padding| padding > 0) {
            return (frames, Some(FrameError::DirtyPadding));
        }
        let body_start = at + 24 + block_size as usize;
        frames.push(Plain {
            kind,
            flags,
            id: little_endian(packet, at + 8, 8),
            code: little_endian(packet, at + 16, 4) as u32,
            extra: little_endian(packet, at + 20, 4) as u32,
            block: packet[at + 24..body_start].to_vec(),
            body: packet[body_start..payload_end].to_vec(),
        });
        at = end;
    }
    (frames, None)
}

fn plain(frame: &Frame<'_>) -> Plain {
    let Header { kind, flags, id, code, extra, .. } = frame.header;
    let block = frame.headers().as_block().to_vec();
    Plain { kind: kind as u8, flags, id, code, extra, block, body: frame.body().to_vec() }
}

fn decode(packet: &[u8]) -> (Vec<Plain>, Option<FrameError>) {
    let mut found = (Vec::new(), None);
    for frame in Frames::new(packet) {
        assert_eq!(found.1, None, "an error is the last item");
        match frame {
            Ok(frame) => found.0.push(plain(&frame)),
            Err(error) => found.1 = Some(error),
        }
    }
    found
}

fn encode_plain(out: &mut Vec<u8>, frame: &Plain) {
    let kind = [Kind::Job, Kind::Result, Kind::Hello][usize::from(frame.kind) - 1];
    let Plain { flags, id, code, extra, .. } = *frame;
    let header = Header { payload_size: 1, header_block_size: 2, kind, flags, id, code, extra };
    let start = out.len();
    // Old contents must not shine through.
    out.resize(start + frame_size(frame.block.len() + frame.body.len()), 0xaa);
    encode(&mut out[start..], header, &frame.block, &frame.body);
}

fn any_plain() -> impl Strategy<Value = Plain> {
    let number = || prop_oneof![Just(0), Just(u32::MAX), any::<u32>()];
    (1u8..=3, 0u8..=15, any::<u64>(), number(), number(), vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..50))
        .prop_map(|(kind, flags, id, code, extra, block, body)| Plain { kind, flags, id, code, extra, block, body })
}

proptest! {
    /// Whatever was printed is found again, and nonsense is never read beyond its end.
    #[test]
    fn printed_bytes_come_back(cut: u64, bytes in vec(any::<u8>(), 0..50), rest in vec(any::<u8>(), 0..50), keep: u8) {
        let mut body = Vec::new();
        push_printed(&mut body, cut, &bytes);
        let prefix = body.len();
        body.extend_from_slice(&rest);
        prop_assert_eq!(split_printed(&body), Some((cut, &bytes[..], &rest[..])));
        let keep = usize::from(keep) % prefix;
        prop_assert_eq!(split_printed(&body[..keep]), None);
    }
}

fn any_packet() -> impl Strategy<Value = (Vec<Plain>, Vec<u8>)> {
    vec(any_plain(), 0..6).prop_map(|frames| {
        let mut packet = Vec::new();
        frames.iter().for_each(|frame| encode_plain(&mut packet, frame));
        (frames, packet)
    })
}

/// Damage: at a place (modulo the length), what to do.
#[derive(Clone, Debug)]
enum Damage {
    Set(u8),
    Flip(u8),
    Insert(u8),
    Remove,
    Cut,
}

fn any_damage() -> impl Strategy<Value = (usize, Damage)> {
    // Half of it in the first header, where most bytes mean something.
    let place = prop_oneof![0usize..32, any::<usize>()];
    let damage = prop_oneof![
        any::<u8>().prop_map(Damage::Set),
        (0u8..8).prop_map(Damage::Flip),
        any::<u8>().prop_map(Damage::Insert),
        Just(Damage::Remove),
        Just(Damage::Cut),
    ];
    (place, damage)
}

fn damage(packet: &mut Vec<u8>, place: usize, what: &Damage) {
    if packet.is_empty() {
        return;
    }
    let at = place % packet.len();
    match *what {
        Damage::Set(byte) => packet[at] = byte,
        Damage::Flip(bit) => packet[at] ^= 1 << bit,
        Damage::Insert(byte) => packet.insert(at, byte),
        Damage::Remove => drop(packet.remove(at)),
        Damage::Cut => packet.truncate(at),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_survive_the_trip((frames, packet) in any_packet()) {
        prop_assert_eq!(packet.len() % FRAME_ALIGN, 0);
        prop_assert_eq!(decode(&packet), (frames.clone(), None));
        prop_assert_eq!(decode_naively(&packet), (frames, None));
    }

    #[test]
    fn damaged_packets_decode_as_a_naive_decoder_would(
        (_, mut packet) in any_packet(),
        damages in vec(any_damage(), 1..4),
    ) {
        damages.iter().for_each(|(place, what)| damage(&mut packet, *place, what));
        prop_assert_eq!(decode(&packet), decode_naively(&packet));
    }

    #[test]
    fn arbitrary_bytes_decode_as_a_naive_decoder_would(
        mut packet in vec(any::<u8>(), 0..200),
        // Some headers that are right as far as they go, or nothing would come past the first check.
        sizes in vec((0usize..25, 0u32..40, 0u16..10), 0..8),
    ) {
        for (at, payload_size, block_size) in sizes {
            if let Some(header) = packet.get_mut(at * 8..at * 8 + 8) {
                header[..4].copy_from_slice(&payload_size.to_le_bytes());
                header[4..6].copy_from_slice(&block_size.to_le_bytes());
                header[6] = header[6] % 3 + 1;
                header[7] %= 16;
            }
        }
        prop_assert_eq!(decode(&packet), decode_naively(&packet));
    }

    #[test]
    fn a_new_id_changes_nothing_else((frames, mut packet) in any_packet(), id: u64) {
        prop_assume!(!frames.is_empty());
        set_id(&mut packet, id);
        let mut expected = frames;
        expected[0].id = id;
        prop_assert_eq!(decode(&packet), (expected, None));
    }

    #[test]
    fn a_header_survives_the_trip(bytes in any::<[u8; FRAME_HEADER_SIZE]>()) {
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn header_lines_are_read_as_naively(block in vec(prop_oneof![Just(b':'), Just(b'\n'), b'a'..b'd'], 0..40)) {
        let mut lines: Vec<&[u8]> = block.split(|&b| b == b'\n').collect();
        // What follows the last newline is no line when it is empty.
        if lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        let split = |line: &'_ [u8]| match line.iter().position(|&b| b == b':') {
            Some(colon) => (line[..colon].to_vec(), line[colon + 1..].to_vec()),
            None => (line.to_vec(), Vec::new()),
        };
        let naive: Vec<_> = lines.into_iter().map(split).collect();
        let headers = Headers::from_block(&block);
        let read: Vec<_> = headers.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        prop_assert_eq!(&read, &naive);
        for key in ["", "a", "ab", "c"] {
            let first = naive.iter().find(|(k, _)| k == key.as_bytes()).map(|(_, value)| value.as_slice());
            prop_assert_eq!(headers.get(key), first);
        }
    }

    #[test]
    fn pushed_headers_are_read_back_and_others_refused(
        pairs in vec((vec(any::<u8>(), 0..6), vec(any::<u8>(), 0..6)), 0..8),
    ) {
        let mut block = Vec::new();
        let mut expected = Vec::new();
        for (key, value) in &pairs {
            let readable = !key.is_empty() && !key.contains(&b':') && !key.contains(&b'\n') && !value.contains(&b'\n');
            let before = block.len();
            prop_assert_eq!(push_header(&mut block, key, value).is_ok(), readable);
            if readable {
                expected.push((key.as_slice(), value.as_slice()));
            } else {
                prop_assert_eq!(block.len(), before, "a refused line leaves nothing behind");
            }
        }
        prop_assert_eq!(Headers::from_block(&block).iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn fragments_put_a_body_together(body in vec(any::<u8>(), 1..300), part_size in 1usize..64) {
        let mut packet = Vec::new();
        for (i, part) in body.chunks(part_size).enumerate() {
            let prefix = fragment_prefix(body.len() as u64, (i * part_size) as u64);
            let body = [&prefix[..], part].concat();
            let frame = Plain { kind: 1, flags: FLAG_FRAGMENT, id: 1, code: 0, extra: 0, block: Vec::new(), body };
            encode_plain(&mut packet, &frame);
        }
        let mut whole = Vec::new();
        for frame in Frames::new(&packet) {
            let fragment = frame.unwrap().fragment().unwrap();
            prop_assert_eq!((fragment.total, fragment.offset), (body.len() as u64, whole.len() as u64));
            whole.extend_from_slice(fragment.part);
        }
        prop_assert_eq!(whole, body);
    }

    #[test]
    fn a_part_outside_its_total_is_refused(
        total in prop_oneof![0u64..40, (u64::MAX - 40)..=u64::MAX],
        offset in prop_oneof![0u64..40, (u64::MAX - 40)..=u64::MAX],
        part in vec(any::<u8>(), 0..20),
        cut in 0usize..20,
    ) {
        let mut body = [&fragment_prefix(total, offset)[..], &part].concat();
        body.truncate(body.len() - cut.min(body.len()));
        let mut packet = Vec::new();
        let plain = Plain { kind: 2, flags: 1, id: 0, code: 0, extra: 0, block: b"k:v\n".to_vec(), body };
        encode_plain(&mut packet, &plain);
        let frame = Frames::new(&packet).next().unwrap().unwrap();
        let part_size = plain.body.len() as i128 - 16;
        let good = part_size > 0 && i128::from(offset) + part_size <= i128::from(total);
        match frame.fragment() {
            Ok(f) => {
                prop_assert!(good);
                prop_assert_eq!((f.total, f.offset, f.part), (total, offset, &plain.body[16..]));
            }
            Err(error) => prop_assert!(!good && error == FrameError::BadFragment),
        }
    }
}

#[test]
fn a_header_is_laid_out_as_documented() {
    let header = Header {
        payload_size: 0x0403_0201,
        header_block_size: 0x0605,
        kind: Kind::Result,
        flags: FLAG_TIMED,
        id: 0x0f0e_0d0c_0b0a_0908,
        code: 0x1312_1110,
        extra: 0x1716_1514,
    };
    let mut bytes: [u8; FRAME_HEADER_SIZE] = std::array::from_fn(|i| i as u8);
    bytes[..6].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
    (bytes[6], bytes[7]) = (Kind::Result as u8, FLAG_TIMED);
    assert_eq!(header.encode(), bytes);
    assert_eq!(Header::decode(&bytes), Ok(header));
}

#[test]
fn sizes_near_the_limit_do_not_overflow() {
    for payload_size in [u32::MAX, u32::MAX - 7, u32::MAX - 24, 1 << 31] {
        let header = Header { payload_size, header_block_size: 0, kind: Kind::Job, flags: 0, id: 0, code: 0, extra: 0 };
        let mut packet = header.encode().to_vec();
        packet.resize(64, 0);
        assert_eq!(decode(&packet), (Vec::new(), Some(FrameError::PayloadBeyondPacket)));
    }
}

#[test]
fn every_status_has_its_code() {
    let known: Vec<u32> = (0..100).filter(|&code| Status::from_code(code).is_some_and(|s| s as u32 == code)).collect();
    assert_eq!(known, [0, 1, 2, 3, 4]);
    assert!((5..100).all(|code| Status::from_code(code).is_none()));
}
