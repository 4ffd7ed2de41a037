//! The frame decoder on arbitrary bytes: no panic, no byte skipped, and every frame that it accepts is encoded back to
//! the very bytes that it was decoded from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seqpool::frame::{self, Frames};
use seqpool::limits::{FRAME_ALIGN, FRAME_HEADER_SIZE};

fuzz_target!(|packet: &[u8]| {
    let mut frames = Frames::new(packet);
    let mut decoded = 0;
    loop {
        let before = frames.rest();
        let Some(frame) = frames.next() else { break };
        let Ok(frame) = frame else {
            assert_eq!(frames.rest(), before, "an error takes nothing");
            assert!(frames.next().is_none(), "an error is the last item");
            return;
        };
        let (header, body) = (frame.header, frame.body());
        let payload = &before[FRAME_HEADER_SIZE..][..header.payload_size as usize];
        let (block, rest) = payload.split_at(usize::from(header.header_block_size));
        assert_eq!(body, rest, "the body is what follows the header block");

        let size = frame::frame_size(payload.len());
        assert_eq!(size % FRAME_ALIGN, 0);
        assert_eq!(before.len() - frames.rest().len(), size);
        let mut encoded = vec![0xff; size];
        frame::encode(&mut encoded, header, block, body);
        assert_eq!(encoded, before[..size]);

        for (key, value) in frame.headers().iter() {
            assert!(!key.contains(&b':') && !key.contains(&b'\n') && !value.contains(&b'\n'));
            let key = std::str::from_utf8(key).unwrap_or_default();
            assert_eq!(frame.headers().get(key).is_some(), frame.headers().iter().any(|(k, _)| k == key.as_bytes()));
        }
        if let Ok(fragment) = frame.fragment() {
            assert!(fragment.offset + fragment.part.len() as u64 <= fragment.total);
            let mut again = frame::fragment_prefix(fragment.total, fragment.offset).to_vec();
            again.extend_from_slice(fragment.part);
            assert_eq!(again, body);
        }
        decoded += size;
    }
    assert_eq!(decoded, packet.len(), "a packet is whole frames and nothing else");
});
